"""All that exists for the speed of a CPU. Without this file, and the line of `CycleNet` that calls it, all works alike.

`accelerate` gives the network's layers subclasses that compute the same in the forms that Paddle's CPU kernels run
fast, and hand over to the plain form whenever `_runs_here` says no: on another device, in half precision, in a graph.

On a CPU, Paddle 2.6 to 3.3 adds or multiplies a row to every position, and sums its gradient over them, 10 to 30 times
slower than it combines tensors of equal shape. A product with a column of ones makes the shapes equal, and its gradient
is the sum, at a matrix product's speed. Slices are lazy views that are slow to copy and to differentiate; crop is a
real kernel. Nothing that depends on a weight is kept from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer, saved_tensors_hooks
from paddle.jit.sot import psdb

from cyclemlp_backbones import compiled
from cyclemlp_backbones.cyclenet import CycleFC, CycleMixer, Mlp, with_zeros

REBUILDS = not paddle.__version__.startswith("2.")
"""Whether `_rebuilt` does anything: Paddle 2.6 takes the memory away from tensors that hooks hand back, be they
parameters."""

_HIDDEN_ELEMENTS = 2**18  # 1 MiB in single precision

_Layer = TypeVar("_Layer", bound=nn.Layer)


def accelerate(layer: _Layer) -> _Layer:
    """Gives `layer`, and all in it, the fast forms of their kind; parameters, names and results stay. Returns it."""
    for part in layer.sublayers(include_self=True):
        part.__class__ = _FAST.get(type(part), type(part))
    return layer


def _runs_here(x: Tensor) -> bool:
    """Whether the fast forms are for `x`: on the CPU, in full precision, not empty, and no symbol of a graph."""
    if not paddle.in_dynamic_mode() or psdb.in_sot():
        return False
    return x.dtype in (paddle.float32, paddle.float64) and x.place.is_cpu_place() and 0 not in x.shape


def _wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether an operation on `tensors` is recorded for a backward pass."""
    return paddle.is_grad_enabled() and any(tensor is not None and not tensor.stop_gradient for tensor in tensors)


class _Rebuilding:
    def __init__(self, x: Tensor, rebuild: Callable[[], Tensor]):
        self._alive = alive = [x]  # for as long as its address is compared; no cycle with the hooks, which keep tensors

        def pack(saved: Tensor) -> Tensor | None:
            return None if is_same(saved, *alive) else saved

        @paddle.no_grad()
        def unpack(kept: Tensor | None) -> Tensor:
            return rebuild() if kept is None else kept

        self._hooks = saved_tensors_hooks(pack, unpack)
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
        self._alive.clear()


def is_same(saved: Tensor, x: Tensor) -> bool:
    """Same memory, read in the same way, and so the same values: no view of another shape, order or type."""
    one, other = ((y.data_ptr(), y.shape, y.strides, y.dtype) for y in (saved, x))
    return one == other


def rebuilt_in_backward(x: Tensor, rebuild: Callable[[], Tensor]) -> AbstractContextManager:
    """Operations inside keep nothing of `x` for their backward pass, which calls `rebuild` for an equal tensor instead.

    For what is cheap to compute again from tensors that are kept anyway. Where a caller has hooks of its own for what
    is kept, as Paddle's `recompute` has, it does nothing; nor does it on Paddle 2.
    """
    return _Rebuilding(x, rebuild) if REBUILDS and _wants_gradient(x) else nullcontext()


def _repeat_rows(rows: Tensor, count: int) -> Tensor:
    """[..., 1, C] -> [..., count, C], every row the same."""
    return paddle.matmul(paddle.ones([count, 1], dtype=rows.dtype), rows)


def _repeat(rows: Tensor, shape: list[int]) -> Tensor:
    """`rows` [N, C] at every position: `shape`, [N, H, W, C]."""
    return _repeat_rows(rows.unsqueeze(1), shape[1] * shape[2]).reshape(shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., C_in] times `weight` [C_in, C_out], plus `bias` [C_out] or None: [..., C_out]."""
    if bias is None:
        return paddle.matmul(x, weight)
    if _wants_gradient(x, weight, bias):
        return _add_bias(paddle.matmul(x, weight), bias)
    y = paddle.addmm(bias, x.reshape([-1, x.shape[-1]]), weight)
    return y.reshape([*x.shape[:-1], weight.shape[1]])


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + _repeat_rows(bias.unsqueeze(0), math.prod(x.shape[:-1])).reshape(x.shape)


def _mean(x: Tensor) -> Tensor:
    """Mean over the positions: [N, H, W, C] -> [N, C]."""
    batch, height, width, channels = x.shape
    weights = paddle.full([1, height * width], 1 / (height * width), dtype=x.dtype)
    return paddle.matmul(weights, x.reshape([batch, height * width, channels])).squeeze(1)


class FastLinear(nn.Linear):
    """nn.Linear, the bias added within the product or as a tensor of its shape."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias) if _runs_here(x) else nn.Linear.forward(self, x)


class FastMlp(Mlp):
    """Mlp over the rows. Backward computes the activated features again; where none is wanted, the rows go part by
    part, so that the hidden features stay in the processor's cache."""

    def forward(self, x: Tensor) -> Tensor:
        if not _runs_here(x):
            return Mlp.forward(self, x)
        rows = x.reshape([-1, x.shape[-1]])
        if _wants_gradient(x, *self.parameters()):
            hidden = self.fc1(rows)
            activated, kept = F.gelu(hidden), hidden.detach()
            with rebuilt_in_backward(activated, lambda: F.gelu(kept)):
                y = self.fc2(activated)
        else:
            step = max(1, _HIDDEN_ELEMENTS // self.fc1.weight.shape[1])
            parts = [self.fc2(F.gelu(self.fc1(rows[start : start + step]))) for start in range(0, rows.shape[0], step)]
            y = paddle.concat(parts) if len(parts) > 1 else parts[0]
        return y.reshape([*x.shape[:-1], y.shape[-1]])


def _shift(x: Tensor, layer: CycleFC) -> Tensor:
    """`CycleFC.shift`, but each group of offsets filled up to ceil(C / K) channels: [N, H, W, K * ceil(C / K)]."""
    length, axis = layer.length, layer.axis
    batch, height, width, channels = x.shape
    groups = -(-channels // length)
    padding = [0, 0, 0, 0, 0, 0, 0, groups * length - channels]
    padding[2 * axis : 2 * axis + 2] = length // 2, length - 1 - length // 2
    padded = F.pad(x, padding)
    padded = padded.reshape([*padded.shape[:3], groups, length])
    shifted = []
    for residue in range(length):
        start = [0, 0, 0, 0, residue]
        start[axis] = (residue + length // 2) % length  # K // 2 + the offset
        window = paddle.crop(padded, [batch, height, width, groups, 1], start)
        shifted.append(window.reshape([batch, height, width, groups]))
    return paddle.concat(shifted, axis=-1)


class _Shift(PyLayer):
    """`_shift` with a gradient of its own, which takes a third of the time of crop's and concat's.

    It has one tensor for input, since Paddle has `paddle.grad` fail at a PyLayer with a second one that was not asked
    for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: CycleFC) -> Tensor:
        ctx.layer = layer
        return _shift(x, layer)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        length, axis = ctx.layer.length, ctx.layer.axis
        batch, height, width, grouped_channels = gradient.shape
        groups = grouped_channels // length
        padding = [0] * 8
        padding[2 * axis : 2 * axis + 2] = length - 1 - length // 2, length // 2
        padded = F.pad(gradient, padding)
        windows = []
        for residue in range(length):
            start = [0, 0, 0, residue * groups]
            start[axis] = length - 1 - (residue + length // 2) % length
            windows.append(paddle.crop(padded, [batch, height, width, groups], start))
        return _in_natural_order(paddle.concat(windows, axis=-1), length, ctx.layer.in_channels)


def _in_natural_order(grouped: Tensor, length: int, channels: int) -> Tensor:
    """`_shift`'s channel order -> the natural one: [N, H, W, K * ceil(C / K)] -> [N, H, W, C]."""
    *positions, width = grouped.shape
    x = grouped.reshape([*positions, length, width // length]).transpose([0, 1, 2, 4, 3]).reshape([*positions, width])
    return x if width == channels else paddle.crop(x, [*positions, channels])


def _grouped(weight: Tensor, length: int) -> Tensor:
    """Weight [C_out, C_in] or [C_out, C_in, 1, 1] -> [K * ceil(C_in / K), C_out], its rows in `_shift`'s order."""
    out_channels, in_channels = weight.shape[:2]
    groups = -(-in_channels // length)
    weight = with_zeros(weight.reshape([out_channels, in_channels]), 1, 0, groups * length - in_channels)
    return weight.reshape([out_channels, groups, length]).transpose([2, 1, 0]).reshape([groups * length, out_channels])


class FastCycleFC(CycleFC):
    """CycleFC with the compiled shift where it was built; else with crop for slices, and on a small map the features,
    not the weight, brought into the other's order."""

    def forward(self, x: Tensor) -> Tensor:
        if not _runs_here(x) or len(x.shape) != 4 or x.shape[3] != self.in_channels:
            return CycleFC.forward(self, x)
        if self.length > 1 and compiled.available():
            read, weight = compiled.shift(x, self), self.weight.reshape(self.weight.shape[:2])
            if _wants_gradient(x, self.weight, self.bias):  # Paddle 2.6 has wrong second gradients of a transposed one
                return _add_bias(paddle.matmul(read, weight, transpose_y=True), self.bias)
            return _linear(read, weight.t(), self.bias)
        read = x
        if self.length > 1:
            read = _Shift.apply(x, self) if _wants_gradient(x) else _shift(x, self)
        if math.prod(x.shape) >= math.prod(self.weight.shape) or _wants_gradient(x, self.weight, self.bias):
            return _linear(read, _grouped(self.weight, self.length), self.bias)
        read = _in_natural_order(read, self.length, self.in_channels)
        return _add_bias(paddle.matmul(read, self.weight.reshape(self.weight.shape[:2]), transpose_y=True), self.bias)


def _scale(x: Tensor, gate: Tensor) -> Tensor:
    """`x` [N, H, W, C] times `gate` [N, C], whose repetition is not kept for backward."""
    kept = gate.detach()
    repeated = _repeat(gate, x.shape)
    with rebuilt_in_backward(repeated, lambda: _repeat(kept, x.shape)):
        return x * repeated


def _gated_sum(branches: list[Tensor], gates: list[Tensor]) -> Tensor:
    h, w, c = map(_scale, branches, gates)
    return h + w + c


class FastMixer(CycleMixer):
    """CycleMixer that keeps neither repeated gates nor the gated sum for backward. Where no gradient is wanted and the
    map is large, the three branches, gates and projection are one matrix per sample."""

    def forward(self, x: Tensor) -> Tensor:
        if self.reweight is None or not _runs_here(x):
            return CycleMixer.forward(self, x)
        if self._merging_pays(x):
            return self._merged(x)
        branches = [self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)]
        gates = self.gates(_mean(branches[0] + branches[1] + branches[2]))
        total = _gated_sum(branches, gates)
        kept, kept_gates = [branch.detach() for branch in branches], [gate.detach() for gate in gates]
        with rebuilt_in_backward(total, lambda: _gated_sum(kept, kept_gates)):
            return self.proj(total)

    def _merging_pays(self, x: Tensor) -> bool:
        """One matrix per sample costs as much as the product with about 2 C positions; its gradient costs far more."""
        if x.shape[1] * x.shape[2] <= 2 * self.channels or _wants_gradient(x, *self.parameters()):
            return False
        # A hook on a branch wants the branch's own output.
        merged = (self.mlp_c, self.sfc_h, self.sfc_w, self.proj)
        return not any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in merged)

    def _merged(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        read = _read_by_all(x)
        biases = paddle.stack([self.sfc_h.bias, self.sfc_w.bias])
        weights = [_grouped(weight, 3) for weight in (self.sfc_h.weight, self.sfc_w.weight, self.mlp_c.weight.t())]
        gates = self.gates(paddle.matmul(_mean(read), _rows_of_all(*weights)) + biases.sum(0))
        rows = weights[0].shape[0]
        gated = [weight * _repeat_rows(gate.unsqueeze(1), rows) for weight, gate in zip(weights, gates)]
        merged_weight = paddle.matmul(_rows_of_all(*gated), self.proj.weight)
        bias = _linear((biases * paddle.stack(gates[:2], axis=1)).sum(1), self.proj.weight, self.proj.bias)
        y = paddle.matmul(read.reshape([batch, height * width, read.shape[3]]), merged_weight)
        return (y + _repeat_rows(bias.unsqueeze(1), height * width)).reshape([batch, height, width, channels])


def _read_by_all(x: Tensor) -> Tensor:
    """What a mixer's branches read, nothing twice: [N, H, W, C] -> [N, H, W, 7 J], J = ceil(C / 3).

    Groups of J channels: residues 0, 1 and 2 as they are, 1 and 2 along the width, 1 and 2 along the height.
    """
    batch, height, width, channels = x.shape
    groups = -(-channels // 3)
    padded = F.pad(x, [0, 0, 1, 1, 1, 1, 0, 3 * groups - channels]).reshape([batch, height + 2, width + 2, groups, 3])
    starts = [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 0, 2), (2, 1, 1), (0, 1, 2)]
    windows = [paddle.crop(padded, [batch, height, width, groups, 1], [0, y, x, 0, r]) for y, x, r in starts]
    return paddle.concat([window.reshape([batch, height, width, groups]) for window in windows], axis=-1)


def _rows_of_all(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """Rows for `_read_by_all`'s channels, [..., 7 J, C_out], of three weights from `_grouped`, [..., 3 J, C_out]:
    those of `sfc_h`, of `sfc_w` and of `mlp_c`."""
    groups = h.shape[-2] // 3
    (h0, h12), (w0, w12), (c0, c12) = (weight.split([groups, 2 * groups], axis=-2) for weight in (h, w, c))
    return paddle.concat([h0 + w0 + c0, c12, h12, w12], axis=-2)


_FAST: dict[type[nn.Layer], type[nn.Layer]] = {
    nn.Linear: FastLinear,
    Mlp: FastMlp,
    CycleFC: FastCycleFC,
    CycleMixer: FastMixer,
}
