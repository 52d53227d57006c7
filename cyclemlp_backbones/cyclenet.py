"""The network: one class that is a feature pyramid or a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from cyclemlp_backbones.layers import Downsample, DropPath, Linear, Mlp, PatchEmbed
from cyclemlp_backbones.mixer import CycleMixer
from cyclemlp_backbones.operators import in_dygraph
from cyclemlp_backbones.pyramid import MIN_SIZE, StageSpec, check_out_indices

_EPSILON = 1e-5


class CycleBlock(nn.Layer):
    """`x + mixer(norm1(x))`, then `x + mlp(norm2(x))`, both with stochastic depth: [N, H, W, C] -> [N, H, W, C]."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, epsilon=_EPSILON)
        self.attn = CycleMixer(channels)  # published name; nothing attends here
        self.norm2 = nn.LayerNorm(channels, epsilon=_EPSILON)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self._add_mlp(self._add_mixer(x))

    def _add_mixer(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """`factor` is stochastic depth's, drawn earlier; None draws now."""
        return x + self.drop_path(self.attn(self.norm1(x)), factor)

    def _add_mlp(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)), factor)

    def recomputing(self, x: Tensor) -> Tensor:
        """`forward` that keeps the inputs of both branches only, and computes the rest again in backward."""
        for branch in (self._add_mixer, self._add_mlp):
            # Nothing random is left inside, since Paddle 2.6 cannot repeat a CPU's random numbers. The reentrant form
            # gives no gradients behind a frozen stem, whose output needs none.
            x = recompute(branch, x, self.drop_path.draw(x), use_reentrant=False, preserve_rng_state=False)
        return x


def drop_path_rates(drop_path_rate: float, depths: Sequence[int]) -> list[float]:
    """The rate of every block, in order: a linear ramp from 0 at the first to `drop_path_rate` at the last."""
    return [float(rate) for rate in np.linspace(0.0, drop_path_rate, sum(depths))]


class CycleNet(nn.Layer):
    """CycleMLP of any size (paper section 3 and table 8), a feature pyramid or, with `num_classes`, a classifier.

    Args:
        depths: blocks per stage, four integers.
        embed_dims: channels per stage, four integers of at least 4.
        mlp_ratios: width of each block's hidden layer over its channels, per stage.
        num_classes: None for a pyramid; the number of classes for a classifier.
        out_indices: stages that a pyramid returns, an increasing subset of 0..3. Norms exist for those only.
            A classifier takes the default only: it returns logits.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth rate of the last block; a linear ramp from 0 leads to it.
        frozen_stages: -1 freezes nothing, 0 the stem, k (up to 4) the stem, the first k stages, the downsampling
            between them and their pyramid norms: no gradients, and eval mode whatever `train()` says.
        use_recompute: in training, keep only the blocks' inputs and compute the rest again in backward: less memory,
            more time.

    Anything else raises ValueError.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embed_dims: Sequence[int],
        mlp_ratios: Sequence[float],
        *,
        num_classes: int | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        use_recompute: bool = False,
    ):
        super().__init__()
        _check_per_stage("depths", depths, lambda n: isinstance(n, int) and n >= 1, "integers of at least 1")
        _check_per_stage("embed_dims", embed_dims, lambda n: isinstance(n, int) and n >= 4, "integers of at least 4")
        _check_per_stage("mlp_ratios", mlp_ratios, lambda n: n > 0, "positive numbers")
        _check_integer("in_channels", in_channels, 1)
        _check_integer("frozen_stages", frozen_stages, -1, 4)
        if num_classes is not None:
            _check_integer("num_classes", num_classes, 1)
            if tuple(out_indices) != (0, 1, 2, 3):
                raise ValueError(
                    f"out_indices is {out_indices!r}, but a classifier (num_classes={num_classes}) returns logits: "
                    "leave out_indices out"
                )
        if not isinstance(drop_path_rate, (int, float)) or not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(
                f"drop_path_rate is {drop_path_rate!r}; it takes a probability from 0 up to, but not including, 1"
            )

        self.in_channels = in_channels
        self.num_classes = num_classes
        self.out_indices = check_out_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.use_recompute = bool(use_recompute)

        rates = iter(drop_path_rates(drop_path_rate, depths))
        self.patch_embed = PatchEmbed(in_channels, embed_dims[0])
        # Published names: stage i is network.{2i}, the downsampling after it network.{2i+1}.
        self.network = nn.LayerList()
        specs = []
        stride = 4
        for stage, (depth, channels, mlp_ratio) in enumerate(zip(depths, embed_dims, mlp_ratios)):
            if stage > 0:
                self.network.append(Downsample(embed_dims[stage - 1], channels))
                stride *= 2
            self.network.append(nn.Sequential(*[CycleBlock(channels, mlp_ratio, next(rates)) for _ in range(depth)]))
            specs.append(StageSpec(channels, stride))
        if num_classes is None:
            self.stage_specs = tuple(specs[index] for index in self.out_indices)
            for index in self.out_indices:
                self.add_sublayer(f"norm{2 * index}", nn.LayerNorm(embed_dims[index], epsilon=_EPSILON))
        else:
            self.stage_specs = (specs[-1],)
            self.norm = nn.LayerNorm(embed_dims[-1], epsilon=_EPSILON)
            self.head = Linear(embed_dims[-1], num_classes)
        for layer in self._frozen_layers():
            for parameter in layer.parameters():
                parameter.trainable = False
        self._hold_frozen_in_eval()

    def _frozen_layers(self) -> list[nn.Layer]:
        if self.frozen_stages < 0:
            return []
        layers = [self.patch_embed, *self.network[: max(0, 2 * self.frozen_stages - 1)]]
        if self.num_classes is None:
            layers += [getattr(self, f"norm{2 * index}") for index in self.out_indices if index < self.frozen_stages]
        return layers

    def _hold_frozen_in_eval(self) -> None:
        for layer in self._frozen_layers():
            for sublayer in layer.sublayers(include_self=True):
                sublayer.training = False

    def train(self) -> None:
        """Training mode for all but the frozen stages."""
        super().train()
        self._hold_frozen_in_eval()

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Image [N, C, H, W] -> normalised maps [N, C_i, H_i, W_i], high to low resolution.

        A pyramid gives one map per entry of `out_indices`, a classifier the last stage's map only. H_0 = (H + 1) // 4,
        then H_i = (H_{i-1} + 1) // 2, and so for the width. H and W are 32 or more and may change from call to call; a
        smaller or misshapen image raises ValueError.
        """
        _check_image(image, self.in_channels)
        if self.frozen_stages >= 0:
            self._hold_frozen_in_eval()  # a parent layer's train() sets this flag without calling ours
        if _is_empty(image):
            return self._empty_maps(image)
        maps = []
        x = self.patch_embed(image)
        for position, layer in enumerate(self.network):
            if position % 2:
                x = layer(x)
                continue
            x = self._run_stage(layer, x)
            if self.num_classes is None and position // 2 in self.out_indices:
                maps.append(_channels_first(getattr(self, f"norm{position}")(x)))
        if self.num_classes is not None:
            maps.append(_channels_first(self.norm(x)))
        return maps

    def _empty_maps(self, image: Tensor) -> list[Tensor]:
        """The maps of an empty batch, which several of Paddle's operators refuse."""
        maps = []
        for spec in self.stage_specs:
            height, width = ((size + 1) // 4 for size in image.shape[2:])
            for _ in range(spec.stride.bit_length() - 3):  # stride 4, 8, 16, 32: halved 0, 1, 2, 3 times
                height, width = (height + 1) // 2, (width + 1) // 2
            maps.append(paddle.zeros([0, spec.channels, height, width], dtype=image.dtype))
        return maps

    def _run_stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.use_recompute and stage.training and in_dygraph() and paddle.is_grad_enabled()):
            return stage(x)
        for block in stage:
            x = block.recomputing(x)
        return x

    def forward(self, image: Tensor) -> list[Tensor] | Tensor:
        """A pyramid's maps (see `forward_features`), or a classifier's logits [N, num_classes]."""
        maps = self.forward_features(image)
        if self.num_classes is None:
            return maps
        if _is_empty(image):
            return paddle.zeros([0, self.num_classes], dtype=image.dtype)
        return self.head(maps[0].mean([2, 3]))


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose([0, 3, 1, 2])  # (N, H, W, C) -> (N, C, H, W)


def _is_empty(image: Tensor) -> bool:
    return in_dygraph() and image.shape[0] == 0


@paddle.jit.not_to_static
def _check_image(image: Tensor, in_channels: int) -> None:
    """Sizes that an exported graph leaves open are -1 here, and are not checked."""
    shape = list(image.shape)
    if len(shape) != 4:
        raise ValueError(f"the image has shape {shape}; CycleNet takes [N, {in_channels}, H, W]")
    if shape[1] not in (in_channels, -1):
        raise ValueError(
            f"the image has shape {shape}, {shape[1]} channels; this CycleNet takes [N, {in_channels}, H, W]"
        )
    if any(0 <= size < MIN_SIZE for size in shape[2:]):
        raise ValueError(
            f"the image has shape {shape}, height {shape[2]} and width {shape[3]}; "
            f"CycleNet takes heights and widths of {MIN_SIZE} pixels and more: resize or pad the image"
        )


def _check_per_stage(name: str, values: Sequence, valid: Callable[..., bool], needed: str) -> None:
    if (
        not isinstance(values, Sequence)
        or len(values) != 4
        or isinstance(values, str)
        or not all(valid(value) for value in values)
    ):
        raise ValueError(f"{name} is {values!r}; it takes four {needed}, one per stage")


def _check_integer(name: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(
            f"{name} is {value!r}; it takes an integer "
            + (f"from {least} to {most}" if most is not None else f"of at least {least}")
        )
