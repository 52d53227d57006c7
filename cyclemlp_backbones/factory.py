"""Networks by the name of a variant."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.variants import VARIANTS, variant_name

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
) -> CycleNet:
    """A multi-scale feature pyramid: image [N, C, H, W] -> one map per entry of `out_indices`, strides 4, 8, 16, 32.

    `variant` is "b0" to "b5". `pretrained` is None, a path or URL of a weights file, or True for the published
    ImageNet weights; a classifier's file is as good as a backbone's. The other arguments are those of `CycleNet`.
    Raises ValueError for a value that is not allowed, CheckpointError for weights that do not fit.
    """
    size = VARIANTS[variant_name(variant)]
    model = CycleNet(
        size.depths,
        size.embed_dims,
        size.mlp_ratios,
        out_indices=out_indices,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        frozen_stages=frozen_stages,
        use_recompute=use_recompute,
    )
    _load_pretrained(model, variant, pretrained)
    return model


def build_classifier(
    variant: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path_rate: float = 0.1,
    use_recompute: bool = False,
    pretrained: Pretrained = None,
) -> CycleNet:
    """An image classifier: image [N, C, H, W] -> logits [N, num_classes]. Arguments as for `build_backbone`."""
    size = VARIANTS[variant_name(variant)]
    model = CycleNet(
        size.depths,
        size.embed_dims,
        size.mlp_ratios,
        num_classes=num_classes,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        use_recompute=use_recompute,
    )
    _load_pretrained(model, variant, pretrained)
    return model


def _load_pretrained(model: CycleNet, variant: str, pretrained: Pretrained) -> None:
    if pretrained is None or pretrained is False:
        return
    from cyclemlp_backbones.weights.loading import load_weights, locate_weights

    load_weights(model, locate_weights(pretrained, variant))
