"""CycleMLP (Chen et al., ICLR 2022, arXiv 2107.10224) on one page.

Feature maps are channels-last, [N, H, W, C], everywhere but in convolutions and in what the network takes and gives.
Names of parameters are the published ones. `attn` is one of them: nothing attends here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from cyclemlp_backbones import checks
from cyclemlp_backbones.variants import MIN_SIZE, StageSpec

_WEIGHT = paddle.ParamAttr(initializer=nn.initializer.TruncatedNormal(std=0.02))  # of Linear and CycleFC; biases: 0


def cycle_offsets(channels: int, kernel_size: tuple[int, int]) -> np.ndarray:
    """Offsets (dy, dx) at which each input channel of a CycleFC is read, an int array [channels, 2].

    Channel `i` reads position `p + d(i)`, `d(i) = (i + K // 2) % K - K // 2` (paper section 3.2): along the width for
    `kernel_size` (1, K), along the height for (K, 1). The published checkpoints hold the same numbers as `offset`.
    """
    length = max(checks.check_kernel_size(kernel_size))
    offsets = np.zeros((checks.check_integer("channels", channels, 1), 2), dtype=np.int64)
    offsets[:, 0 if kernel_size[0] > 1 else 1] = (np.arange(channels) + length // 2) % length - length // 2
    return offsets


def with_zeros(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """`x` with zeros around it. F.pad has no half precision on a CPU, and corrupts memory under Paddle's oneDNN."""
    zeros = paddle.zeros_like(paddle.slice(x, [axis], [0], [1]))
    return paddle.concat([zeros] * before + [x] + [zeros] * after, axis=axis)


def by_residue(x: Tensor, length: int) -> list[Tensor]:
    """Channels 0, K, 2K …, then 1, K + 1 …: [..., C] -> K tensors [..., ceil(C / K)], filled up with zeros."""
    axes, channels = len(x.shape), x.shape[-1]
    x = with_zeros(x, axes - 1, 0, -channels % length).reshape([0] * (axes - 1) + [-(-channels // length), length])
    # No slice with a step, which has no second gradient; no unbind, which is slow in a graph on a CPU.
    return [paddle.slice(x, [axes], [residue], [residue + 1]).squeeze(axes) for residue in range(length)]


class CycleFC(nn.Layer):
    """Cycle fully-connected layer (paper section 3.2): [N, H, W, C_in] -> [N, H, W, C_out].

    A 1x1 layer whose input channel `i` is read at position `p + d(i)`, zero outside the map; `cycle_offsets` gives `d`.
    `kernel_size` is (1, K), which shifts along the width, or (K, 1), along the height. `weight` is [C_out, C_in, 1, 1],
    as published; `bias` is [C_out] or None. An input that is not [N, H, W, C_in] is a ValueError.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], *, bias: bool = True):
        super().__init__()
        self.in_channels = checks.check_integer("in_channels", in_channels, 1)
        self.out_channels = checks.check_integer("out_channels", out_channels, 1)
        self.length, self.axis = max(*checks.check_kernel_size(kernel_size)), 1 if kernel_size[0] > 1 else 2
        self.kernel_size = (kernel_size[0], kernel_size[1])
        self.weight = self.create_parameter([out_channels, in_channels, 1, 1], attr=_WEIGHT)
        self.bias = self.create_parameter([out_channels], is_bias=True) if bias else None

    def shift(self, x: Tensor) -> Tensor:
        """Every channel read at its offset: [N, H, W, K * ceil(C_in / K)], in the order of `by_residue`."""
        padded = with_zeros(x, self.axis, self.length // 2, (self.length - 1) // 2)
        read = []
        for residue, group in enumerate(by_residue(padded, self.length)):
            start = (residue + self.length // 2) % self.length  # padded[p + start] is x[p + d]
            read.append(paddle.slice(group, [self.axis], [start], [start - self.length + 1 or 2**31 - 1]))
        return paddle.concat(read, axis=3)

    def forward(self, x: Tensor) -> Tensor:
        if _is_empty(x, "NHWC", self.in_channels):
            return paddle.zeros([*x.shape[:3], self.out_channels], x.dtype)
        columns = by_residue(self.weight.reshape([self.out_channels, self.in_channels]), self.length)
        y = paddle.matmul(self.shift(x), paddle.concat(columns, axis=1), transpose_y=True)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


class Mlp(nn.Layer):
    """Linear, exact GELU, Linear over the last axis: [..., in_features] -> [..., out_features]."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features, _WEIGHT)
        self.fc2 = nn.Linear(hidden_features, out_features, _WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CycleMixer(nn.Layer):
    """Mixing of positions and channels (paper section 3.3): [N, H, W, C] -> [N, H, W, C].

    A Linear projects the sum of three branches, CycleFC along the width, along the height, and Linear. `reweight`: each
    is weighted per channel and sample by a softmax over the branches, which comes from the mean of their sum.
    """

    def __init__(self, channels: int, reweight: bool = True):
        super().__init__()
        self.channels = channels
        self.mlp_c = nn.Linear(channels, channels, _WEIGHT, bias_attr=False)
        self.sfc_h = CycleFC(channels, channels, (1, 3))  # along the width, whatever its name says
        self.sfc_w = CycleFC(channels, channels, (3, 1))
        self.reweight: nn.Layer = Mlp(channels, channels // 4, channels * 3) if reweight else None
        self.proj = nn.Linear(channels, channels, _WEIGHT)

    def gates(self, mean: Tensor) -> list[Tensor]:
        """The weights of `sfc_h`, `sfc_w` and `mlp_c`, each [N, C], from the mean [N, C] of the branches' sum."""
        return F.softmax(self.reweight(mean).reshape([0, self.channels, 3]), axis=2).unbind(2)  # (N, 3C) -> (N, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, w, c = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        if self.reweight is not None:
            h, w, c = (y * gate.unsqueeze([1, 2]) for y, gate in zip((h, w, c), self.gates((h + w + c).mean([1, 2]))))
        return self.proj(h + w + c)


class CycleBlock(nn.Layer):
    """`x + mixer(norm1(x))`, then `x + mlp(norm2(x))`: [N, H, W, C] -> [N, H, W, C].

    Stochastic depth: in training, a sample's branch is left out with probability `drop_path_rate`, else divided by
    1 - `drop_path_rate`. `use_recompute` keeps only the branches' inputs for backward. `reweight` is the mixer's.
    """

    def __init__(self, channels: int, mlp_ratio: float, drop_path_rate: float = 0.0, use_recompute: bool = False,
                 reweight: bool = True):  # fmt: skip
        super().__init__()
        self.drop_path_rate, self.use_recompute = drop_path_rate, use_recompute
        self.norm1 = nn.LayerNorm(channels)
        self.attn = CycleMixer(channels, reweight)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), channels)

    def draw(self, x: Tensor) -> Tensor | None:
        """What a branch's samples are multiplied by, 0 or 1 / (1 - rate), as [N, 1, 1, 1]; None: by nothing."""
        keep = 1.0 - self.drop_path_rate
        if keep == 1.0 or not self.training:
            return None
        return paddle.floor(paddle.rand([x.shape[0], 1, 1, 1], dtype="float32") + keep) / keep

    def add_branch(self, x: Tensor, norm: nn.Layer, branch: nn.Layer, factor: Tensor | None) -> Tensor:
        y = branch(norm(x))
        return x + (y if factor is None else y * factor.astype(y.dtype))

    def forward(self, x: Tensor) -> Tensor:
        again = self.use_recompute and self.training and paddle.is_grad_enabled()  # which it is not in a static graph
        for norm, branch in ((self.norm1, self.attn), (self.norm2, self.mlp)):
            inputs = x, norm, branch, self.draw(x)  # drawn out here: Paddle 2.6 cannot repeat a CPU's random numbers
            if again:  # the reentrant form gives no gradients behind a frozen stem, whose output needs none
                x = recompute(self.add_branch, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self.add_branch(*inputs)
        return x


class Projection(nn.Layer):
    """The stem and the downsampling between stages, a convolution: [N, C_in, H, W] -> [N, H_out, W_out, C_out]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int | str):
        super().__init__()
        self.proj = nn.Conv2D(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)


class CycleNet(nn.Layer):
    """CycleMLP of any size (paper section 3 and table 8), a feature pyramid or, with `num_classes`, a classifier.

    `depths`, `embed_dims` (of at least 4) and `mlp_ratios` (hidden over outer channels) have one entry per stage.
    `out_indices`: stages that a pyramid returns, increasing, of 0..3 or, from the end, -4..-1; only those have norms.
    `drop_path_rate`: of the last block; a linear ramp from 0 at the first leads to it. `frozen_stages`: -1 freezes
    nothing, 0 the stem, k (up to 4) the stem, the first k stages, the downsampling between them and their pyramid
    norms: no gradients, no stochastic depth. `use_recompute`: less memory, more time. `swin_like`: no `reweight`, and
    downsampling by 2x2, as T, S and B. Anything else is a ValueError. `stage_specs` says what comes out.
    """

    def __init__(
        self, depths: Sequence[int], embed_dims: Sequence[int], mlp_ratios: Sequence[float], *,
        num_classes: int | None = None, out_indices: Sequence[int] = (0, 1, 2, 3), in_channels: int = 3,
        drop_path_rate: float = 0.0, frozen_stages: int = -1, use_recompute: bool = False, swin_like: bool = False,
    ):  # fmt: skip
        super().__init__()
        checks.check_integers("depths", depths, count=4, least=1)
        checks.check_integers("embed_dims", embed_dims, count=4, least=4)
        checks.check_positive("mlp_ratios", mlp_ratios, count=4)
        self.num_classes = None if num_classes is None else checks.check_integer("num_classes", num_classes, 1)
        if num_classes is not None and tuple(out_indices) != (0, 1, 2, 3):
            raise ValueError(f"out_indices is {out_indices!r}, but a classifier returns logits: leave out_indices out")
        self.out_indices = checks.check_subset("out_indices", out_indices, 4)
        self.in_channels = checks.check_integer("in_channels", in_channels, 1)
        self.frozen_stages = checks.check_integer("frozen_stages", frozen_stages, -1, 4)
        rates = iter(np.linspace(0.0, checks.check_fraction("drop_path_rate", drop_path_rate), sum(depths)).tolist())
        self.patch_embed = Projection(in_channels, embed_dims[0], kernel_size=7, stride=4, padding=2)
        self.network = nn.LayerList()  # stage i is network.{2i}, the downsampling after it network.{2i+1}
        for i, (depth, dim, ratio) in enumerate(zip(depths, embed_dims, mlp_ratios)):
            if i > 0:  # to ceil(H / 2), with either kernel
                self.network.append(Projection(embed_dims[i - 1], dim, *((2, 2, "SAME") if swin_like else (3, 2, 1))))
            rest = use_recompute, not swin_like
            blocks = [CycleBlock(dim, ratio, next(rates) * (i >= frozen_stages), *rest) for _ in range(depth)]
            self.network.append(nn.Sequential(*blocks))
        self._norms = {3: "norm"} if num_classes else {index: f"norm{2 * index}" for index in self.out_indices}
        self.stage_specs = tuple(StageSpec(embed_dims[stage], 4 * 2**stage) for stage in self._norms)
        for stage, name in self._norms.items():
            self.add_sublayer(name, nn.LayerNorm(embed_dims[stage]))
        if num_classes:
            self.head = nn.Linear(embed_dims[3], num_classes, _WEIGHT)
        frozen = [f"{part}{i}." for i in range(2 * frozen_stages - 1) for part in ("network.", "norm")]
        for name, parameter in self.named_parameters():
            parameter.trainable = frozen_stages < 0 or not name.startswith(("patch_embed.", *frozen))
        from cyclemlp_backbones import fast_cpu  # the one place that knows of it

        fast_cpu.accelerate(self)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Image [N, C, H, W] -> normalised maps [N, C_i, H_i, W_i], high to low resolution, as `stage_specs` says.

        H_0 = (H + 1) // 4, then H_i = (H_{i-1} + 1) // 2, and so for the width. H and W are 32 or more and may change
        from call to call; a smaller or misshapen image raises ValueError.
        """
        if _is_empty(image, "NCHW", self.in_channels, MIN_SIZE):
            return [y[:0] for y in self.forward_features(paddle.zeros([1, *image.shape[1:]], image.dtype))]
        maps = []
        x = self.patch_embed(image)
        for position, layer in enumerate(self.network):
            x = layer(x.transpose([0, 3, 1, 2]) if position % 2 else x)  # (N, H, W, C) -> (N, C, H, W)
            if position % 2 == 0 and position // 2 in self._norms:
                maps.append(getattr(self, self._norms[position // 2])(x).transpose([0, 3, 1, 2]))  # to (N, C, H, W)
        return maps

    def forward(self, image: Tensor) -> list[Tensor] | Tensor:
        """A pyramid's maps (see `forward_features`), or a classifier's logits [N, num_classes]."""
        maps = self.forward_features(image)
        if self.num_classes is None:
            return maps
        if _is_empty(image, "NCHW", self.in_channels, MIN_SIZE):
            return paddle.zeros([0, self.num_classes], image.dtype)
        return self.head(maps[0].mean([2, 3]))


def _is_empty(x: Tensor, layout: str, channels: int, least: int = 0) -> bool:
    """Whether `x` has no element, which several of Paddle's operators refuse. ValueError for another shape."""
    return 0 in checks.check_map(list(getattr(x, "shape")), layout, channels, least)  # noqa: B009  a graph's `x.shape` is a tensor
