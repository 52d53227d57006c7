"""Foreign and damaged folders, and images of odd shapes: errors that name what is wrong, results within bounds."""

import csv
import hashlib
import shutil

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones import build_classifier
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.images import Prepared, batches_of_equal_shape
from cyclemlp_backbones.deploy.manifest import Manifest, ManifestError, Preprocessing, read_manifest
from cyclemlp_backbones.deploy.predict import Options
from cyclemlp_backbones.deploy.runtime import DeployedModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    paddle.seed(0)
    paddle.save(build_classifier("b0", num_classes=3).state_dict(), str(folder / "b0.pdparams"))
    assert main(["export", str(folder / "b0.pdparams"), str(folder / "model"), "--task", "cls", "--size", "64"]) == 0
    return folder


def changed(exported, folder, **values):
    """A copy of the exported folder whose cyclemlp.yml says something else; None removes an entry."""
    shutil.copytree(exported / "model", folder)
    manifest = yaml.safe_load((folder / "cyclemlp.yml").read_text())
    manifest = {key: value for key, value in {**manifest, **values}.items() if value is not None}
    (folder / "cyclemlp.yml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"task": None}, "lacks task"),
        ({"task": "pose"}, "'pose'"),
        ({"schema": 9}, "schema 9"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"inputs": 3}, "inputs is 3; it takes a list"),
        ({"palette": [[1]]}, "palette"),
        ({"files": {}}, "files of the format paddle"),
        ({"format": "onnx"}, "files of the format onnx"),
        ({"files": {"../model.json": "0", "model.pdiparams": "0"}}, "no file"),
        ({"files": {"model.txt": "0", "model.pdiparams": "0"}}, "end with .json or .pdmodel and .pdiparams"),
        ({"task": "det"}, "0 category_ids for 3 classes"),
        ({"preprocessing": {"mean": ["a", 0, 0]}}, "preprocessing.mean is 'a'"),
        ({"preprocessing": {"std": [0, 1, 1]}}, "preprocessing.std"),
        ({"preprocessing": {"pad_to": 0}}, "pad_to is 0"),
        ({"preprocessing": {"resize": "short"}}, "takes 1 sizes"),
    ],
)
def test_a_manifest_that_is_not_one_says_which_entry(exported, tmp_path, values, named):
    with pytest.raises(ManifestError, match=named):
        read_manifest(changed(exported, tmp_path / "copy", **values))


@pytest.mark.parametrize("text", ["", "- 1", "a: [1", "\x00"])
def test_text_that_is_no_manifest_is_refused(exported, tmp_path, text):
    (tmp_path / "cyclemlp.yml").write_text(text)
    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(tmp_path)


def test_the_order_of_a_manifests_entries_says_nothing(exported, tmp_path):
    folder = changed(exported, tmp_path / "copy")
    manifest = yaml.safe_load((folder / "cyclemlp.yml").read_text())
    manifest["files"] = dict(reversed(manifest["files"].items()))
    (folder / "cyclemlp.yml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    image = {"image": np.ones((1, 3, 64, 64), np.float32)}
    expected, actual = (DeployedModel(path).run(image)[0] for path in (exported / "model", folder))
    np.testing.assert_array_equal(actual, expected)


def test_a_manifest_of_another_model_is_refused(exported, tmp_path):
    with pytest.raises(ManifestError, match="inputs"):
        DeployedModel(changed(exported, tmp_path / "inputs", inputs=["picture"]))
    with pytest.raises(ManifestError, match="states 2 outputs"):
        DeployedModel(changed(exported, tmp_path / "outputs", outputs=["one", "two"]))


def test_a_program_that_does_not_load_is_an_error_and_no_crash(exported, tmp_path, capsys):
    folder = changed(exported, tmp_path / "copy")
    manifest = yaml.safe_load((folder / "cyclemlp.yml").read_text())
    weights = (folder / "model.pdiparams").read_bytes()[:1000]
    (folder / "model.pdiparams").write_bytes(weights)
    manifest["files"]["model.pdiparams"] = hashlib.sha256(weights).hexdigest()
    (folder / "cyclemlp.yml").write_text(yaml.safe_dump(manifest))
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    assert main(["predict", str(folder), str(tmp_path / "one.png"), "--out", str(tmp_path / "out")]) == 1
    assert f"{folder} does not load" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_the_earlier_one(exported, tmp_path, capsys):
    folder = changed(exported, tmp_path / "copy")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    flags = ["--task", "cls", "--force", "--class-names", str(tmp_path / "names.txt")]
    assert main(["export", str(exported / "b0.pdparams"), str(folder), *flags]) == 1
    assert "names 2 classes" in capsys.readouterr().err
    DeployedModel(folder)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    assert main(["export", str(exported / "b0.pdparams"), str(folder), *flags]) == 1
    assert "names.txt is no text" in capsys.readouterr().err
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"")
    assert main(["export", str(exported / "b0.pdparams"), str(tmp_path / "holiday"), "--task", "cls", "--force"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "holiday" / "beach.jpg").exists()


def test_a_dot_and_a_strip_are_classified(exported, tmp_path):
    for name, size in {"dot": (1, 1), "strip": (20_000, 30), "tower": (30, 20_000)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    assert main(["predict", str(exported / "model"), str(tmp_path), "--out", str(tmp_path / "out"), "--top", "2"]) == 0
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert max(max(Image.open(path).size) for path in (tmp_path / "out" / "overlays").iterdir()) < 5000


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--top", "0"], "--top is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--tile", "64"], "--tile is for segmentation"),
        (["--score-threshold", "7"], "--score-threshold is 7.0; it takes 0 to 1"),
        (["--draw-threshold", "nan"], "--draw-threshold is nan"),
        (["--coco-images", "none.json"], "--coco-images is for detection"),
    ],
)
def test_flags_out_of_range_are_refused(exported, tmp_path, capsys, flags, named):
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    arguments = [str(exported / "model"), str(tmp_path / "one.png"), "--out", str(tmp_path / "out"), *flags]
    assert main(["predict", *arguments]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_too_large_is_left_out_and_the_others_done(exported, tmp_path, capsys):
    for name, side in (("large", 400), ("small", 50)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    flags = ["--out", str(tmp_path / "out"), "--max-pixels", "10000"]
    assert main(["predict", str(exported / "model"), str(tmp_path), *flags]) == 1
    assert "large.png: ValueError: 400 x 400 pixels are more than --max-pixels 10000" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "overlays").iterdir()] == ["small.jpg"]


def test_a_batch_holds_no_more_pixels_than_one_image_may():
    items = [(None, None, Prepared(np.zeros((3, 10, 10)), (10, 10), (10, 10), (1, 1)))] * 7

    def sizes(**limits):
        return [len(batch) for batch in batches_of_equal_shape(iter(items), **limits)]

    assert sizes(size=4, most_pixels=1000) == [4, 3]
    assert sizes(size=4, most_pixels=299) == [2, 2, 2, 1]
    assert sizes(size=4, most_pixels=1) == [1] * 7


def test_many_classes_leave_fewer_pixels_to_a_segmentation_model():
    def pixels(task, classes):
        names = tuple(map(str, range(classes)))
        return Options().model_pixels(Manifest(task, "onnx", "", None, (), (), Preprocessing(), names))

    assert pixels("seg", 2) == pixels("cls", 1000) == 4096 * 4096
    assert pixels("seg", 150) * 150 * 4 <= 2**31
    with pytest.raises(ValueError, match="--max-model-pixels"):
        Options(tile=8192).check(Manifest("seg", "onnx", "", None, (), (), Preprocessing(), ("a", "b")))
