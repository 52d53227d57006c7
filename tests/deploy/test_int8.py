"""int8 and fp16 classifiers: they decide as float32 does, are smaller, and take any batch and size as before."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cyclemlp_backbones.deploy.images import prepare
from cyclemlp_backbones.deploy.manifest import read_manifest
from cyclemlp_backbones.deploy.quantize import quantize
from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.deploy.conftest import ONNX, export_classifier

MODES = {"dynamic": "int8 dynamic", "static": "int8 static", "fp16": "fp16"}


def picture(number):
    """Blobs of colour, other ones for each number."""
    pixels = np.random.RandomState(number).randint(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 72), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    (folder / "images").mkdir()
    for number in range(100, 112):
        picture(number).save(folder / "images" / f"{number}.png")
    (folder / "images" / "broken.png").write_bytes(b"no picture")
    if ONNX:
        for name in ("float32", *MODES):
            shutil.copytree(classifier / "onnx", folder / name)
        for mode in MODES:
            quantize(folder / mode, mode, calibration=folder / "images" if mode == "static" else None)
    return folder


def logits(model, batch):
    return model.run({"image": batch})[0]


@pytest.mark.parametrize("mode", MODES)
def test_it_decides_as_float32_does(folder, mode):
    if not ONNX:
        return
    exact, quantised = DeployedModel(folder / "float32"), DeployedModel(folder / mode)
    preprocessing = exact.manifest.preprocessing
    batch = np.stack([prepare(picture(n), preprocessing, most_pixels=10**6).array for n in range(40)])
    expected, actual = logits(exact, batch), logits(quantised, batch)
    assert len(set(expected.argmax(axis=1).tolist())) == 4
    assert (expected.argmax(axis=1) == actual.argmax(axis=1)).mean() > 0.9
    spread = [(array - array.mean(axis=0)).ravel() for array in (expected, actual)]
    assert np.corrcoef(*spread)[0, 1] > 0.99
    assert np.abs(actual - expected).max() > 0  # it is another model


@pytest.mark.parametrize("mode", MODES)
def test_batch_and_size_stay_open(folder, mode):
    if not ONNX:
        return
    exact, quantised = DeployedModel(folder / "float32"), DeployedModel(folder / mode)
    for shape in ((3, 3, 96, 64), (1, 3, 97, 131), (2, 3, 33, 45)):
        image = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
        expected, actual = logits(exact, image), logits(quantised, image)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() < 0.5 * np.abs(expected).max()


@pytest.mark.parametrize("mode", MODES)
def test_the_file_is_a_quarter_or_half_and_says_what_it_is(folder, mode):
    if not ONNX:
        return
    import onnx

    sizes = [(folder / name / "model.onnx").stat().st_size for name in (mode, "float32")]
    assert sizes[0] < (0.55 if mode == "fp16" else 0.35) * sizes[1]
    kept, now = (
        {entry.key: entry.value for entry in onnx.load(str(folder / name / "model.onnx")).metadata_props}
        for name in ("float32", mode)
    )
    assert now == {**kept, "quantization": MODES[mode]}
    exact, quantised = read_manifest(folder / "float32"), read_manifest(folder / mode)
    assert quantised.quantization == MODES[mode]
    assert (quantised.classes, quantised.preprocessing) == (exact.classes, exact.preprocessing)
    with pytest.raises(ValueError, match="float32 ONNX can be quantised"):
        quantize(folder / mode, "dynamic")


def test_fp16_is_near_and_exact_in_sizes_beyond_what_it_can_count(folder, tmp_path):
    if not ONNX:
        return
    from tests.adapters.tiny_seg import SEMANTIC_FPN
    from tests.deploy.test_seg import SMALL, build, export

    exact, half = DeployedModel(folder / "float32"), DeployedModel(folder / "fp16")
    image = np.random.RandomState(0).standard_normal((2, 3, 97, 131)).astype(np.float32)
    expected = logits(exact, image)
    assert 0 < np.abs(logits(half, image) - expected).max() < 5e-3 * np.abs(expected).max()
    _, config = build(tmp_path, {**SEMANTIC_FPN, **SMALL})
    for kind, flags in (("onnx", []), ("half", ["--quantize", "fp16"])):
        assert export(tmp_path, config, "onnx", "--force", *flags) == 0
        (tmp_path / "onnx").rename(tmp_path / f"{kind}_model")
    exact, half = DeployedModel(tmp_path / "onnx_model"), DeployedModel(tmp_path / "half_model")
    image = np.random.RandomState(0).standard_normal((1, 3, 32, 4100)).astype(np.float32)  # 2051 is none of fp16
    expected = logits(exact, image)
    assert logits(half, image).shape == expected.shape == (1, 3, 32, 4100)
    assert np.abs(logits(half, image) - expected).max() < 2e-2 * np.abs(expected).max()


def test_what_cannot_be_calibrated_on_is_refused_before_anything_is_written(classifier, tmp_path, capsys):
    def export(*flags):
        onnx = ("--format", "onnx", "--quantize", "static")
        return export_classifier(classifier / "b0.pdparams", tmp_path / "refused", *onnx, *flags)

    (tmp_path / "empty").mkdir()
    for calibration, named in (("missing", "--calibration"), ("empty", "no image")):
        assert export("--calibration", str(tmp_path / calibration)) == 1
        assert named in capsys.readouterr().err
    assert export() == 1
    assert "--calibration DIR" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_folder_of_unreadable_images_calibrates_nothing(folder, tmp_path):
    if not ONNX:
        return
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    copy = tmp_path / "model"
    shutil.copytree(folder / "float32", copy)
    with pytest.raises(ValueError, match=r"no image of .+ can be read"):
        quantize(copy, "static", calibration=tmp_path / "images")
    DeployedModel(copy)  # it is as before
