"""Exported folders: they equal dygraph at any size, say what they are, and predict reads nothing else."""

import shutil

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones import build_backbone, build_classifier
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy import runtime
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
from cyclemlp_backbones.deploy.manifest import ManifestError, Preprocessing
from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.deploy.conftest import CLASSES, FORMATS, SHAPES, small_classifier


def test_every_format_equals_dygraph_at_any_size(classifier):
    network = small_classifier()
    for kind in FORMATS:
        model = DeployedModel(classifier / kind)
        for batch, height, width in SHAPES:
            image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
            with paddle.no_grad():
                expected = network(paddle.to_tensor(image)).numpy()
            (actual,) = model.run({"image": image})
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max(), (kind, image.shape)


def test_an_exported_network_goes_on_in_dygraph(tmp_path):
    network = build_classifier("b0", num_classes=4)
    network.eval()
    exportable = Exportable(
        network, "cls", "CycleNet", "b0", ("image",), ("logits",), [IMAGE], Preprocessing(), tuple(CLASSES)
    )
    export(exportable, tmp_path / "model", format="paddle")
    image = paddle.randn([1, 3, 32, 32])
    before = network(image)
    network.head.bias.set_value(network.head.bias + 1)
    np.testing.assert_allclose(network(image).numpy(), before.numpy() + 1, rtol=1e-4)
    ran = []
    network.norm.register_forward_post_hook(lambda *_: ran.append(paddle.in_dynamic_mode()))
    network(image)
    assert ran == [True]
    assert "forward" not in vars(network)


def test_a_pyramid_equals_dygraph_at_any_size(tmp_path, capsys):
    paddle.seed(0)
    network = build_backbone("b0")
    network.eval()
    paddle.save(network.state_dict(), str(tmp_path / "b0.pdparams"))
    for kind in FORMATS:
        arguments = [str(tmp_path / "b0.pdparams"), str(tmp_path / kind), "--task", "features", "--format", kind]
        assert main(["export", *arguments]) == 0
        model = DeployedModel(tmp_path / kind)
        assert model.manifest.outputs == ("stride4", "stride8", "stride16", "stride32")
        for batch, height, width in SHAPES:
            image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
            with paddle.no_grad():
                expected = [y.numpy() for y in network(paddle.to_tensor(image))]
            for actual, wanted in zip(model.run({"image": image}), expected):
                assert actual.shape == wanted.shape
                assert np.abs(actual - wanted).max() <= 1e-4 * np.abs(wanted).max(), (kind, image.shape)
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    assert main(["predict", str(tmp_path / "paddle"), str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "predict takes cls, seg and det" in capsys.readouterr().err


def test_a_damaged_folder_is_refused(classifier, tmp_path):
    with pytest.raises(ManifestError, match=r"cyclemlp\.yml"):
        DeployedModel(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(classifier / "paddle", copy)
    weights = copy / "model.pdiparams"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match=r"model\.pdiparams"):
        DeployedModel(copy)


def test_the_manifest_states_the_preprocessing(classifier):
    manifest = yaml.safe_load((classifier / "paddle" / "cyclemlp.yml").read_text())
    assert manifest["variant"] == "b0"
    assert manifest["classes"] == CLASSES
    assert manifest["preprocessing"]["crop"] == 64


@pytest.mark.parametrize("error", [0.0, 0.1, RuntimeError("ConvertPirAttribute2RuntimeAttribute not support")])
def test_onednn_is_used_where_it_computes_the_same_and_only_there(classifier, monkeypatch, error):
    load, used = runtime._load_paddle, []

    def with_onednn_that_errs(folder, manifest, threads, onednn):
        run = load(folder, manifest, threads, onednn)
        if onednn is None:
            return run

        def erring(feeds):
            used.append(onednn)
            if onednn and not isinstance(error, float):
                raise error
            return [output + (error if onednn else 0) for output in run(feeds)]

        return erring

    monkeypatch.setattr(runtime, "_load_paddle", with_onednn_that_errs)
    model = DeployedModel(classifier / "paddle")
    used.clear()
    model.run({"image": np.zeros((1, 3, 40, 40), np.float32)})
    assert used == [error == 0.0]
