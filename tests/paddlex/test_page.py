"""docs/paddlex.md: its blocks, run in a shell in their order, and what PaddleX predicts with what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.adapters.tiny_seg import REPOSITORY, cyclemlp

CHECKOUTS = Path(os.environ["CYCLEMLP_TOOLKITS"]).resolve()
TOOLKITS = ("PaddleSeg", "PaddleDetection")
DET, MASK = "FasterRCNN-ResNet50-FPN", "MaskRCNN-ResNet50-FPN"
LEAST = 0.06
UNSURE = {
    "seg": ("best_model/model", "head.conv_seg.bias", 0, -1.5),
    "det": ("model_final/model_final", "head.retina_cls.bias", slice(None), 4),
    "mask": ("model_final/model_final", "bbox_head.bbox_score.bias", -1, -5),
}
"""After a few steps each finds only background: where its weights are, the bias that says so, and what changes that."""
NORMALIZE = {"NormalizeImage": {"is_scale": True, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
PREDICT = """
import sys
import numpy as np, paddlex
name, folder, target, *images = sys.argv[1:]
model = paddlex.create_model(name, model_dir=folder)
found = {}
for index, result in enumerate(model.predict(images, **({} if name == "MaskFormer_tiny" else {"threshold": 0.06}))):
    if "pred" in result:
        found[f"pred{index}"] = result["pred"][0]
    else:
        rows = [[box["cls_id"], box["score"], *box["coordinate"]] for box in result["boxes"]]
        found[f"boxes{index}"] = np.array(rows, "float64").reshape([-1, 6])
        found[f"masks{index}"] = np.array([mask.sum() for mask in result.get("masks", [])])
np.savez(target, **found)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A folder in which the page was followed; the checkouts lie in it, and `cyclemlp` is this checkout's."""
    folder = tmp_path_factory.mktemp("page")
    for toolkit in TOOLKITS:
        (folder / toolkit).symlink_to(CHECKOUTS / f"{toolkit}-develop")
    (folder / "bin").mkdir()
    for name, module in (("cyclemlp", " -m cyclemlp_backbones"), ("python", "")):
        path = f'PYTHONPATH="{REPOSITORY}:$PYTHONPATH" ' if module else ""
        (folder / "bin" / name).write_text(f'#!/bin/sh\n{path}exec "{sys.executable}"{module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    script = ["set -e"]
    for block in re.findall(r"^```\n(.*?)^```$", (REPOSITORY / "docs/paddlex.md").read_text(), re.M | re.S):
        if name := re.match(r"# (\w+\.\w+)\n", block):
            (folder / name[1]).write_text(block)
        else:
            script.append(block)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    (folder / "page.sh").write_text("\n".join(script))
    with (folder / "log").open("w") as log:
        run = subprocess.run(["bash", "page.sh"], cwd=folder, env=environment, stdout=log, stderr=log, timeout=1200)
    assert run.returncode == 0, (folder / "log").read_text()[-6000:]
    return folder


@pytest.fixture(scope="module")
def images(page):
    """96 x 96, 160 x 96 and 90 x 60 pixels."""
    scene = Image.open(page / "data/det/images/000000.png").convert("RGB")
    wide = Image.new("RGB", (160, 96))
    wide.paste(scene, (0, 0))
    wide.paste(Image.open(page / "data/seg/images/val/000000.png").convert("RGB"), (96, 16))
    (page / "photos").mkdir()
    for name, picture in (("0", scene), ("1", wide), ("2", wide.crop((10, 10, 100, 70)))):
        picture.save(page / "photos" / f"{name}.png")
    return [page / "photos" / f"{number}.png" for number in range(3)]


def paddlex(name, model, images):
    """What PaddleX finds in the images, in a process that knows nothing of this package."""
    target = model.parent / f"{model.name}.npz"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", PREDICT, name, str(model), str(target), *map(str, images)]
    run = subprocess.run(command, cwd=model, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(target) as found:
        return dict(found)


def confident(page, kind):
    """The weights that the page left, made to find something."""
    trained, bias, entries, change = UNSURE[kind]
    state = paddle.load(str(page / f"output/{kind}/{trained}.pdparams"))
    state[bias][entries] += change
    paddle.save(state, str(page / f"{kind}.pdparams"))
    return page / f"{kind}.pdparams"


def exported_by_checkout(page, kind, config):
    """What `cyclemlp paddlex` exports of them."""
    out = page / "models" / f"{kind}-checkout"
    changes = {"Global.mode": "export", "Global.output": out, "Export.basic_config_path": config}
    changes["Export.weight_path"] = page / f"{kind}.pdparams"
    words = (word for key, value in changes.items() for word in ("-o", f"{key}={value}"))
    command(page, "paddlex", "-c", page / f"{kind}.yaml", *words)
    return out


def command(page, *arguments):
    checkouts = [str(page / toolkit) for toolkit in TOOLKITS]
    paths = {f"PADDLE_PDX_{toolkit.upper()}_PATH": path for toolkit, path in zip(TOOLKITS, checkouts)}
    run = cyclemlp(*arguments, cwd=page, PYTHONPATH=os.pathsep.join([str(REPOSITORY), *checkouts]), **paths)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def export(page, task, checkpoint, config):
    """The model in both formats: as `cyclemlp predict` runs it, and as PaddleX does."""
    models = [page / "models" / f"{config.stem}-{format}" for format in ("paddle", "paddlex")]
    for model, format in zip(models, ("paddle", "paddlex")):
        command(page, "export", checkpoint, model, "--task", task, "--config", config, "--format", format)
    return models


def test_the_page_leaves_metrics_exports_and_results(page):
    assert version("paddlex") == "3.7.2"
    for kind, metric in (("seg", "mIoU"), ("det", "AP")):
        result = json.loads((page / f"output/{kind}/evaluate_result.json").read_text())
        assert result["done_flag"] is True
        assert 0 <= result["metrics"][metric] <= 1
    assert "boxes" in json.loads((page / "results/000000_res.json").read_text())


def test_segments_as_predict_and_as_the_checkouts_export(page, images):
    config = page / "output/seg/config.yaml"
    model, for_paddlex = export(page, "seg", confident(page, "seg"), config)
    command(page, "predict", model, *images, "--out", page / "results/seg", "--no-pictures")
    found = paddlex("MaskFormer_tiny", for_paddlex, images)
    exported = paddlex("MaskFormer_tiny", exported_by_checkout(page, "seg", config) / "inference", images)
    for index in range(3):
        mask = np.asarray(Image.open(page / f"results/seg/masks/{index}.png"))
        np.testing.assert_array_equal(found[f"pred{index}"], mask)
        np.testing.assert_array_equal(exported[f"pred{index}"], mask)
        assert len(np.unique(mask)) > 1


def test_resizes_as_paddleseg(page, images):
    resize = {"type": "Resize", "target_size": [128, 96], "keep_ratio": True}
    config = page / "resized.yml"
    settings = {"_base_": "output/seg/config.yaml", "val_dataset": {"transforms": [resize, {"type": "Normalize"}]}}
    config.write_text(yaml.safe_dump(settings))
    model, for_paddlex = export(page, "seg", confident(page, "seg"), config)
    found = paddlex("MaskFormer_tiny", for_paddlex, images[1:2])["pred0"]
    resized = cv2.resize(cv2.imread(str(images[1]))[..., ::-1], (128, 77))
    array = (resized.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5
    (logits,) = DeployedModel(model).run({"image": array.astype("float32")})
    expected = cv2.resize(logits[0].argmax(0).astype("int32"), (160, 96), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("kind", "name"), [("det", DET), ("mask", MASK)])
def test_detects_as_predict_and_as_the_checkouts_export(page, images, kind, name):
    resize = {"Resize": {"target_size": [96, 160], "keep_ratio": True, "interp": 1}}  # leaves two of the images
    steps = [{"Decode": {}}, resize, NORMALIZE, {"Permute": {}}]
    config = page / f"resized_{kind}.yml"
    base = str(page / f"output/{kind}/config.yaml")
    config.write_text(yaml.safe_dump({"_BASE_": [base], "TestReader": {"sample_transforms": steps}}))

    model, for_paddlex = export(page, "det", confident(page, kind), config)
    command(
        page, "predict", model, *images, "--out", page / "results" / kind, "--no-pictures", "--score-threshold", LEAST
    )
    detections = json.loads((page / "results" / kind / "detections.json").read_text())
    found = paddlex(name, for_paddlex, images)
    exported = paddlex(name, exported_by_checkout(page, kind, config), images)
    for index in range(3):
        boxes = found[f"boxes{index}"]
        np.testing.assert_allclose(boxes, exported[f"boxes{index}"], atol=1e-3)
        np.testing.assert_array_equal(found[f"masks{index}"], exported[f"masks{index}"])
        ours = [row(entry) for entry in detections if entry["image_id"] == index + 1]
        if index < 2:  # the third is resized, by OpenCV there and by Pillow here
            np.testing.assert_allclose(by_score(boxes), by_score(ours), atol=2e-3)
    assert sum(len(found[f"boxes{index}"]) for index in range(3)) > 5


def row(entry):
    """Class, score and corners of an entry in COCO's format."""
    x, y, width, height = entry["bbox"]
    return [entry["category_id"] - 1, entry["score"], x, y, x + width, y + height]


def by_score(rows):
    return sorted(np.asarray(rows).tolist(), key=lambda row: (-round(row[1], 4), row[0], round(row[2])))
