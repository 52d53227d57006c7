"""One bad sample ends a training within a minute: exit status 1, the file and the reason, checkpoints as they were."""

from __future__ import annotations

import json
import time

import pytest

from tests.adapters.tiny_det import cyclemlp, write_config, write_data


def undecodable_image(folder):
    (folder / "train" / "000000.png").write_bytes(b"no picture")
    return "train/000000.png: cannot identify image file"


def no_segmentation(folder):
    return change_segmentation(folder, None)


def empty_segmentation(folder):
    return change_segmentation(folder, [])


def four_numbers(folder):
    return change_segmentation(folder, [[1, 2, 30, 40]])


def change_segmentation(folder, value):
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = value
    path.write_text(json.dumps(document))
    return f"instances_train.json: the segmentation of annotation 1 is {value}; masks take polygons of 3 points"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "workers"),
    [(undecodable_image, 0), (undecodable_image, 2), (no_segmentation, 0), (empty_segmentation, 2), (four_numbers, 2)],
)
def test_training_ends_and_names_the_file(tmp_path, bad, workers):
    write_data(tmp_path)
    message = bad(tmp_path)
    kept = tmp_path / "out" / "mask_rcnn" / "model_final.pdparams"
    kept.parent.mkdir(parents=True)
    kept.touch()
    start = time.monotonic()
    config = write_config(tmp_path, "mask_rcnn", worker_num=workers)
    status, output = cyclemlp("det", "train", "-c", config, cwd=tmp_path)
    assert status == 1, output
    assert time.monotonic() - start < 60
    assert message in output.rpartition("cyclemlp det: error: ")[2]
    assert kept.is_file()
