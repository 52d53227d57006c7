"""The layers of CycleMLP. Feature maps are channels-last, [N, H, W, C], everywhere but inside convolutions."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.jit.sot import psdb

_CPU_BUILD = not (paddle.is_compiled_with_cuda() or paddle.is_compiled_with_xpu())


def in_dygraph() -> bool:
    """Whether operators run as they are called, so that sizes are numbers; False while `paddle.jit.to_static` records
    a graph, by either of its tracers."""
    return paddle.in_dynamic_mode() and not psdb.in_sot()


def _weight_attr() -> paddle.ParamAttr:
    """Initialisation of Linear and CycleFC weights: truncated normal, standard deviation 0.02 (the paper's code)."""
    return paddle.ParamAttr(initializer=nn.initializer.TruncatedNormal(std=0.02))


def _bias_attr() -> paddle.ParamAttr:
    return paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A Linear layer with the network's initialisation."""
    return nn.Linear(in_features, out_features, weight_attr=_weight_attr(), bias_attr=_bias_attr() if bias else False)


def _cycle(kernel_length: int) -> list[int]:
    """The offsets of channels 0 .. K-1; channel i has the offset of channel i % K. K = 3: [0, 1, -1]."""
    return [(residue + kernel_length // 2) % kernel_length - kernel_length // 2 for residue in range(kernel_length)]


def _check_kernel_size(kernel_size: tuple[int, int]) -> tuple[int, int]:
    valid = (
        isinstance(kernel_size, (tuple, list))
        and len(kernel_size) == 2
        and all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in kernel_size)
        and 1 in kernel_size
    )
    if not valid:
        raise ValueError(f"kernel_size is {kernel_size!r}; CycleFC takes (1, K) or (K, 1) with an integer K >= 1")
    return kernel_size[0], kernel_size[1]


def cycle_offsets(channels: int, kernel_size: tuple[int, int]) -> np.ndarray:
    """Offsets (dy, dx) at which each input channel of a CycleFC is read, an int array [channels, 2].

    Channel `i` reads position `p + d(i)`, `d(i) = (i + K // 2) % K - K // 2` (paper section 3.2): along the width for
    `kernel_size` (1, K), along the height for (K, 1). The published checkpoints hold the same numbers as `offset`.
    """
    height, width = _check_kernel_size(kernel_size)
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise ValueError(f"channels is {channels!r}; cycle_offsets takes an integer of at least 1")
    offsets = np.zeros((int(channels), 2), dtype=np.int64)
    length = max(height, width)
    offsets[:, 0 if height > 1 else 1] = np.resize(_cycle(length), int(channels))
    return offsets


def _pad_with_zeros(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """`x` with zeros around it along `axis`.

    Not F.pad, whose 8-element form corrupts the heap under Paddle's oneDNN predictor; and no size is read from `x`,
    so that an exported graph keeps every dimension dynamic.
    """
    if before == after == 0:
        return x
    zeros = paddle.zeros_like(paddle.slice(x, [axis], [0], [1]))
    return paddle.concat([zeros] * before + [x] + [zeros] * after, axis=axis)


def _read_window(padded: Tensor, axis: int, start: int, end: int, residue: int) -> Tensor:
    """`padded` [N, H, W, J, K] -> [N, H, W, J]: one residue class, less the first `start`, last `end` of `axis`."""
    if _CPU_BUILD and in_dygraph() and padded.dtype in (paddle.float32, paddle.float64):
        # In dygraph a slice is a lazy strided view, slow to materialise and to differentiate on a CPU, where crop is a
        # real kernel. crop has no half precision, though, and no export with dynamic sizes.
        shape, offsets = list(padded.shape), [0, 0, 0, 0, residue]
        shape[axis] -= start + end
        shape[-1], offsets[axis] = 1, start
        return paddle.crop(padded, shape, offsets).reshape(shape[:-1])
    stop = -end if end else np.iinfo(np.int32).max
    return paddle.slice(padded, [axis, 4], [start, residue], [stop, residue + 1]).squeeze(4)


def cycle_shift(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Each channel of `x` [N, H, W, C] read at its offset, zero outside: [N, H, W, K * ceil(C / K)].

    The channels come out grouped by offset: first all `i` with `i % K == 0`, then those with 1, and so on, a group
    short of a channel filled up with zeros. `group_by_offset` puts a weight into the same order.
    """
    kernel_length = max(kernel_size)
    axis = 1 if kernel_size[0] > 1 else 2
    before, after = kernel_length // 2, kernel_length - 1 - kernel_length // 2
    groups = -(-x.shape[-1] // kernel_length)
    x = _pad_with_zeros(x, 3, 0, groups * kernel_length - x.shape[-1])
    padded = _pad_with_zeros(x, axis, before, after).reshape([0, 0, 0, groups, kernel_length])
    shifted = [
        _read_window(padded, axis, before + offset, after - offset, residue)
        for residue, offset in enumerate(_cycle(kernel_length))
    ]
    return paddle.concat(shifted, axis=-1)


def group_by_offset(weight: Tensor, kernel_length: int) -> Tensor:
    """CycleFC weight [C_out, C_in, 1, 1] -> [K * ceil(C_in / K), C_out], rows in `cycle_shift`'s channel order."""
    out_channels, in_channels = weight.shape[:2]
    groups = -(-in_channels // kernel_length)
    weight = _pad_with_zeros(weight.reshape([out_channels, in_channels]), 1, 0, groups * kernel_length - in_channels)
    weight = weight.reshape([out_channels, groups, kernel_length]).transpose([2, 1, 0])
    return weight.reshape([groups * kernel_length, out_channels])


class CycleFC(nn.Layer):
    """Cycle fully-connected layer (paper section 3.2): [N, H, W, C_in] -> [N, H, W, C_out].

    A 1x1 layer whose input channel `i` is read at position `p + d(i)`, zero outside the map; `cycle_offsets` gives `d`.
    `kernel_size` is (1, K), which shifts along the width, or (K, 1), along the height. `weight` is [C_out, C_in, 1, 1],
    as published; `bias` is [C_out] or None. An input that is not [N, H, W, C_in] is a ValueError.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], *, bias: bool = True):
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
                raise ValueError(f"{name} is {channels!r}; CycleFC takes an integer of at least 1")
        self.kernel_size = _check_kernel_size(kernel_size)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = self.create_parameter([out_channels, in_channels, 1, 1], attr=_weight_attr())
        self.bias = self.create_parameter([out_channels], attr=_bias_attr(), is_bias=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if len(x.shape) != 4 or x.shape[3] != self.in_channels:
            raise ValueError(f"CycleFC got an input of shape {list(x.shape)}; it takes [N, H, W, {self.in_channels}]")
        if in_dygraph() and 0 in x.shape[:3]:  # Paddle's reshape takes a size of 0 for "as before"
            return paddle.zeros([*x.shape[:3], self.out_channels], dtype=x.dtype)
        kernel_length = max(self.kernel_size)
        if kernel_length > 1:
            x = cycle_shift(x, self.kernel_size)
        return F.linear(x, group_by_offset(self.weight, kernel_length), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., 2016): in training, zeroes a sample's whole branch with probability `rate`
    and divides the others by `1 - rate`, so that the expectation stays."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(
                f"the drop path rate is {rate!r}; it takes a probability from 0 up to, but not including, 1"
            )
        self.rate = float(rate)

    def draw(self, x: Tensor) -> Tensor | None:
        """What each sample of `x` [N, ...] is multiplied by, 0 or 1 / (1 - rate), as [N, 1, ...]; None: by nothing."""
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        shape = [x.shape[0]] + [1] * (len(x.shape) - 1)
        return paddle.floor(paddle.rand(shape, dtype="float32") + keep) / keep

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """`factor` is from an earlier `draw`; None draws now."""
        if factor is None:
            factor = self.draw(x)
        return x if factor is None else x * factor.astype(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Mlp(nn.Layer):
    """Linear, exact GELU, Linear over the last axis: [..., in_features] -> [..., out_features]."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__()
        self.fc1 = linear(in_features, hidden_features)
        self.fc2 = linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchEmbed(nn.Layer):
    """The stem: convolution 7x7, stride 4, padding 2. [N, C_in, H, W] -> [N, (H + 1) // 4, (W + 1) // 4, C_out]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2D(in_channels, out_channels, kernel_size=7, stride=4, padding=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)


class Downsample(nn.Layer):
    """Convolution 3x3, stride 2, padding 1: [N, H, W, C_in] -> [N, (H + 1) // 2, (W + 1) // 2, C_out]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2D(in_channels, out_channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.transpose([0, 3, 1, 2]))  # (N, H, W, C) -> (N, C, H, W)
        return x.transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)
