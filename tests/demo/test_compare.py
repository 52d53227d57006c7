"""The comparison of backbones: choosing and timing steps, equal configurations, the table, and a short run."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from demo.compare import (
    RESNET,
    SMOKE,
    Row,
    chosen_steps,
    main,
    read_metrics,
    render,
    step_seconds,
    train,
    write_config,
)
from demo.steps import DemoFailure
from tests.adapters.tiny_det import in_process
from tests.adapters.tiny_seg import REPOSITORY


def test_steps_fill_the_time_and_are_all_timed():
    assert chosen_steps(120, 0.5) == 241
    assert chosen_steps(120, 0.51) == 236
    assert chosen_steps(1, 5) == 6  # at least one mean time besides the first step's
    assert all(chosen_steps(100, cost) % 5 == 1 for cost in (0.1, 0.37, 2.2, 60))


def test_seconds_are_those_of_every_step():
    detection = "".join(f"Epoch: [0] [{step:3d}/11] loss: 1 batch_cost: {cost} data_cost: 9\n" for step, cost in
                        ((0, 2.0), (5, 0.5), (10, 0.25)))  # fmt: skip
    assert step_seconds(detection) == [2.0] + [0.5] * 5 + [0.25] * 5
    segmentation = "iter: 5/11, batch_cost: 0.5000, reader\niter: 10/11, batch_cost: 0.2500, reader\n"
    assert step_seconds(segmentation) == [0.5] * 5 + [0.25] * 5
    with pytest.raises(DemoFailure, match="no batch_cost"):
        step_seconds("nothing")


def test_a_detector_that_finds_nothing_has_precision_0():
    assert read_metrics("mask_rcnn", "no table") == {"bbox": 0.0, "segm": 0.0}


def built(head, path):
    """Names and sizes of the backbone's and of all other parameters."""
    import cyclemlp_backbones

    assert cyclemlp_backbones  # before the toolkits: it knows the order of imports
    if head == "semantic_fpn":
        from paddleseg.cvlibs import Config, SegBuilder

        from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

        register_paddleseg(repair=True)
        model = SegBuilder(Config(str(path))).model
    else:
        from ppdet.core.workspace import create

        from cyclemlp_backbones.adapters.paddledet import register_paddledet
        from cyclemlp_backbones.adapters.paddledet.launch import read_config

        register_paddledet(repair=True)

        model = create(read_config(str(path), []).architecture)
    names = {name: list(value.shape) for name, value in model.named_parameters() if not value.stop_gradient}
    backbone = {name: shape for name, shape in names.items() if name.startswith("backbone.")}
    return type(model.backbone).__name__, backbone, {name: names[name] for name in names if name not in backbone}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet", "mask_rcnn"])
def test_backbones_differ_and_nothing_else(head, tmp_path):
    ours, theirs = (in_process(built, head, write_config(head, backbone, tmp_path)) for backbone in ("b1", RESNET))
    assert "Cycle" in ours[0]
    assert "ResNet" in theirs[0]
    convolutions = 55 if head == "semantic_fpn" else 53  # the vd form's stem has two more
    assert len(theirs[1]) == 3 * convolutions  # with scale and shift of their norms: none is frozen
    differing = {name for name in {*ours[2], *theirs[2]} if ours[2].get(name) != theirs[2].get(name)}
    # The convolutions that read the backbone's maps have their channels.
    assert all(re.search(r"fpn_inner|fpn_6|lateral", name) for name in differing), differing
    settings = [yaml.safe_load((tmp_path / f"{head}_{backbone}.yml").read_text()) for backbone in ("b1", RESNET)]
    assert {key for one in settings for key in one} <= {"_base_", "_BASE_", "model", "RetinaNet", "MaskRCNN", "ResNet"}


def test_table_names_each_backbone_and_leaves_out_what_a_head_has_not():
    rows = [
        Row("mask_rcnn", "b1", 14_000_000, 101, 1616, 119.6, {"bbox": 0.5, "segm": 0.25}),
        Row("semantic_fpn", RESNET, 24_180_651, 51, 816, 120.4, {"miou": 0.1}),
    ]
    assert render(rows).splitlines()[2:] == [
        "| Mask R-CNN | CycleMLP-B1 | 14.00 M | 101 | 1616 | 120 | 0.500 | 0.250 |  |",
        "| Semantic FPN | ResNet-50-vd (PaddleSeg) | 24.18 M | 51 | 816 | 120 |  |  | 0.100 |",
    ]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_time_that_is_none_is_refused(monkeypatch, capsys, tmp_path, seconds):
    monkeypatch.setattr("sys.argv", ["compare.py", "--seconds", seconds, "--out", str(tmp_path)])
    assert main() == 1
    assert "it takes a number from 1 to 86400" in capsys.readouterr().err


def test_what_evaluation_finds_goes_to_the_folder_of_results(monkeypatch, tmp_path):
    """PaddleDetection writes bbox.json and mask.json, if it finds anything, into the current folder by itself."""
    called = []
    monkeypatch.setattr("demo.compare.run_command", lambda arguments, *_, **__: called.append(arguments) or "")
    train("mask_rcnn", "b0", 10, SMOKE, tmp_path, tmp_path, evaluate=True)
    assert f"output_eval={tmp_path}" in called[0][called[0].index("-o") :]


@pytest.mark.slow
def test_smoke_run_trains_both_backbones_for_the_steps_that_it_states(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["compare.py", "--smoke", "--heads", "retinanet", "--variant", "b0", "--out", str(tmp_path)]
    )
    before = {*REPOSITORY.iterdir()}
    assert main() == 0
    assert {path.name for path in {*REPOSITORY.iterdir()} - before} <= {"output"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["backbone"] for row in result["rows"]] == ["b0", RESNET]
    ours, theirs = result["rows"]
    assert 3e6 < ours["parameters"] < 4e6
    assert 24e6 < theirs["parameters"] < 26e6
    for row in result["rows"]:
        log = (tmp_path / f"retinanet_{row['backbone']}.log").read_text()
        assert f"Epoch: [0] [{row['steps'] - 1:3d}/{row['steps']}]".replace(" ", "") in log.replace(" ", "")
        assert row["scenes"] == row["steps"] * SMOKE.batch_size
        assert row["seconds"] > 0
        assert 0 <= row["metrics"]["bbox"] <= 1
    assert (tmp_path / "result.md").read_text().count("\n") == 4
