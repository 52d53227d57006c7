"""Networks by the name of a variant, or of the size that a weights file tells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.variants import VARIANTS, variant_name
from cyclemlp_backbones.weights.formats import Layout
from cyclemlp_backbones.weights.loading import load_weights, locate_weights, read_network

Pretrained = str | os.PathLike | bool | None


def build_backbone(
    variant: str,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    in_channels: int = 3,
    drop_path_rate: float = 0.1,
    frozen_stages: int = -1,
    use_recompute: bool = False,
    pretrained: Pretrained = None,
    layout: Layout | None = None,
) -> CycleNet:
    """A multi-scale feature pyramid: image [N, C, H, W] -> one map per entry of `out_indices`, strides 4, 8, 16, 32.

    `variant` is "b0" to "b5". `pretrained` is None, a path or URL of a weights file, or True for the published
    ImageNet weights; a classifier's file is as good as a backbone's. Weights of another number of channels are adapted,
    which the logged report says. `layout` is "paddle" or "torch", for files that cannot tell (see `load_weights`). The
    other arguments are those of `CycleNet`.
    Raises ValueError for a value that is not allowed, CheckpointError for weights that do not fit.
    """
    return _build(
        variant,
        pretrained,
        layout,
        out_indices=out_indices,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        frozen_stages=frozen_stages,
        use_recompute=use_recompute,
    )


def build_classifier(
    variant: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path_rate: float = 0.1,
    use_recompute: bool = False,
    pretrained: Pretrained = None,
    layout: Layout | None = None,
) -> CycleNet:
    """An image classifier: image [N, C, H, W] -> logits [N, num_classes]. Arguments as for `build_backbone`; from
    weights of another number of classes the head stays fresh, which the logged report says."""
    return _build(
        variant,
        pretrained,
        layout,
        num_classes=num_classes,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        use_recompute=use_recompute,
    )


def from_weights(path: str | os.PathLike, *, layout: Layout | None = None, **options: Any) -> CycleNet:
    """The network whose size, channels, classes or outputs a weights file tells, with these weights.

    `options` are those of `CycleNet` (out_indices, drop_path_rate, frozen_stages, use_recompute, in_channels,
    num_classes) and override what the file tells: `out_indices` makes a pyramid of a classifier's file, another
    `in_channels` or `num_classes` is as for the builders above. Raises CheckpointError for another network's file.
    """
    return read_network(path, layout=layout, **options)[0]


def _build(variant: str, pretrained: Pretrained, layout: Layout | None, **options: Any) -> CycleNet:
    size = VARIANTS[variant_name(variant)]
    model = CycleNet(size.depths, size.embed_dims, size.mlp_ratios, **options)
    if pretrained is not None and pretrained is not False:
        load_weights(model, locate_weights(pretrained, variant), layout=layout, adapt=True)
    return model
