import math
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from classification.config import OptimizerConfig
from classification.ema import WeightAverage, weights_replaced
from classification.optim import build_optimizer, no_decay_names, take_step
from classification.precision import loss_scale, restore_scaler, scaler_state
from cyclemlp_backbones import build_classifier
from tests.classification.tiny import enabled_scaler

OFF = paddle.amp.GradScaler(enable=False)


def test_weight_decay_leaves_out_exactly_norms_and_biases():
    model = build_classifier("b0", num_classes=10)
    without = no_decay_names(model)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert without == {name for name, shape in shapes.items() if len(shape) == 1}
    assert {
        "norm.weight",
        "norm.bias",
        "head.bias",
        "network.0.0.norm1.weight",
        "network.0.0.attn.sfc_h.bias",
    } <= without
    assert {
        "head.weight",
        "patch_embed.proj.weight",
        "network.0.0.attn.sfc_h.weight",
        "network.1.proj.weight",
    }.isdisjoint(without)


def test_a_step_without_gradient_decays_only_what_should_decay():
    model = build_classifier("b0", num_classes=10)
    for parameter in model.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    optimizer.set_lr(0.1)
    (sum(parameter.sum() for parameter in model.parameters()) * 0.0).backward()
    take_step(optimizer, model.parameters(), OFF)
    for name, parameter in model.named_parameters():
        expected = 1.0 if name in no_decay_names(model) else 0.95
        assert np.abs(parameter.numpy() - expected).max() < 1e-6, name


def test_layer_wise_decay_scales_the_steps():
    model = build_classifier("b0", num_classes=10)
    before = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.0, layer_decay=0.5))
    optimizer.set_lr(0.1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    take_step(optimizer, model.parameters(), OFF)
    steps = {name: float((before[name] - parameter.numpy()).mean()) for name, parameter in model.named_parameters()}
    assert steps["head.weight"] == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the rate
    assert steps["network.6.1.mlp.fc1.weight"] == pytest.approx(0.05, rel=1e-3)
    assert steps["network.0.0.mlp.fc1.weight"] == pytest.approx(0.1 / 2**8, rel=1e-3)
    assert steps["patch_embed.proj.weight"] == pytest.approx(0.1 / 2**9, rel=1e-3)


def toy(values=(3.0, 4.0), clip_norm=None, rate=1.0):
    """A weight [2, 1] of zeros, AdamW or SGD over it, and a loss whose gradient is `values`."""
    layer = nn.Linear(2, 1, bias_attr=False)
    layer.weight.set_value(paddle.zeros([2, 1]))
    clip = None if clip_norm is None else nn.ClipGradByGlobalNorm(clip_norm)
    optimizer = paddle.optimizer.SGD(rate, parameters=layer.parameters(), grad_clip=clip)
    return layer, optimizer, lambda: (layer.weight * paddle.to_tensor(values).reshape([2, 1])).sum()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("clip", "step"), [(None, 1.0), (10.0, 1.0), (2.5, 0.5)])
def test_clipping_is_by_the_global_norm_of_unscaled_gradients(clip, step, scaled, monkeypatch):
    layer, optimizer, loss = toy(clip_norm=clip)
    scaler = enabled_scaler(monkeypatch, 1024.0) if scaled else OFF
    scaler.scale(loss()).backward()
    assert take_step(optimizer, layer.parameters(), scaler) == pytest.approx(5.0)
    assert layer.weight.numpy().ravel() == pytest.approx([-3 * step, -4 * step])
    assert layer.weight.grad is None or not layer.weight.grad.numpy().any()


def test_the_optimizer_is_built_with_the_configurations_clipping():
    model = build_classifier("b0", num_classes=10)
    assert build_optimizer(model, OptimizerConfig(clip_norm=0.7))._grad_clip.clip_norm == pytest.approx(0.7)
    assert build_optimizer(model, OptimizerConfig())._grad_clip is None


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_with_a_gradient_that_is_not_finite_is_not_taken(value, scaled, monkeypatch):
    model = build_classifier("b0", num_classes=10)
    before = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(clip_norm=1.0))  # AdamW: even without gradient it would decay
    scaler = enabled_scaler(monkeypatch, 1024.0) if scaled else OFF

    def total():
        return sum(parameter.sum() for parameter in model.parameters())

    scaler.scale(total() + model.head.weight.sum() * value).backward()
    assert take_step(optimizer, model.parameters(), scaler) == math.inf
    assert all(np.array_equal(before[name], parameter.numpy()) for name, parameter in model.named_parameters())
    assert loss_scale(scaler) == (512 if scaled else 1)
    scaler.scale(total()).backward()  # what was left behind would stay
    assert math.isfinite(take_step(optimizer, model.parameters(), scaler))
    assert all(np.isfinite(parameter.numpy()).all() for parameter in model.parameters())


def test_the_scale_halves_doubles_has_a_least_value_and_resumes(monkeypatch, capsys):
    layer, optimizer, loss = toy()
    scaler = enabled_scaler(monkeypatch, 512.0, interval=2)
    for expected in (512, 1024, 1024, 2048, 2048):  # doubled after two good steps
        scaler.scale(loss()).backward()
        take_step(optimizer, layer.parameters(), scaler)
        assert loss_scale(scaler) == expected
    assert layer.weight.numpy().ravel() == pytest.approx([-15, -20])
    assert scaler_state(scaler) == {"scale": 2048.0, "good_steps": 1}
    resumed = enabled_scaler(monkeypatch, 8.0, interval=2)
    restore_scaler(resumed, scaler_state(scaler))
    assert loss_scale(resumed) == 2048
    resumed.scale(loss()).backward()
    take_step(optimizer, layer.parameters(), resumed)
    assert scaler_state(resumed) == {"scale": 4096.0, "good_steps": 0}
    restore_scaler(resumed, {"scale": 2.0, "good_steps": 0})
    for expected in (1, 1):
        resumed.scale(loss() * np.inf).backward()
        take_step(optimizer, layer.parameters(), resumed)
        assert loss_scale(resumed) == expected
    assert scaler_state(OFF) == {}
    restore_scaler(OFF, scaler_state(scaler))
    assert loss_scale(OFF) == 1
    restore_scaler(scaler, {})  # of a run on a CPU
    assert loss_scale(scaler) == 2048
    assert capsys.readouterr().out == ""  # standard output is the report's


def test_the_average_equals_its_closed_form():
    layer = nn.Linear(1, 1, bias_attr=False)
    start = 3.0
    layer.weight.set_value(paddle.full([1, 1], start))
    average = WeightAverage(layer.state_dict(), 0.99996)
    values = [1.0, -2.0, 5.0, 4.0]
    for value in values:
        layer.weight.set_value(paddle.full([1, 1], value))
        average.update(layer.state_dict())
    decay = 0.99996
    closed = decay**4 * start + sum((1 - decay) * decay ** (3 - n) * value for n, value in enumerate(values))
    assert average.values["weight"].item() == pytest.approx(closed, abs=3e-7)
    assert average.values["weight"].item() != pytest.approx(start, abs=1e-5)
    with weights_replaced(layer, average.values):
        assert layer.weight.item() == average.values["weight"].item()
    assert layer.weight.item() == 4.0


def test_a_long_run_of_the_moving_average_takes_no_memory():
    """Every tensor that Paddle 3.3.1 makes by its constructor in Python leaves a block for good."""
    model = build_classifier("b0", num_classes=2)
    average, weights = WeightAverage(model.state_dict(), 0.99), model.state_dict()
    average.update(weights)
    before = sys.getallocatedblocks()
    for _ in range(20):
        average.update(weights)
    assert sys.getallocatedblocks() - before < len(weights)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_unscaled_in_float32(dtype, monkeypatch):
    layer = nn.Linear(2, 1, bias_attr=False)
    layer.to(dtype=dtype)
    taken = []

    class Recorder:
        _parameter_list = layer.parameters()

        def step(self):
            taken.append(layer.weight.grad.numpy().copy())

        def clear_grad(self, set_to_zero=True):
            layer.weight.clear_gradient(set_to_zero)

    scaler = enabled_scaler(monkeypatch, 65536.0)
    for _ in range(2):  # a float32 zero left behind would not take the next half-precision gradient
        for _ in range(2):  # micro-batches
            scaler.scale(layer.weight.astype("float32").sum() * 0.5e-9).backward()
        norm = take_step(Recorder(), layer.parameters(), scaler)
        assert norm == pytest.approx(2**0.5 * 1e-9, rel=1e-2)
    assert [gradient.dtype for gradient in taken] == [np.float32] * 2
    assert taken[1] == pytest.approx(1e-9, rel=1e-2)  # float16 ends at 6e-8
