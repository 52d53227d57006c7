"""The detection demo's own rules: reading precisions, choosing the start, and its configurations."""

from __future__ import annotations

import json

import pytest

from demo.det import SMOKE, read_precisions, start_weights
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

    from cyclemlp_backbones.adapters import paddledet  # noqa: F401
    from cyclemlp_backbones.adapters.paddledet_config import read_config

    config = read_config(str(path), [])
    model = create(config.architecture)
    return type(model.backbone).__name__, [spec.channels for spec in model.backbone.out_shape], config.num_classes


@pytest.mark.parametrize("variant", ["b0", "b1"])
@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_demo_configuration_builds(detector, variant):
    path = REPOSITORY / "det_configs" / "demo" / f"{detector}_cyclemlp_{variant}_digits.yml"
    assert path.read_text().startswith("# make demo-det")
    widths = {"b0": [32, 64, 160, 256], "b1": [64, 128, 320, 512]}[variant]
    expected = widths[1:] if detector == "retinanet" else widths
    assert in_process(backbone_and_classes, path) == ("CycleMLP", expected, 10)
