"""The detection demo's own rules: reading precisions, choosing the start, and its configurations."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from cyclemlp_backbones import build_classifier
from demo.det import SMOKE, Schedule, read_precisions, run, start_weights
from demo.det_picture import Found, draw_detections
from demo.steps import DemoFailure
from tests.adapters.tiny_det import in_process
from tests.adapters.tiny_seg import REPOSITORY

TABLE = """Evaluate annotation type *{kind}*
DONE (t=0.01s).
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {whole}
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = {half}
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.009
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = -1.000
"""


def test_precisions_are_read_per_kind():
    output = TABLE.format(kind="bbox", whole="0.249", half="0.471") + TABLE.format(
        kind="segm", whole="0.120", half="0.356"
    )
    assert read_precisions(output) == {"bbox": (0.249, 0.471), "segm": (0.12, 0.356)}
    assert read_precisions("nothing was found") == {}


def test_start_takes_an_earlier_demos_weights_of_the_same_variant_only(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.det.warm_up", lambda *arguments, **options: 0.5)
    classification, segmentation, student = tmp_path / "cls", tmp_path / "seg", tmp_path / "student.pdparams"

    def start(variant):
        return start_weights(variant, SMOKE, tmp_path, classification, segmentation, 0)

    own = (tmp_path / "classifier.pdparams", "a classification warm-up")
    assert start("b0") == own  # no demo has run
    for folder, result in ((classification, {"weights": str(student)}), (segmentation, {"variant": "b0"})):
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
    assert start("b0") == own  # figures, but no weights
    (segmentation / "model.pdparams").write_bytes(b"")
    assert start("b0") == (segmentation / "model.pdparams", "the segmentation demo")
    student.write_bytes(b"")
    assert start("b0") == (student, "the classification demo")
    assert start("b1") == own
    (classification / "result.json").write_text("{")  # an interrupted run
    assert start("b0") == (segmentation / "model.pdparams", "the segmentation demo")


def backbone_and_classes(path):
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    config = read_config(str(path), [])
    model = create(config.architecture)
    return type(model.backbone).__name__, [spec.channels for spec in model.backbone.out_shape], config.num_classes


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b0", "b1"])
@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_demo_configuration_builds(detector, variant):
    path = REPOSITORY / "det_configs" / "demo" / f"{detector}_cyclemlp_{variant}_digits.yml"
    assert path.read_text().startswith("# make demo-det")
    widths = {"b0": [32, 64, 160, 256], "b1": [64, 128, 320, 512]}[variant]
    expected = widths[1:] if detector == "retinanet" else widths
    assert in_process(backbone_and_classes, path) == ("CycleMLP", expected, 10)


@pytest.mark.slow
def test_run_leaves_figures_and_picture_and_fails_on_a_detector_that_learnt_too_little(tmp_path, monkeypatch, capsys):
    def no_warm_up(variant, phases, path, *, seed):
        paddle.seed(seed)
        paddle.save(build_classifier(variant, num_classes=10).state_dict(), str(path))
        return 0.1

    monkeypatch.setattr("demo.det.warm_up", no_warm_up)
    schedule = Schedule(train_scenes=16, val_scenes=6, size=64, warm_up=(), least_precision=1.1, epochs=1)
    with pytest.raises(DemoFailure, match=r"Mask R-CNN: AP50 of bbox is 0\.\d+, at least 1\.1 was expected; see .*log"):
        run("b0", schedule, ["mask_rcnn"], tmp_path, tmp_path / "no", tmp_path / "no", 0)
    assert Image.open(tmp_path / "mask_rcnn.png").size[0] > 1000
    figures = json.loads((tmp_path / "result.json").read_text())
    assert set(figures["mask_rcnn"]) == {"bbox_ap", "bbox_ap50", "segm_ap", "segm_ap50"}
    assert figures["start"] == "a classification warm-up"
    assert "eta: " in capsys.readouterr().out  # progress with the time that is left


def test_picture_has_each_box_in_its_classes_colour(tmp_path):
    scene = np.full((64, 64, 3), 40, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:30] = True
    truth, detection = Found(1, (10, 20, 20, 20), mask), Found(2, (30, 20, 20, 20), None, 0.9)
    draw_detections(tmp_path / "p.png", [scene], [[truth]], [[detection]], title="t", scenes_a_row=1)
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    middle = picture.shape[1] // 2
    reddish = (picture[..., 0] > picture[..., 1] + 60) & (picture[..., 2] < 100)
    greenish = (picture[..., 1] > picture[..., 0] + 60) & (picture[..., 1] > picture[..., 2] + 60)
    assert reddish[:, :middle].sum() > 1000  # box and mask of the 0
    assert greenish[:, middle:].sum() > 100  # box of the 1
    assert reddish[:, middle:].sum() == greenish[:, :middle].sum() == 0
    assert detection.label == "1 0.90"
    assert truth.label == "0"
