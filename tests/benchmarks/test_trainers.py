"""The toolkits' trainers are watched step by step; the document shows the stored figures."""

from __future__ import annotations

import paddle
import pytest
import yaml

from benchmarks import toolkits, trainers
from benchmarks.toolkits import PARTS, RESNET, Run, Steps, observed

MACHINE = {"processor": "p", "threads": "2", "date": "d", "commit": "c"}


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(toolkits.time, "perf_counter", lambda: now[0])

    def taking(seconds, inner=lambda *_: None):
        def call(*arguments):
            now[0] += seconds
            inner(*arguments)

        return call

    return taking


def test_a_part_within_another_counts_once_and_the_rest_is_between_them(clock):
    steps, loss = Steps(), paddle.to_tensor(2.5)

    class Model:
        backbone = object()

    head_loss = steps.timed("loss", clock(4.0))
    backbone = steps.layer(clock(16.0))

    def forward(model):
        backbone(model.backbone)
        steps.layer(clock(1.0))(object())  # a layer of the heads
        head_loss()

    model, criterion = Model(), object()
    for _ in range(2):
        steps.timed("data", clock(2.0))()
        steps.layer(clock(8.0, forward))(model)
        steps.layer(clock(0.5))(criterion)
        steps.timed("backward", clock(32.0))(loss)
        steps.timed("optimizer", clock(3.0))()
        clock(64.0)()
    steps.timed("data", clock(2.0))()  # the end of the epoch closes the step before it
    expected = {
        "data": 2.0,
        "backbone": 16.0,
        "heads": 9.0,
        "loss": 4.5,
        "backward": 32.0,
        "optimizer": 3.0,
        "rest": 64.0,
    }
    assert [{part: step[part] for part in PARTS} for step in steps.parts] == [expected, expected]
    assert all(0 <= step["system"] <= step["processor"] for step in steps.parts)
    assert steps.losses == [2.5, 2.5]
    assert steps.scale is None


def test_watching_ends_with_the_context():
    before = paddle.nn.Layer.__call__, paddle.Tensor.backward, paddle.amp.GradScaler.__init__
    with observed() as steps:
        assert paddle.nn.Layer.__call__ is not before[0]
        weight = paddle.ones([2])
        weight.stop_gradient = False
        scaler = paddle.amp.GradScaler(enable=False)
        (3 * weight).sum().backward()
    assert (paddle.nn.Layer.__call__, paddle.Tensor.backward, paddle.amp.GradScaler.__init__) == before
    assert steps.losses == [6.0]
    assert steps.scalers == [scaler]


@pytest.mark.parametrize("head", toolkits.SHIPPED)
def test_only_data_crops_backbone_and_length_differ_from_the_shipped_configuration(head, tmp_path):
    run = Run(head, RESNET, steps=9, batch=2, crop=96, images=4, regions=16)
    text = toolkits.write_config(run, tmp_path / "data", tmp_path).read_text()
    config = yaml.safe_load(text)
    assert "[96, 96]" in str(config)
    assert "ResNet" in text
    keys = set(config) - {"_base_", "_BASE_"}
    if run.segments:
        assert keys == {"train_dataset", "val_dataset", "model", "batch_size", "iters"}
        return
    assert config["epoch"] == 5  # two steps an epoch
    runtime = {"use_gpu", "worker_num", "log_iter", "epoch", "snapshot_epoch", "save_dir", "LearningRate"}
    model = {"retinanet": {"RetinaNet"}, "mask_rcnn": {"MaskRCNN", "BBoxAssigner", "RPNHead"}}[head]
    assert keys == {"num_classes", "TrainDataset", "TrainReader", "ResNet"} | runtime | model


@pytest.mark.slow
@pytest.mark.parametrize(("head", "backbone"), [("semantic_fpn", "b0"), ("retinanet", RESNET)])
def test_a_trainer_in_a_process_of_its_own_tells_every_part_of_a_step(head, backbone, tmp_path):
    found = trainers.measure_apart(Run(head, backbone, steps=5, crop=64), tmp_path)
    parts = {part: found[part] for part in PARTS}
    assert min(parts[part] for part in ("backbone", "heads", "loss", "backward", "optimizer")) > 0
    assert found["reading"] > 0
    assert found["processor"] > found["system"] >= 0  # counted in ticks of 10 ms, more than a small step's
    assert found["step"] > max(parts.values())


def test_a_trainer_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)'no_such_head'.*status 1.*KeyError"):
        trainers.measure_apart(Run("no_such_head", "b0", steps=5, crop=64), tmp_path)


def test_the_table_has_speeds_their_ratio_and_the_parts():
    cell = {"step": 1000.0, **dict.fromkeys(PARTS, 100.0), "processor": 1600.0, "system": 30.0, "reading": 7.0}
    rows = {"retinanet": {"b1": cell, RESNET: {**cell, "step": 2000.0, "processor": 2000.0}}}
    run = {"machine": MACHINE, "rounds": 3, "crop": 512, "batch": 2, "steps": 6, "rows": rows}
    text = trainers.render(run)
    assert "| RetinaNet, PaddleDetection | 2.00 | 1.00 | **0.50** | 0.80 |" in text
    assert "| retinanet, ResNet-50 | 2000 | 100 | 100 | 100 | 100 | 100 | 100 | 100 | 2000 | 30 | 7 |" in text


def test_the_document_shows_the_stored_figures():
    assert trainers.PART.read(trainers.DOCUMENT) == trainers.tables()
