"""Mixed precision without a GPU: what is asked of Paddle, and where. Autocast itself did not run."""

import contextlib

import paddle
import pytest

from classification.config import AmpConfig
from classification.precision import Precision
from classification.trainer import Trainer
from tests.classification.tiny import tiny_config


@pytest.mark.parametrize(
    ("dtype", "level", "scaled", "half_weights"),
    [
        ("float16", "O1", True, False),
        ("float16", "O2", True, True),
        ("bfloat16", "O1", False, False),
        ("bfloat16", "O2", False, True),
        ("none", "O2", False, False),
    ],
)
def test_on_an_accelerator(dtype, level, scaled, half_weights, monkeypatch):
    asked = []
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: asked.append(options) or contextlib.nullcontext())
    monkeypatch.setattr(paddle.amp, "decorate", lambda *pair, **options: (pair, options))
    built = []
    monkeypatch.setattr("classification.precision.GradScaler", lambda **options: built.append(options))
    precision = Precision(AmpConfig(dtype=dtype, level=level, initial_scale=1024.0))
    (scaler,) = built
    assert scaler["enable"] is scaled  # bfloat16 has float32's range and needs none
    assert scaler["init_loss_scaling"] == 1024.0
    assert precision.half_weights is half_weights
    with precision.autocast():
        assert asked == ([] if dtype == "none" else [{"level": level, "dtype": dtype}])
    pair = ("model", "optimizer")
    expected = (pair, {"level": "O2", "dtype": dtype, "master_weight": True}) if half_weights else pair
    assert precision.decorate(*pair) == expected


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
    trainer._train_step([next(trainer._micro_batches())], 1e-3)
    assert events == ["in", "teacher", "student", "out", "losses"]
