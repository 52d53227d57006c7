"""The layers of CycleMLP. Feature maps are channels-last, [N, H, W, C], everywhere but inside convolutions."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.operators import in_dygraph, rebuilt_in_backward, reshape_positions, runs_on_cpu, wants_gradient
from cyclemlp_backbones.operators import linear as linear_operator
from cyclemlp_backbones.shift import check_kernel_size, cycle_linear

_HIDDEN_ELEMENTS = 2**18  # 1 MiB in single precision


def _weight_attr() -> paddle.ParamAttr:
    """Initialisation of Linear and CycleFC weights: truncated normal, standard deviation 0.02 (the paper's code)."""
    return paddle.ParamAttr(initializer=nn.initializer.TruncatedNormal(std=0.02))


def _bias_attr() -> paddle.ParamAttr:
    return paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))


class Linear(nn.Linear):
    """nn.Linear with the network's initialisation, and faster on a CPU."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True):
        super().__init__(
            in_features, out_features, weight_attr=_weight_attr(), bias_attr=_bias_attr() if bias else False
        )

    def forward(self, x: Tensor) -> Tensor:
        return linear_operator(x, self.weight, self.bias)


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
        self.kernel_size = check_kernel_size(kernel_size)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = self.create_parameter([out_channels, in_channels, 1, 1], attr=_weight_attr())
        self.bias = self.create_parameter([out_channels], attr=_bias_attr(), is_bias=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if len(x.shape) != 4 or x.shape[3] != self.in_channels:
            raise ValueError(f"CycleFC got an input of shape {list(x.shape)}; it takes [N, H, W, {self.in_channels}]")
        if in_dygraph() and 0 in x.shape[:3]:  # Paddle's reshape takes a size of 0 for "as before"
            return paddle.zeros([*x.shape[:3], self.out_channels], dtype=x.dtype)
        return cycle_linear(x, self.weight, self.bias, self.kernel_size)

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
        self.fc1 = Linear(in_features, hidden_features)
        self.fc2 = Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape([-1, x.shape[-1]])  # in an exported graph too: oneDNN and ONNX Runtime fuse more of it
        rows = self._map_on_cpu(rows) if runs_on_cpu(x) else self.fc2(F.gelu(self.fc1(rows)))
        return reshape_positions(rows, x)

    def _map_on_cpu(self, rows: Tensor) -> Tensor:
        if wants_gradient(rows, *self.parameters()):
            hidden = self.fc1(rows)
            activated, kept = F.gelu(hidden), hidden.detach()
            with rebuilt_in_backward(activated, lambda: F.gelu(kept)):
                y = self.fc2(activated)
            return y  # not from within: Paddle 2's to_static does not know that
        # Part by part, the hidden features stay in the processor's cache, and their memory is small and reused.
        step = max(1, _HIDDEN_ELEMENTS // self.fc1.weight.shape[1])
        parts = [self.fc2(F.gelu(self.fc1(rows[start : start + step]))) for start in range(0, rows.shape[0], step)]
        return paddle.concat(parts) if len(parts) > 1 else parts[0]


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
