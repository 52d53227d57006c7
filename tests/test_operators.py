"""The forms for a CPU equal the usual ones, in value and gradient."""

import numpy as np
import paddle
import pytest

from cyclemlp_backbones import operators
from cyclemlp_backbones.layers import Mlp

OPERATORS = {
    "add_to_rows": (operators.add_to_rows, [(2, 3, 5, 4), (4,)]),
    "linear": (operators.linear, [(2, 3, 5, 4), (4, 6), (6,)]),
    "linear of one row": (operators.linear, [(4,), (4, 6), (6,)]),
    "spatial_mean": (operators.spatial_mean, [(2, 3, 5, 4)]),
    "scale_channels": (operators.scale_channels, [(2, 3, 5, 4), (2, 4)]),
}


def value_and_gradients(operator, tensors):
    y = operator(*tensors)
    gradients = paddle.grad(y, tensors, grad_outputs=paddle.cos(paddle.arange(y.size, dtype=y.dtype)).reshape(y.shape))
    with paddle.no_grad():
        without_gradient = operator(*tensors)
    return [y.numpy(), without_gradient.numpy(), *(gradient.numpy() for gradient in gradients)]


@pytest.mark.parametrize("name", OPERATORS)
def test_cpu_form_equals_the_usual_one(name, monkeypatch):
    operator, shapes = OPERATORS[name]
    paddle.seed(0)
    tensors = [paddle.randn(shape, dtype="float64") for shape in shapes]
    for tensor in tensors:
        tensor.stop_gradient = False
    on_cpu = value_and_gradients(operator, tensors)
    monkeypatch.setattr(operators, "runs_on_cpu", lambda x: False)
    for actual, expected in zip(on_cpu, value_and_gradients(operator, tensors), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_other_types_take_the_usual_form(dtype):
    assert not operators.runs_on_cpu(paddle.zeros([2]).astype(dtype))


def test_autocast_does_not_change_the_cpu_forms():
    """Paddle's autocast does nothing on a CPU; if that changes, operands of two types would meet here."""
    mlp = Mlp(4, 8, 4)
    x = paddle.randn([3, 4])
    with paddle.amp.auto_cast(dtype="bfloat16", level="O1"):
        y = mlp(x)
    assert y.dtype == paddle.float32
    assert (y.numpy() == mlp(x).numpy()).all()


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 350])
def test_mlp_in_parts_equals_the_whole(rows, monkeypatch):
    monkeypatch.setattr("cyclemlp_backbones.layers._HIDDEN_ELEMENTS", 800)  # parts of 100 rows
    paddle.seed(0)
    mlp = Mlp(4, 8, 5).to(dtype="float64")
    x = paddle.randn([rows, 1, 4], dtype="float64")
    whole = mlp(x)
    with paddle.no_grad():
        in_parts = mlp(x)
    assert in_parts.shape == whole.shape == [rows, 1, 5]
    np.testing.assert_allclose(in_parts.numpy(), whole.numpy(), rtol=0, atol=1e-15)
