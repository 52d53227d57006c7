"""Exported folders: they equal dygraph at any size, say what they are, and predict reads nothing else."""

import csv

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones import build_backbone, build_classifier
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
from cyclemlp_backbones.deploy.manifest import ManifestError, Preprocessing
from cyclemlp_backbones.deploy.runtime import DeployedModel

ONNX = paddle.__version__.startswith("3.")
SHAPES = [(1, 224, 224), (3, 96, 64), (1, 97, 131), (3, 33, 45), (1, 32, 32)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    paddle.seed(0)
    network = build_classifier("b0", num_classes=4)
    for parameter in network.parameters():  # the initial weights give logits too small to tell classes apart
        if len(parameter.shape) > 1:
            parameter.set_value(parameter * 3)
    network.eval()
    paddle.save(network.state_dict(), str(folder / "b0.pdparams"))
    (folder / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    for kind in ("paddle", "onnx") if ONNX else ("paddle",):
        arguments = [str(folder / "b0.pdparams"), str(folder / kind), "--task", "cls", "--format", kind]
        assert main(["export", *arguments, "--class-names", str(folder / "names.txt"), "--size", "64"]) == 0
    return network, folder


def test_every_format_equals_dygraph_at_any_size(exported):
    network, folder = exported
    for kind in ("paddle", "onnx") if ONNX else ("paddle",):
        model = DeployedModel(folder / kind)
        for batch, height, width in SHAPES:
            image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
            with paddle.no_grad():
                expected = network(paddle.to_tensor(image)).numpy()
            (actual,) = model.run({"image": image})
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max(), (kind, image.shape)


def test_an_exported_network_goes_on_in_dygraph(tmp_path):
    network = build_classifier("b0", num_classes=4)
    network.eval()
    exportable = Exportable(network, "cls", "CycleNet", "b0", ("image",), ("logits",), [IMAGE], Preprocessing())
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
    for kind in ("paddle", "onnx") if ONNX else ("paddle",):
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


def test_predict_does_the_others_when_one_image_is_broken(exported, tmp_path, capsys):
    _, folder = exported
    images = tmp_path / "images"
    images.mkdir()
    for index, size in enumerate([(40, 70), (1, 1), (300, 12)]):
        pixels = np.random.RandomState(index).randint(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    (images / "broken.png").write_bytes(b"no picture")
    assert main(["predict", str(folder / "paddle"), str(images), "--out", str(tmp_path / "out")]) == 1
    assert "broken.png" in capsys.readouterr().err
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({next(iter(row.values())) for row in rows}) == 3
    assert any(name in rows[0].values() for name in ("ant", "bee", "cat", "dog"))


def test_a_damaged_folder_is_refused(exported, tmp_path):
    _, folder = exported
    with pytest.raises(ManifestError, match=r"cyclemlp\.yml"):
        DeployedModel(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (folder / "paddle").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.pdiparams"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match=r"model\.pdiparams"):
        DeployedModel(copy)


def test_the_manifest_states_the_preprocessing(exported):
    _, folder = exported
    manifest = yaml.safe_load((folder / "paddle" / "cyclemlp.yml").read_text())
    assert manifest["variant"] == "b0"
    assert manifest["classes"] == ["ant", "bee", "cat", "dog"]
    assert manifest["preprocessing"]["crop"] == 64
