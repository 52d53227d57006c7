"""Annotation files with mistakes: an error that names file and entry, or one counted warning; and through training."""

from __future__ import annotations

import json
import logging

import pytest

from cyclemlp_backbones.coco import check_annotations
from tests.adapters.tiny_det import SIZE, cyclemlp, write_config, write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def change(folder, edit):
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path


def set_first(**values):
    return lambda document: document["annotations"][0].update(values)


MISTAKES = [
    (lambda document: document.update(categories=[]), r"instances_train\.json: its list of categories is empty"),
    (lambda document: document.update(images=[]), r"instances_train\.json: its list of images is empty"),
    (lambda document: document.pop("categories"), r"instances_train\.json has no list of categories"),
    (set_first(category_id=77), r"annotation 1 is of category 77, which is not among the file's 10 categories"),
    (set_first(image_id=99), r"annotation 1 is of image 99, which the file does not list"),
    (
        set_first(bbox=[SIZE, 3, 10, 10]),
        r"the box \[64, 3, 10, 10\] of annotation 1 is outside its image, which is 64 wide and 64 high",
    ),
    (set_first(bbox=[-20, 3, 10, 10]), r"the box \[-20, 3, 10, 10\] of annotation 1 is outside its image"),
    (set_first(bbox=[1, 2, 3]), r"the box of annotation 1 is \[1, 2, 3\]; it takes \[x, y, width, height\]"),
    (
        set_first(segmentation={"size": [64, 32], "counts": [64 * 32]}),
        r"the run-length code of annotation 1 is of size \[64, 32\], its image is \[64, 64\]",
    ),
    (
        set_first(segmentation={"size": [64, 64], "counts": [10, 20]}),
        r"the run lengths of annotation 1 add up to 30 pixels, its image has 4096",
    ),
    (lambda document: document.pop("annotations"), r"instances_train\.json has no list of annotations, which training"),
    (lambda document: document["images"][1].update(id="7"), r"entry 1 of images has the id '7'; it takes an integer"),
    (lambda document: document["images"][1].pop("width"), r"entry 1 of images has no width; it takes a number"),
    (lambda document: document["categories"][2].pop("name"), r"entry 2 of categories has no name; it takes text"),
    (set_first(id="a"), r"entry 0 of annotations has the id 'a'; it takes an integer"),
    (lambda document: document["annotations"][0].pop("iscrowd"), r"annotation 1 has no iscrowd; it takes an integer"),
    (
        lambda document: document["annotations"][0].pop("area"),
        r"annotation 1 has no area; it takes a number",
    ),
    (set_first(bbox=[float("nan"), 1, 2, 3]), r"the box of annotation 1 is \[nan, 1, 2, 3\]; it takes \[x, y, width"),
    (set_first(segmentation=[]), r"the segmentation of annotation 1 is \[\]; masks take polygons"),
    (set_first(segmentation=None), r"the segmentation of annotation 1 is None; masks take polygons"),
    (set_first(segmentation=[[1, 2, 3, 4]]), r"the segmentation of annotation 1 is \[\[1, 2, 3, 4\]\]; masks take"),
]


@pytest.mark.parametrize(("edit", "message"), MISTAKES)
def test_mistake_is_an_error_that_names_the_file_and_the_entry(folder, edit, message):
    path = change(folder, edit)
    with pytest.raises(ValueError, match=message) as raised:
        check_annotations(path, folder / "train", fields=["gt_bbox", "gt_poly"])
    assert str(path) in str(raised.value)


def test_data_of_the_demo_pass_without_a_word(folder, caplog):
    with caplog.at_level(logging.WARNING):
        check_annotations(folder / "annotations" / "instances_train.json", folder / "train")
    assert caplog.records == []


def test_what_training_can_do_without_is_counted(folder, caplog):
    def edit(document):
        document["annotations"][0]["bbox"] = [-10, 0, 30, 30]
        document["annotations"][1]["bbox"] = [0, 0, 0, 30]

    path = change(folder, edit)
    (folder / "train" / "000002.png").unlink()
    total = len(json.loads(path.read_text())["annotations"])
    with caplog.at_level(logging.WARNING):
        check_annotations(path, folder / "train")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 of 4 images are missing and left out; the first is {folder / 'train' / '000002.png'}",
        f"{path}: 1 of {total} boxes without an area, which are left out; the first is annotation 2",
        f"{path}: 1 of {total} boxes that reach outside their image, which are used as they are; "
        "the first is annotation 1",
    ]


def test_missing_or_broken_files_are_errors(folder):
    path = folder / "annotations" / "instances_train.json"
    with pytest.raises(FileNotFoundError, match=r"none of its 4 images is in .*val2, for example 000000\.png"):
        check_annotations(path, folder / "val2")
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*instances_test\.json"):
        check_annotations(path.with_name("instances_test.json"), folder / "train")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(ValueError, match=r"instances_train\.json begins with a byte order mark"):
        check_annotations(path, folder / "train")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances_train\.json is no valid JSON"):
        check_annotations(path, folder / "train")


@pytest.mark.slow
def test_training_stops_at_a_mistake_and_goes_on_without_a_missing_image(folder):
    config = write_config(folder, "retinanet", epoch=1)
    (folder / "train" / "000002.png").unlink()
    status, output = cyclemlp("det", "train", "-c", config, cwd=folder)
    assert status == 0, output
    assert "1 of 4 images are missing and left out" in output
    change(folder, set_first(bbox=[SIZE, 3, 10, 10]))
    status, output = cyclemlp("det", "train", "-c", config, cwd=folder)
    assert status == 1
    assert "cyclemlp det: error:" in output
    assert "of annotation 1 is outside its image" in output
