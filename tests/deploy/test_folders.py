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
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"inputs": 3}, "inputs is 3; it takes a list"),
        ({"palette": [[1]]}, "palette"),
        ({"files": {}}, "files of the format paddle"),
        ({"format": "onnx"}, "files of the format onnx"),
        ({"files": {"../model.json": "0", "model.pdiparams": "0"}}, "no file"),
        ({"files": {"model.txt": "0", "model.pdiparams": "0"}}, "end with .json or .pdmodel and .pdiparams"),
        ({"task": "det"}, "0 category_ids for 4 classes"),
        ({"classes": []}, "0 classes; a model of the task cls has some"),
        ({"palette": [[1, 2, 3]]}, "1 colours in the palette for 4 classes"),
        ({"palette": [[1, 2, 256] for _ in range(4)]}, "a value of the palette is 256"),
        ({"nms": {"score_threshold": 0.5}}, "nms is for detection"),
        ({"preprocessing": {"mean": ["a", 0, 0]}}, "preprocessing.mean is .a."),
        ({"preprocessing": {"std": [0, 1, 1]}}, "preprocessing.std"),
        ({"preprocessing": {"pad_to": 0}}, "pad_to is 0"),
        ({"preprocessing": {"pad_to": 10**9}}, "pad_to is 1000000000; it takes an integer from 1 to 1024"),
        ({"preprocessing": {"least": 10**9}}, "least of preprocessing is 1000000000"),
        ({"preprocessing": {"mean": [float("nan"), 0, 0]}}, "preprocessing.mean is .nan.+finite"),
        ({"preprocessing": {"std": [1, float("inf"), 1]}}, "preprocessing.std"),
        ({"preprocessing": {"mean": [10**400, 0, 0]}}, "damaged"),
        ({"preprocessing": {"input_range": [1, 1]}}, "preprocessing.input_range"),
        ({"preprocessing": {"channel_order": "RBG"}}, "channel_order is 'RBG'; choose from RGB, BGR"),
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


@pytest.mark.parametrize(
    "values", [{"classes": ["ant", "bee", "cat"]}, {"classes": list("abcde")}, {"task": "seg"}, {"task": "features"}]
)
def test_a_manifest_that_the_model_does_not_fit_is_refused_before_anything_is_written(
    classifier, tmp_path, capsys, values
):
    more = {"classes": []} if values.get("task") == "features" else {}
    folder = changed(classifier, tmp_path / "copy", **values, **more)
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    assert main(["predict", str(folder), str(tmp_path / "one.png"), "--out", str(tmp_path / "out")]) == 1
    assert "this one gives logits [1, 4]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: cls\ntask: seg", "task stands twice"),
        ("preprocessing: {crop: 64, crop: 32}", "crop stands twice"),
        ("versions: &a [*a]", r"aliases are not taken: \*a"),
        ("a: &a [1]\nb: *a", "aliases are not taken"),
        ("[" * 5000, "damaged"),
        ("mean: 1" + "0" * 5000, "damaged"),
    ],
)
def test_text_that_could_mean_two_things_or_much_is_refused(tmp_path, text, message):
    (tmp_path / "cyclemlp.yml").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)
