"""Foreign and damaged folders are errors that name what is wrong; a failed export leaves what was there."""

import hashlib
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.manifest import ManifestError, read_manifest
from cyclemlp_backbones.deploy.runtime import DeployedModel


def changed(classifier, folder, **values):
    """A copy of the exported folder whose cyclemlp.yml says something else; None removes an entry."""
    shutil.copytree(classifier / "paddle", folder)
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
        ({"colour": "red"}, "unknown colour"),
        ({"inputs": 3}, "inputs of the manifest is 3"),
        ({"palette": [[1]]}, "palette"),
        ({"files": {}}, "files of the format paddle"),
        ({"format": "onnx"}, "files of the format onnx"),
        ({"files": {"../model.json": "0", "model.pdiparams": "0"}}, "no file"),
        ({"files": {"model.txt": "0", "model.pdiparams": "0"}}, "end with .json or .pdmodel and .pdiparams"),
        ({"task": "det"}, "0 category_ids for 4 classes"),
        ({"preprocessing": {"mean": ["a", 0, 0]}}, "mean of preprocessing"),
        ({"preprocessing": {"std": [0, 1, 1]}}, "preprocessing.std"),
        ({"preprocessing": {"pad_to": 0}}, "pad_to is 0"),
        ({"preprocessing": {"resize": "short"}}, "takes 1 sizes"),
    ],
)
def test_a_manifest_that_is_not_one_says_which_entry(classifier, tmp_path, values, named):
    with pytest.raises(ManifestError, match=named):
        read_manifest(changed(classifier, tmp_path / "copy", **values))


@pytest.mark.parametrize("text", ["", "- 1", "a: [1", "\x00"])
def test_text_that_is_no_manifest_is_refused(classifier, tmp_path, text):
    (tmp_path / "cyclemlp.yml").write_text(text)
    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(tmp_path)


def test_the_order_of_a_manifests_entries_says_nothing(classifier, tmp_path):
    folder = changed(classifier, tmp_path / "copy")
    manifest = yaml.safe_load((folder / "cyclemlp.yml").read_text())
    manifest["files"] = dict(reversed(manifest["files"].items()))
    (folder / "cyclemlp.yml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    image = {"image": np.ones((1, 3, 64, 64), np.float32)}
    expected, actual = (DeployedModel(path).run(image)[0] for path in (classifier / "paddle", folder))
    np.testing.assert_array_equal(actual, expected)


def test_a_manifest_of_another_model_is_refused(classifier, tmp_path):
    with pytest.raises(ManifestError, match="inputs"):
        DeployedModel(changed(classifier, tmp_path / "inputs", inputs=["picture"]))
    with pytest.raises(ManifestError, match="has no inputs image and outputs one, two"):
        DeployedModel(changed(classifier, tmp_path / "outputs", outputs=["one", "two"]))


def test_a_program_that_does_not_load_is_an_error_and_no_crash(classifier, tmp_path, capsys):
    folder = changed(classifier, tmp_path / "copy")
    manifest = yaml.safe_load((folder / "cyclemlp.yml").read_text())
    weights = (folder / "model.pdiparams").read_bytes()[:1000]
    (folder / "model.pdiparams").write_bytes(weights)
    manifest["files"]["model.pdiparams"] = hashlib.sha256(weights).hexdigest()
    (folder / "cyclemlp.yml").write_text(yaml.safe_dump(manifest))
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    assert main(["predict", str(folder), str(tmp_path / "one.png"), "--out", str(tmp_path / "out")]) == 1
    assert f"{folder} does not load" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_the_earlier_one(classifier, tmp_path, capsys):
    folder = changed(classifier, tmp_path / "copy")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    flags = ["--task", "cls", "--force", "--class-names", str(tmp_path / "names.txt")]
    assert main(["export", str(classifier / "b0.pdparams"), str(folder), *flags]) == 1
    assert "names 2 classes" in capsys.readouterr().err
    DeployedModel(folder)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    assert main(["export", str(classifier / "b0.pdparams"), str(folder), *flags]) == 1
    assert "names.txt is no text" in capsys.readouterr().err
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"")
    assert main(["export", str(classifier / "b0.pdparams"), str(tmp_path / "holiday"), "--task", "cls", "--force"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "holiday" / "beach.jpg").exists()
