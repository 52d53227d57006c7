"""Paddle operators in the form that its CPU kernels run fast; in their usual form everywhere else.

On a CPU, Paddle 2.6 to 3.3 adds or multiplies a row to every position, and sums its gradient over them, 10 to 30 times
slower than it combines tensors of equal shape. A product with a column of ones makes the shapes equal, and its gradient
is the sum, at a matrix product's speed.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.jit.sot import psdb


def in_dygraph() -> bool:
    """Whether operators run as they are called, so that sizes are numbers; False while `paddle.jit.to_static` records
    a graph, by either of its tracers."""
    return paddle.in_dynamic_mode() and not psdb.in_sot()


def runs_on_cpu(x: Tensor) -> bool:
    """Whether the CPU's forms are for `x`: it lies on the CPU, is no graph's symbol and in full precision."""
    return in_dygraph() and x.dtype in (paddle.float32, paddle.float64) and x.place.is_cpu_place()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether an operation on `tensors` is recorded for a backward pass."""
    return paddle.is_grad_enabled() and any(tensor is not None and not tensor.stop_gradient for tensor in tensors)


def reshape_positions(x: Tensor, like: Tensor) -> Tensor:
    """`x`, its positions flattened, [..., C], back at the positions of `like` [N, H, W, any]: [N, H, W, C]."""
    if in_dygraph():
        return x.reshape([*like.shape[:-1], x.shape[-1]])
    sizes = paddle.shape(like)  # an exported graph leaves them open
    return x.reshape([*(sizes[axis] for axis in range(len(like.shape) - 1)), x.shape[-1]])


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """[..., 1, C] -> [..., count, C], every row the same."""
    return paddle.matmul(paddle.ones([count, 1], dtype=rows.dtype), rows)


def add_to_rows(x: Tensor, row: Tensor) -> Tensor:
    """`x` [..., C] plus `row` [C] at every position; on a CPU, its gradient is fast too."""
    if not runs_on_cpu(x):
        return x + row
    return x + repeat_rows(row.unsqueeze(0), math.prod(x.shape[:-1])).reshape(x.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., C_in] times `weight` [C_in, C_out], plus `bias` [C_out] or None: [..., C_out]."""
    if bias is None or not runs_on_cpu(x):
        return F.linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        return add_to_rows(paddle.matmul(x, weight), bias)
    y = paddle.addmm(bias, x.reshape([-1, x.shape[-1]]), weight)
    return y.reshape([*x.shape[:-1], weight.shape[1]])


def spatial_mean(x: Tensor) -> Tensor:
    """Mean over the positions: [N, H, W, C] -> [N, C]."""
    if not runs_on_cpu(x):
        return x.mean([1, 2])
    batch, height, width, channels = x.shape
    weights = paddle.full([1, height * width], 1 / (height * width), dtype=x.dtype)
    return paddle.matmul(weights, x.reshape([batch, height * width, channels])).squeeze(1)


def scale_channels(x: Tensor, factors: Tensor) -> Tensor:
    """`x` [N, H, W, C] times `factors` [N, C], the same at every position."""
    if not runs_on_cpu(x):
        return x * factors.unsqueeze([1, 2])
    batch, height, width, channels = x.shape
    return x * repeat_rows(factors.unsqueeze(1), height * width).reshape([batch, height, width, channels])
