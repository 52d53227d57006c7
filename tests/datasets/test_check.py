"""`cyclemlp data check` finds what a training would end at, by the trainers' own rules, and counts what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.digits import DemoSettings, write_demo_data
from tests.adapters import tiny_det, tiny_seg
from tests.adapters.paddleseg.test_bad_samples import BAD

PLAIN = {"type": "SemanticFPN"}


def check(config, *flags, capsys):
    """The status, the figures and what was said on standard error."""
    result = config.parent / "check.json"
    status = main(["data", "check", "--config", str(config), "--workers", "2", "--json", str(result), *map(str, flags)])
    return status, json.loads(result.read_text()), capsys.readouterr().err


@pytest.fixture
def seg(tmp_path):
    tiny_seg.write_data(tmp_path, images=6)
    return tiny_seg.write_config(tmp_path, PLAIN)


@pytest.fixture
def det(tmp_path):
    tiny_det.write_data(tmp_path)
    return tiny_det.write_config(tmp_path, "mask_rcnn")


@pytest.mark.parametrize("bad", BAD)
def test_what_ends_a_segmentations_training_is_a_fault_with_the_same_words(seg, bad, capsys):
    message = bad(seg.parent)
    status, report, error = check(seg, capsys=capsys)
    assert status == 1
    for split, key in zip(report, ("train_dataset.train_path", "val_dataset.val_path")):  # of the same list
        (fault,) = split["faults"]
        assert fault.startswith(f"{seg.parent / '0.png'} with {seg.parent / '0_label.png'}: ")
        assert message in fault
        assert f"({key} and dataset_root)" in fault
        assert fault in error
    assert "2 faults; " in error


def test_pixels_sizes_and_names_are_counted(seg, capsys):
    (seg.parent / "labels.txt").write_text("ground\nsea\n")
    Image.new("RGB", (80, 40)).save(seg.parent / "5.png")
    Image.fromarray(np.full((40, 80), 255, np.uint8)).save(seg.parent / "5_label.png")
    status, (train, val), _ = check(seg, capsys=capsys)
    labels = [np.asarray(Image.open(seg.parent / f"{index}_label.png")) for index in range(5)]
    assert status == 0
    assert (train["width"], train["height"], train["samples"]) == ([64, 64, 80], [40, 64, 64], 6)
    assert train["classes"] == [
        {"class": index, "name": name, "images": 5, "pixels": sum(int((label == index).sum()) for label in labels)}
        for index, name in enumerate(("ground", "sea", "2"))
    ]
    assert train["notes"] == ["1 images without pixels of any class"]
    assert val["classes"] == train["classes"]


def test_lists_and_settings_that_do_not_fit_are_faults(seg, capsys):
    (seg.parent / "list.txt").write_text("0.png 0_label.png\n1.png\n\n2.png 2_label.png\n")
    status, (train, val), _ = check(seg, "--opts", "val_dataset.val_path=nowhere.txt", capsys=capsys)
    assert status == 1
    assert train["samples"] == 2
    assert [fault.partition("list.txt, ")[2] for fault in train["faults"]] == [
        "line 2: '1.png' is no image and mask with ' ' between (train_dataset.separator)",
        "line 3: '' is no image and mask with ' ' between (train_dataset.separator)",
    ]
    assert val["faults"] == ["val_dataset.val_path is 'nowhere.txt', which is no file"]
    _, (train, val), _ = check(seg, "--opts", "model.num_classes=9", "val_dataset.dataset_root=x", capsys=capsys)
    assert train["faults"] == ["train_dataset.num_classes is 3, model.num_classes 9; make them equal"]
    assert val["faults"] == ["val_dataset.dataset_root is 'x', which is no folder"]


def test_a_data_set_of_paddleseg_itself_is_read_through_it(tmp_path, capsys):
    names = {"train": "training", "val": "validation"}
    for name in names.values():
        for kind, array in (
            ("images", np.zeros((40, 50, 3), np.uint8)),
            ("annotations", np.full((40, 50), 7, np.uint8)),
        ):
            (tmp_path / kind / name).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / kind / name / f"a.{'jpg' if kind == 'images' else 'png'}")
    config = tmp_path / "config.yml"
    sections = {f"{mode}_dataset": {"type": "ADE20K", "dataset_root": str(tmp_path), "mode": mode} for mode in names}
    config.write_text(yaml.safe_dump({**sections, "model": PLAIN}))
    _, report, _ = check(config, capsys=capsys)
    for split in report:
        assert split["width"] == [50, 50, 50]
        assert [(row["class"], row["pixels"]) for row in split["classes"] if row["pixels"]] == [(6, 2000)]
    Image.fromarray(np.full((40, 50), 200, np.uint8)).save(tmp_path / "annotations" / "training" / "a.png")
    _, (train, _), _ = check(config, capsys=capsys)
    assert "a.png: ValueError: the mask has the label 199; num_classes: 150" in train["faults"][0]


def annotate(config, edit):
    path = config.parent / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return document


def test_every_fault_of_a_detection_is_listed(det, capsys):
    def edit(document):
        first, second, third = document["annotations"][:3]
        first.update(category_id=77)
        second.update(bbox=[64, 3, 10, 10])
        third.update(segmentation=None)
        document["images"][1].update(width=63)

    annotate(det, edit)
    (det.parent / "train" / "000002.png").unlink()
    (det.parent / "train" / "000003.png").write_bytes(b"no picture")
    status, (train, val), error = check(det, "--opts", "num_classes=3", capsys=capsys)
    assert status == 1
    wanted = [
        "annotation 1 is of category 77, which is not among the file's 10 categories",
        "the box [64, 3, 10, 10] of annotation 2 is outside its image",
        "the segmentation of annotation 3 is None; masks take polygons",
        "num_classes is 3, but ",
        "000001.png: ValueError: the image is 64 x 64, its annotations are of 63 x 64",
        "000002.png: [Errno 2] No such file",
        "000003.png: cannot identify image file",
    ]
    assert len(train["faults"]) == len(wanted)
    for fault, words in zip(train["faults"], wanted):
        assert words in fault
        assert fault in error
    assert train["notes"][0].endswith(f"the first is {det.parent / 'train' / '000002.png'}")
    assert len(val["faults"]) == 1  # num_classes


def test_boxes_are_counted_and_notes_are_no_faults(det, capsys):
    def edit(document):
        document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != 2]
        document["annotations"][0]["bbox"] = [-10, 0, 30, 30]

    document = annotate(det, edit)
    status, (train, _), _ = check(det, capsys=capsys)
    assert status == 0
    assert {row["name"]: row["boxes"] for row in train["classes"] if row["boxes"]} == {
        category["name"]: count
        for category in document["categories"]
        if (count := sum(entry["category_id"] == category["id"] for entry in document["annotations"]))
    }
    assert "1 images without boxes of any class" in train["notes"]
    assert any("boxes that reach outside their image" in note for note in train["notes"])
    annotate(det, lambda document: document["categories"].reverse())
    status, (train, val), _ = check(det, capsys=capsys)
    assert status == 1
    assert "its categories differ from TrainDataset's" in val["faults"][0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda document: document["images"][1].pop("width"), "entry 1 of images has no width; it takes a number"),
        (lambda document: document.update(categories=[]), "its list of categories is empty"),
    ],
)
def test_a_file_that_says_too_little_is_one_fault_and_the_other_split_is_read(det, edit, message, capsys):
    annotate(det, edit)
    status, (train, val), _ = check(det, capsys=capsys)
    assert status == 1
    assert message in train["faults"][0]
    assert (val["samples"], val["faults"]) == (2, [])


@pytest.fixture
def cls(tmp_path):
    write_demo_data(tmp_path / "data", DemoSettings("imagenet", train=20, val=10, size=32))
    config = tmp_path / "cls.yml"
    data = {f"{what}_images": str(tmp_path / "data" / what) for what in ("train", "val")}
    data["val_list"] = str(tmp_path / "data" / "val.txt")
    config.write_text(yaml.safe_dump({"model": {"num_classes": 10}, "data": data}))
    return config


def test_a_classifiers_images_are_counted_and_faults_listed(cls, capsys):
    status, (train, val), _ = check(cls, capsys=capsys)
    assert status == 0
    assert [row["images"] for row in train["classes"]] == [2] * 10
    assert [row["name"] for row in train["classes"]][:2] == ["n00000000", "n00000001"]
    path = next((cls.parent / "data" / "train" / "n00000003").iterdir())
    path.write_bytes(path.read_bytes()[:-60])
    listing = cls.parent / "data" / "val.txt"
    listing.write_text(listing.read_text() + "x.png 10\n")
    status, (train, val), _ = check(cls, capsys=capsys)
    assert status == 1
    assert train["faults"] == [fault for fault in train["faults"] if fault.startswith(f"{path}: ")] != []
    assert "line 11: 'x.png 10' is no `name label` with a label from 0 to 9 (model.num_classes - 1)" in val["faults"][0]
    assert main(["data", "check", "--config", "cyclemlp_b1.yml"]) == 1
    assert "data.train_images is not set" in capsys.readouterr().err


def test_nothing_of_a_configuration_is_run_and_mistakes_are_errors(tmp_path, capsys):
    config = tmp_path / "config.yml"
    config.write_text("_base_: base.yml\n")
    (tmp_path / "base.yml").write_text("train_dataset: !!python/object/apply:os.system ['touch ran']\n")
    for flags, message in (
        (["--config", config], "base.yml is no valid YAML: could not determine a constructor for the tag"),
        (["--config", tmp_path / "confg.yml"], "no configuration "),
        (["--config", config, "--workers", "0"], "--workers is 0; it takes an integer of at least 1"),
    ):
        assert main(["data", "check", *map(str, flags)]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    config.write_text("TrainDataset: !VOCDataSet {dataset_dir: data}\n")
    assert main(["data", "check", "--config", str(config)]) == 1
    assert "TrainDataset.name is 'VOCDataSet'; `cyclemlp data check` reads COCODataSet" in capsys.readouterr().err


@pytest.mark.slow
def test_no_toolkit_and_no_paddle_is_needed(det, tmp_path):
    tiny_seg.write_data(tmp_path / "seg")
    seg = tiny_seg.write_config(tmp_path / "seg", PLAIN)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("paddle", "paddleseg", "ppdet", "cv2", "pycocotools"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked')\n")
    search = os.pathsep.join([str(blocked), str(tiny_seg.REPOSITORY)])
    for config in (seg, det):
        command = [sys.executable, "-m", "cyclemlp_backbones", "data", "check", "--config", str(config)]
        run = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert "no fault found" in run.stdout
