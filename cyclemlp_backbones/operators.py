"""Paddle operators in the form that its CPU kernels run fast; in their usual form everywhere else.

On a CPU, Paddle 2.6 to 3.3 adds or multiplies a row to every position, and sums its gradient over them, 10 to 30 times
slower than it combines tensors of equal shape. A product with a column of ones makes the shapes equal, and its gradient
is the sum, at a matrix product's speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import saved_tensors_hooks
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


REBUILDS = not paddle.__version__.startswith("2.")
"""Whether `rebuilt_in_backward` does anything: Paddle 2.6 takes the memory away from tensors that hooks hand back, be
they parameters."""


def rebuilt_in_backward(x: Tensor, rebuild: Callable[[], Tensor]) -> AbstractContextManager:
    """Operations inside keep nothing of `x` for their backward pass, which calls `rebuild` for an equal tensor instead.

    For what is cheap to compute again from tensors that are kept anyway. `x` is one that `runs_on_cpu`. Where a caller
    has hooks of its own for what is kept, as Paddle's `recompute` has, it does nothing; nor does it on Paddle 2.
    """
    return _Rebuilding(x, rebuild) if REBUILDS and wants_gradient(x) else nullcontext()


class _Rebuilding:
    def __init__(self, x: Tensor, rebuild: Callable[[], Tensor]):
        address = x.data_ptr()

        @paddle.no_grad()
        def unpack(kept: Tensor | None) -> Tensor:
            return rebuild() if kept is None else kept

        self._hooks = saved_tensors_hooks(lambda saved: None if saved.data_ptr() == address else saved, unpack)
        self._active = False

    def __enter__(self) -> None:
        try:
            self._hooks.__enter__()
        except ValueError:  # Paddle takes one pair at a time
            return
        self._active = True

    def __exit__(self, *error: object) -> None:
        if self._active:
            self._hooks.__exit__()


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
    return _scale_on_cpu(x, factors)


def _scale_on_cpu(x: Tensor, factors: Tensor) -> Tensor:
    shape, kept = list(x.shape), factors.detach()
    repeated = _repeat(factors, shape)
    with rebuilt_in_backward(repeated, lambda: _repeat(kept, shape)):
        y = x * repeated
    return y


def _repeat(rows: Tensor, shape: list[int]) -> Tensor:
    """`rows` [N, C] at every position: `shape`, [N, H, W, C]."""
    return repeat_rows(rows.unsqueeze(1), shape[1] * shape[2]).reshape(shape)
