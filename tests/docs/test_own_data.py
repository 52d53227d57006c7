"""docs/own-data-*.md: every command of the pages runs, in their order, on small data of one's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.adapters.tiny_seg import REPOSITORY
from tests.datasets.own_data import CLASSES, SIZE, scenes, write_labelme, write_voc


def run_page(name, folder):
    """What the page's commands print. Blocks of YAML are written to the files that their first lines name."""
    text = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)
    for language, body in blocks:
        if language == "yaml":
            (folder / body.split()[1]).write_text(body)
    write_labelme(folder / "photos", 16)
    write_voc(folder / "voc", 16)
    for index, scene in enumerate(scenes(16)):  # the classifier's, beside LabelMe's
        target = folder / "photos" / "train" / CLASSES[index % 2] / f"{index:02d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(target)
    (folder / "new_photos").mkdir()
    for index, scene in enumerate(scenes(2, "val")):
        Image.fromarray(scene.image).save(folder / "new_photos" / f"new{index}.jpg")
    script = "\n".join(
        [
            "set -euo pipefail",
            f'cyclemlp() {{ "{sys.executable}" -m cyclemlp_backbones "$@"; }}',
            *(body for language, body in blocks if language == "sh"),
        ]
    )
    search = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_page_of_segmentation(tmp_path):
    output = run_page("own-data-segmentation.md", tmp_path)
    assert "data/photos: 12 training and 4 held-out images, copied\nnum_classes: 3 (background, even, odd)" in output
    assert "data/voc: 13 training and 3 held-out images, copied\nnum_classes: 3 (background, even, odd)" in output
    assert "no fault found" in output
    assert len(re.findall(r"mIoU: \d", output)) >= 2
    check = json.loads((tmp_path / "check.json").read_text())
    assert [(split["samples"], split["width"], split["faults"]) for split in check] == [
        (12, [SIZE] * 3, []),
        (4, [SIZE] * 3, []),
    ]
    predicted = pictures(tmp_path / "output" / "predicted" / "added_prediction")
    assert {name: picture.shape for name, picture in predicted.items()} == {
        "new0.jpg": (SIZE, SIZE, 3),
        "new1.jpg": (SIZE, SIZE, 3),
    }
    masks = pictures(tmp_path / "results" / "masks")
    for name, classes in pictures(tmp_path / "output" / "predicted" / "pseudo_color_prediction").items():
        assert set(np.unique(masks[name])) <= {0, 1, 2}
        assert (masks[name] == classes).mean() > 0.99  # the exported model says the same


@pytest.mark.slow
def test_the_page_of_detection(tmp_path):
    output = run_page("own-data-detection.md", tmp_path)
    assert "data/voc: 12 training and 4 held-out images, copied\nnum_classes: 2 (even, odd)" in output
    assert output.count("no fault found") == 2
    assert len(re.findall(r"Average Precision .*IoU=0\.50:0\.95 \| area=   all", output)) >= 2
    boxes = [
        sum(row["boxes"] for row in split["classes"]) for split in json.loads((tmp_path / "check.json").read_text())
    ]
    assert sum(boxes) == sum(len(scene.digits) for scene in scenes(16))
    assert {*pictures(tmp_path / "output" / "drawn")} == {"new0.jpg", "new1.jpg"}
    assert {*pictures(tmp_path / "results" / "overlays")} == {"new0.jpg", "new1.jpg"}
    assert json.loads((tmp_path / "results" / "images.json").read_text())


@pytest.mark.slow
def test_the_page_of_classification(tmp_path):
    output = run_page("own-data-classification.md", tmp_path)
    assert "no fault found" in output
    check = json.loads((tmp_path / "check.json").read_text())
    assert [[row["images"] for row in split["classes"]] for split in check] == [[6, 6], [2, 2]]
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [run.get("steps", run.get("images")) for run in told] == [3, 4]
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["name", "new0.jpg", "new1.jpg"]
    named = (tmp_path / "results" / "results.csv").read_text().splitlines()
    assert {row.split(",")[3] for row in named[1:]} == set(CLASSES)
    assert {*pictures(tmp_path / "results" / "overlays")} == {"new0.jpg", "new1.jpg"}
