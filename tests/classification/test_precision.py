"""Mixed precision without a GPU: what is asked of Paddle, and where. Autocast itself did not run."""

import contextlib

import paddle
import pytest

from classification.config import AmpConfig
from classification.precision import Precision
from classification.trainer import Trainer
from tests.classification.tiny import tiny_config


@pytest.mark.parametrize(
    ("dtype", "level", "scale", "half_weights"),
    [
        ("float16", "O1", 65536.0, False),
        ("float16", "O2", 65536.0, True),
        ("bfloat16", "O1", 1.0, False),
        ("bfloat16", "O2", 1.0, True),
        ("none", "O2", 1.0, False),
    ],
)
def test_on_an_accelerator(dtype, level, scale, half_weights, monkeypatch):
    asked = []
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: asked.append(options) or contextlib.nullcontext())
    monkeypatch.setattr(paddle.amp, "decorate", lambda model, **options: ("decorated", options))
    precision = Precision(AmpConfig(dtype=dtype, level=level))
    assert precision.scaler.scale == scale  # bfloat16 has float32's range and needs none
    assert precision.half_weights is half_weights
    with precision.autocast():
        assert asked == ([] if dtype == "none" else [{"level": level, "dtype": dtype}])
    expected = ("decorated", {"level": "O2", "dtype": dtype}) if half_weights else "model"
    assert precision.decorate("model") == expected


def test_teacher_and_student_run_in_the_same_precision_and_the_losses_outside_of_it(digits, tmp_path, monkeypatch):
    weights = tmp_path / "teacher.pdparams"
    paddle.save(paddle.vision.models.shufflenet_v2_x0_25(num_classes=10).state_dict(), str(weights))
    teacher = {"distillation__teacher": "shufflenet_v2_x0_25", "distillation__teacher_weights": str(weights)}
    trainer = Trainer(tiny_config(digits, tmp_path / "run", distillation__type="soft", **teacher))
    events = []

    @contextlib.contextmanager
    def autocast():
        events.append("in")
        yield
        events.append("out")

    monkeypatch.setattr(trainer.precision, "autocast", autocast)
    trainer.teacher.model.register_forward_pre_hook(lambda *_: events.append("teacher"))
    trainer.model.register_forward_pre_hook(lambda *_: events.append("student"))
    loss = "classification.trainer.training_losses"
    from classification.losses import training_losses

    monkeypatch.setattr(loss, lambda *arguments: events.append("losses") or training_losses(*arguments))
    trainer.parallel.train()
    trainer._train_step([next(trainer._forwards())], 1e-3)
    assert events == ["in", "teacher", "student", "out", "losses"]
