"""Segmentation models exported from PaddleSeg's configurations, and what predict writes for them."""

import json

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.adapters.tiny_seg import SEMANTIC_FPN, write_config, write_data
from tests.deploy.conftest import FORMATS, ONNX, SHAPES

SMALL = {"fpn_channels": 16, "head_channels": 16}
UPERNET = {
    "type": "UPerNet",
    "backbone_indices": [0, 1, 2, 3],
    "channels": 16,
    "dropout_prob": 0.0,
    "enable_auxiliary_loss": False,
}


def build(folder, model):
    from paddleseg.cvlibs import Config, SegBuilder

    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

    register_paddleseg(repair=True)

    write_data(folder)
    config = write_config(folder, model)
    paddle.seed(0)
    network = SegBuilder(Config(path=str(config))).model
    network.eval()
    paddle.save(network.state_dict(), str(folder / "model.pdparams"))
    return network, config


def export(folder, config, kind, *flags):
    arguments = [str(folder / "model.pdparams"), str(folder / kind), "--task", "seg", "--config", str(config)]
    return main(["export", *arguments, "--format", kind, *flags])


def assert_equal_at_any_size(network, folder, **settings):
    model = DeployedModel(folder, **settings)
    for batch, height, width in SHAPES:
        image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
        with paddle.no_grad():
            expected = network(paddle.to_tensor(image))[0].numpy()
        (actual,) = model.run({"image": image})
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 1e-4, (folder.name, image.shape)


@pytest.fixture(scope="module")
def semantic_fpn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic_fpn")
    network, config = build(folder, {**SEMANTIC_FPN, **SMALL})
    (folder / "names.txt").write_text("floor\nwall\nroof\n")
    for kind in FORMATS:
        assert export(folder, config, kind, "--class-names", str(folder / "names.txt")) == 0
    return network, folder


def test_semantic_fpn_equals_dygraph_in_every_format_at_any_size(semantic_fpn):
    network, folder = semantic_fpn
    for kind in FORMATS:
        assert_equal_at_any_size(network, folder / kind)
    assert_equal_at_any_size(network, folder / "paddle", onednn=True)


def test_upernet_equals_dygraph_in_every_format_at_any_size(tmp_path):
    network, config = build(tmp_path, UPERNET)
    for kind in FORMATS:
        assert export(tmp_path, config, kind) == 0
        assert_equal_at_any_size(network, tmp_path / kind)
    assert_equal_at_any_size(network, tmp_path / "paddle", onednn=True)


def test_the_configurations_preprocessing_is_exported(semantic_fpn):
    manifest = yaml.safe_load((semantic_fpn[1] / "paddle" / "cyclemlp.yml").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["preprocessing"]["resize"] == "none"
    assert manifest["classes"] == ["floor", "wall", "roof"]
    assert manifest["variant"] == "b0"


@pytest.mark.parametrize("kind", FORMATS)
def test_masks_are_the_networks_classes_with_and_without_tiles(semantic_fpn, tmp_path, kind):
    network, folder = semantic_fpn
    pixels = np.random.RandomState(3).randint(0, 256, (71, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    Image.fromarray(pixels[:1, :1]).save(tmp_path / "dot.png")
    flags = ["--out", str(tmp_path / "out")]
    images = [str(tmp_path / "one.png"), str(tmp_path / "dot.png")]
    assert main(["predict", str(folder / kind), *images, *flags]) == 0
    image = ((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    with paddle.no_grad():
        expected = network(paddle.to_tensor(image))[0].numpy()[0].argmax(axis=0)
    mask = Image.open(tmp_path / "out" / "masks" / "one.png")
    assert mask.mode == "P"
    assert (np.asarray(mask) == expected).mean() > 0.999
    assert Image.open(tmp_path / "out" / "masks" / "dot.png").size == (1, 1)
    shown = Image.open(tmp_path / "out" / "overlays" / "one.jpg")  # enlarged, and a legend below
    assert shown.width == 360
    assert 284 < shown.height < 400
    # A tile as large as the picture is the picture.
    tiled = ["--out", str(tmp_path / "tiled"), "--tile", "96", "--overlap", "16"]
    assert main(["predict", str(folder / kind), images[0], *tiled]) == 0
    assert (np.asarray(Image.open(tmp_path / "tiled" / "masks" / "one.png")) == np.asarray(mask)).mean() > 0.999


def test_a_strip_goes_by_tiles_in_any_format(semantic_fpn, tmp_path):
    _, folder = semantic_fpn
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 20_000, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    masks = []
    for kind in FORMATS:
        flags = ["--out", str(tmp_path / kind), "--tile", "512", "--overlap", "64"]
        assert main(["predict", str(folder / kind), str(tmp_path / "a.png"), *flags]) == 0
        masks.append(np.asarray(Image.open(tmp_path / kind / "masks" / "a.png")))
        assert masks[-1].shape == (30, 20_000)
        shown = Image.open(tmp_path / kind / "overlays" / "a.jpg")
        assert shown.width == 2048
        assert 3 < shown.height < 150
    assert (masks[0] == masks[-1]).mean() > 0.999


def test_an_onnx_file_says_by_itself_what_it_takes(semantic_fpn):
    if not ONNX:  # the other formats are tested above
        return
    import onnx

    graph = onnx.load(str(semantic_fpn[1] / "onnx" / "model.onnx"))
    onnx.checker.check_model(graph, full_check=True)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["classes"]) == ["floor", "wall", "roof"]
    assert json.loads(metadata["mean"]) == [0.5, 0.5, 0.5]
    assert metadata["variant"] == "b0"
    dims = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", 3, "H", "W"]


def test_the_wrong_task_is_an_error_that_says_what_is_missing(semantic_fpn, tmp_path, capsys):
    _, folder = semantic_fpn
    weights = str(folder / "model.pdparams")
    assert main(["export", weights, str(tmp_path / "out"), "--task", "seg"]) == 1
    assert "--config" in capsys.readouterr().err
    assert main(["predict", str(folder / "paddle"), str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no image" in capsys.readouterr().err
    assert export(folder, folder / "config.yml", "paddle") == 1
    assert "--force" in capsys.readouterr().err
