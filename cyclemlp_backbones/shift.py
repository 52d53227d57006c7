"""The cyclic shift of channels, and the linear map that reads through it. Feature maps are [N, H, W, C]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from cyclemlp_backbones.operators import add_to_rows, in_dygraph, linear, runs_on_cpu, wants_gradient


def check_kernel_size(kernel_size: tuple[int, int]) -> tuple[int, int]:
    """`kernel_size` if it is (1, K) or (K, 1), K >= 1; else ValueError."""
    valid = (
        isinstance(kernel_size, (tuple, list))
        and len(kernel_size) == 2
        and all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in kernel_size)
        and 1 in kernel_size
    )
    if not valid:
        raise ValueError(f"kernel_size is {kernel_size!r}; CycleFC takes (1, K) or (K, 1) with an integer K >= 1")
    return kernel_size[0], kernel_size[1]


def _cycle(kernel_length: int) -> list[int]:
    """The offsets of channels 0 .. K-1; channel i has the offset of channel i % K. K = 3: [0, 1, -1]."""
    return [(residue + kernel_length // 2) % kernel_length - kernel_length // 2 for residue in range(kernel_length)]


def cycle_offsets(channels: int, kernel_size: tuple[int, int]) -> np.ndarray:
    """Offsets (dy, dx) at which each input channel of a CycleFC is read, an int array [channels, 2].

    Channel `i` reads position `p + d(i)`, `d(i) = (i + K // 2) % K - K // 2` (paper section 3.2): along the width for
    `kernel_size` (1, K), along the height for (K, 1). The published checkpoints hold the same numbers as `offset`.
    """
    height, width = check_kernel_size(kernel_size)
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise ValueError(f"channels is {channels!r}; cycle_offsets takes an integer of at least 1")
    offsets = np.zeros((int(channels), 2), dtype=np.int64)
    length = max(height, width)
    offsets[:, 0 if height > 1 else 1] = np.resize(_cycle(length), int(channels))
    return offsets


def _axis(kernel_size: tuple[int, int]) -> int:
    return 1 if kernel_size[0] > 1 else 2


def _pad_with_zeros(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """`x` with zeros around it along `axis`.

    Not F.pad, whose 8-element form corrupts the heap under Paddle's oneDNN predictor.
    """
    if before == after == 0:
        return x
    zeros = _row_of_zeros(x, axis)
    return paddle.concat([zeros] * before + [x] + [zeros] * after, axis=axis)


def cycle_shift(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Each channel of `x` [N, H, W, C] read at its offset, zero outside: [N, H, W, K * ceil(C / K)].

    The channels come out grouped by offset: first all `i` with `i % K == 0`, then those with 1, and so on, a group
    short of a channel filled up with zeros. `group_by_offset` puts a weight into the same order.
    """
    length = max(kernel_size)
    if length == 1:
        return x
    if runs_on_cpu(x):
        return _Shift.apply(x, kernel_size) if wants_gradient(x) else _cycle_shift_on_cpu(x, kernel_size)
    axis = _axis(kernel_size)
    pieces = _by_residue(x, length)
    row = _row_of_zeros(pieces[0], axis)
    return paddle.concat([_read_at(piece, axis, offset, row) for piece, offset in zip(pieces, _cycle(length))], axis=-1)


def cross_shift(x: Tensor) -> Tensor:
    """What CycleFC reads with `kernel_size` (1, 3), with (3, 1) and without a shift, nothing twice:
    [N, H, W, C] -> [N, H, W, 7 J], J = ceil(C / 3).

    Groups of J channels: residues 0, 1 and 2 as they are, 1 and 2 along the width, 1 and 2 along the height.
    `cross_rows` puts the weights into the same order.
    """
    if runs_on_cpu(x):
        batch, height, width, channels = x.shape
        groups = -(-channels // 3)
        padded = F.pad(x, [0, 0, 1, 1, 1, 1, 0, 3 * groups - channels]).reshape(
            [batch, height + 2, width + 2, groups, 3]
        )
        size = [batch, height, width, groups, 1]
        starts = [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 0, 2), (2, 1, 1), (0, 1, 2)]
        windows = [paddle.crop(padded, size, [0, y, x, 0, residue]) for y, x, residue in starts]
        return paddle.concat([window.reshape(size[:4]) for window in windows], axis=-1)
    pieces = _by_residue(x, 3)
    windows = list(pieces)
    for axis in (2, 1):
        row = _row_of_zeros(pieces[0], axis)
        windows += [_read_at(pieces[1], axis, 1, row), _read_at(pieces[2], axis, -1, row)]
    return paddle.concat(windows, axis=-1)


def cross_rows(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """Rows for `cross_shift`'s channels, [..., 7 J, C_out], of three weights from `group_by_offset`, [..., 3 J, C_out]:
    of CycleFC (1, 3), of CycleFC (3, 1) and of a plain Linear."""
    groups = h.shape[-2] // 3
    (h0, h12), (w0, w12), (c0, c12) = (weight.split([groups, 2 * groups], axis=-2) for weight in (h, w, c))
    return paddle.concat([h0 + w0 + c0, c12, h12, w12], axis=-2)


def _by_residue(x: Tensor, length: int) -> list[Tensor]:
    """The channels with `i % K == 0`, those with 1, and so on, each [N, H, W, ceil(C / K)], filled up with zeros.

    Every operator has kernels for half precision, and an exported graph keeps all sizes open.
    """
    groups = -(-x.shape[-1] // length)
    x = _pad_with_zeros(x, 3, 0, groups * length - x.shape[-1]).reshape([0, 0, 0, groups, length])
    return [paddle.slice(x, [4], [residue], [residue + 1]).squeeze(4) for residue in range(length)]


def _row_of_zeros(x: Tensor, axis: int) -> Tensor:
    """Zeros of `x`'s sizes, 1 along `axis`: no size is read, so that an exported graph keeps it open."""
    return paddle.zeros_like(paddle.slice(x, [axis], [0], [1]))


def _read_at(x: Tensor, axis: int, offset: int, row: Tensor) -> Tensor:
    """`x` read `offset` positions further along `axis`, zero outside; `row` is `_row_of_zeros` of it."""
    if offset == 0:
        return x
    zeros = [row] * abs(offset)
    padded = paddle.concat([x, *zeros] if offset > 0 else [*zeros, x], axis=axis)
    return paddle.slice(padded, [axis], [max(offset, 0)], [min(offset, 0) or np.iinfo(np.int32).max])


def _cycle_shift_on_cpu(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """With crop, a real kernel where a slice is a lazy view that is slow to copy and to differentiate.

    crop has no half precision on a GPU, though, and no export with dynamic sizes.
    """
    length, axis = max(kernel_size), _axis(kernel_size)
    batch, height, width, channels = x.shape
    groups = -(-channels // length)
    padding = [0, 0, 0, 0, 0, 0, 0, groups * length - channels]
    padding[2 * axis : 2 * axis + 2] = length // 2, length - 1 - length // 2
    padded = F.pad(x, padding)
    padded = padded.reshape([*padded.shape[:3], groups, length])
    shifted = []
    for residue, offset in enumerate(_cycle(length)):
        start = [0, 0, 0, 0, residue]
        start[axis] = length // 2 + offset
        window = paddle.crop(padded, [batch, height, width, groups, 1], start)
        shifted.append(window.reshape([batch, height, width, groups]))
    return paddle.concat(shifted, axis=-1)


def _cycle_unshift(shifted: Tensor, kernel_size: tuple[int, int], channels: int) -> Tensor:
    """The transpose of `cycle_shift`, for its gradient: [N, H, W, K * ceil(C / K)] -> [N, H, W, C]. CPU only."""
    length, axis = max(kernel_size), _axis(kernel_size)
    if length == 1:
        return shifted
    batch, height, width, grouped_channels = shifted.shape
    groups = grouped_channels // length
    padding = [0] * 8
    padding[2 * axis : 2 * axis + 2] = length - 1 - length // 2, length // 2
    padded = F.pad(shifted, padding)
    windows = []
    for residue, offset in enumerate(_cycle(length)):
        start = [0, 0, 0, residue * groups]
        start[axis] = length - 1 - length // 2 - offset
        windows.append(paddle.crop(padded, [batch, height, width, groups], start))
    return _in_natural_order(paddle.concat(windows, axis=-1), length, channels)


def _in_natural_order(grouped: Tensor, length: int, channels: int) -> Tensor:
    """`cycle_shift`'s channel order -> the natural one: [N, H, W, K * ceil(C / K)] -> [N, H, W, C]. CPU only."""
    if length == 1:
        return grouped
    *positions, width = grouped.shape
    x = grouped.reshape([*positions, length, width // length]).transpose([0, 1, 2, 4, 3]).reshape([*positions, width])
    return x if width == channels else paddle.crop(x, [*positions, channels])


def group_by_offset(weight: Tensor, kernel_length: int) -> Tensor:
    """Weight [C_out, C_in] or [C_out, C_in, 1, 1] -> [K * ceil(C_in / K), C_out], its rows in the order of
    `cycle_shift`'s channels."""
    out_channels, in_channels = weight.shape[:2]
    groups = -(-in_channels // kernel_length)
    weight = _pad_with_zeros(weight.reshape([out_channels, in_channels]), 1, 0, groups * kernel_length - in_channels)
    weight = weight.reshape([out_channels, groups, kernel_length]).transpose([2, 1, 0])
    if in_dygraph():
        return weight.reshape([groups * kernel_length, out_channels])
    # At a transpose, reshape and concat, Paddle 3.3.1's oneDNN passes refuse an exported graph; flatten has no second
    # gradient.
    return weight.flatten(0, 1)


def cycle_linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: tuple[int, int]) -> Tensor:
    """A linear map of the shifted channels: `x` [N, H, W, C_in], `weight` [C_out, C_in, 1, 1] -> [N, H, W, C_out]."""
    if runs_on_cpu(x):
        return _cycle_linear_on_cpu(x, weight, bias, kernel_size)
    return linear(cycle_shift(x, kernel_size), group_by_offset(weight, max(kernel_size)), bias)


def _cycle_linear_on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: tuple[int, int]) -> Tensor:
    read, length = cycle_shift(x, kernel_size), max(kernel_size)
    if math.prod(x.shape) >= math.prod(weight.shape) or wants_gradient(x, weight, bias):
        return linear(read, group_by_offset(weight, length), bias)
    # On a small map there is less of `x` than of the weight to bring into the other's order.
    read = _in_natural_order(read, length, x.shape[3])
    y = paddle.matmul(read, weight.reshape(weight.shape[:2]), transpose_y=True)
    return y if bias is None else add_to_rows(y, bias)


class _Shift(PyLayer):
    """`cycle_shift` with a gradient of its own, which takes a third of the time of crop's and concat's, on a CPU.

    It has one tensor for input, since Paddle has `paddle.grad` fail at a PyLayer with a second one that was not asked
    for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
        ctx.kernel_size, ctx.channels = kernel_size, x.shape[3]
        return _cycle_shift_on_cpu(x, kernel_size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _cycle_unshift(gradient, ctx.kernel_size, ctx.channels)
