import numpy as np
import paddle
import pytest
from paddle import nn

from classification.config import OptimizerConfig
from classification.ema import WeightAverage, weights_replaced
from classification.optim import LossScaler, build_optimizer, no_decay_names, take_step
from cyclemlp_backbones import build_classifier


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
    take_step(optimizer, model.parameters(), LossScaler(enabled=False), clip_norm=None)
    for name, parameter in model.named_parameters():
        expected = 1.0 if name in no_decay_names(model) else 0.95
        assert np.abs(parameter.numpy() - expected).max() < 1e-6, name


def test_layer_wise_decay_scales_the_steps():
    model = build_classifier("b0", num_classes=10)
    before = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.0, layer_decay=0.5))
    optimizer.set_lr(0.1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    take_step(optimizer, model.parameters(), LossScaler(enabled=False), clip_norm=None)
    steps = {name: float((before[name] - parameter.numpy()).mean()) for name, parameter in model.named_parameters()}
    assert steps["head.weight"] == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the rate
    assert steps["network.6.1.mlp.fc1.weight"] == pytest.approx(0.05, rel=1e-3)
    assert steps["network.0.0.mlp.fc1.weight"] == pytest.approx(0.1 / 2**8, rel=1e-3)
    assert steps["patch_embed.proj.weight"] == pytest.approx(0.1 / 2**9, rel=1e-3)


def toy(values=(3.0, 4.0)):
    layer = nn.Linear(2, 1, bias_attr=False)
    layer.weight.set_value(paddle.zeros([2, 1]))
    optimizer = paddle.optimizer.SGD(1.0, parameters=layer.parameters())
    slope = paddle.to_tensor(values).reshape([2, 1])
    return layer, optimizer, lambda scale=1.0: ((layer.weight * slope).sum() * scale).backward()


@pytest.mark.parametrize(("clip", "step"), [(None, 1.0), (10.0, 1.0), (2.5, 0.5)])
def test_clipping_is_by_the_global_norm_of_unscaled_gradients(clip, step):
    layer, optimizer, backward = toy()
    scaler = LossScaler(1024.0)
    backward(scaler.scale)
    report = take_step(optimizer, layer.parameters(), scaler, clip_norm=clip)
    assert report.norm == pytest.approx(5.0)
    assert report.taken
    assert layer.weight.numpy().ravel() == pytest.approx([-3 * step, -4 * step])
    assert layer.weight.grad is None or not layer.weight.grad.numpy().any()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_the_scaler_skips_infinite_gradients_and_halves_its_scale(value):
    layer, optimizer, backward = toy((1.0, value))
    scaler = LossScaler(1024.0, interval=2)
    backward()
    report = take_step(optimizer, layer.parameters(), scaler, clip_norm=1.0)
    assert not report.taken
    assert scaler.scale == 512
    assert not layer.weight.numpy().any()
    good, optimizer, backward = toy()
    for expected in (512, 1024, 1024, 2048):  # doubled after two good steps
        backward(scaler.scale)
        take_step(optimizer, good.parameters(), scaler, clip_norm=None)
        assert scaler.scale == expected
    assert good.weight.numpy().ravel() == pytest.approx([-12, -16])
    saved = scaler.state()
    scaler.update(True)
    fresh = LossScaler(1.0, interval=2)
    fresh.load({**saved, "good_steps": 1})
    fresh.update(True)
    assert fresh.scale == 4096
    disabled = LossScaler(1024.0, enabled=False)
    disabled.update(False)
    assert disabled.scale == 1


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_unscaled_in_float32(dtype):
    layer = nn.Linear(2, 1, bias_attr=False)
    layer.to(dtype=dtype)
    taken = []

    class Recorder:
        def step(self):
            taken.append(layer.weight.grad.numpy().copy())

        def clear_grad(self, set_to_zero=True):
            layer.weight.clear_gradient(set_to_zero)

    scaler = LossScaler(65536.0)
    for _ in range(2):  # a float32 zero left behind would not take the next half-precision gradient
        (layer.weight.astype("float32").sum() * (1e-9 * scaler.scale)).backward()
        report = take_step(Recorder(), layer.parameters(), scaler, clip_norm=None)
        assert report.norm == pytest.approx(2**0.5 * 1e-9, rel=1e-2)
    assert [gradient.dtype for gradient in taken] == [np.float32] * 2
    assert taken[1] == pytest.approx(1e-9, rel=1e-2)  # float16 ends at 6e-8
