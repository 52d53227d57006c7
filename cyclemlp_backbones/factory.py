"""Networks by the name of a variant, or of the size that a weights file tells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.variants import VARIANTS, variant_name
from cyclemlp_backbones.weights.formats import Layout
from cyclemlp_backbones.weights.loading import (
    STEM,
    LoadReport,
    backbone_part,
    load_weights,
    locate_weights,
    read_source,
)
from cyclemlp_backbones.weights.pickles import CheckpointError, listed

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

    `variant` is one of `list_variants()`. `pretrained` is None, a path or URL of a weights file, or True for the
    published ImageNet weights; a classifier's file is as good as a backbone's. Weights of another number of channels
    are adapted, which the logged report says. `layout` is "paddle" or "torch", for files that cannot tell (see
    `load_weights`). The other arguments are those of `CycleNet`.
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


def read_network(
    source: str | os.PathLike, *, layout: Layout | None = None, **options: Any
) -> tuple[CycleNet, LoadReport]:
    """The CycleNet that a weights file tells the size of, loaded, and the report; `options` are those of CycleNet."""
    sizes, told = _size_of(*read_source(source)[:2])
    if "out_indices" in options:  # of a pyramid
        told.pop("num_classes", None)
    if options.get("num_classes") is not None:
        told.pop("out_indices", None)
    model = CycleNet(*sizes, **{**told, **options})
    return model, load_weights(model, source, layout=layout, adapt=True)


def _size_of(described: str, arrays: Mapping[str, np.ndarray]) -> tuple[tuple[list, list, list], dict[str, Any]]:
    """(depths, embed_dims, mlp_ratios) and the options of CycleNet that names and shapes tell, of a file that may be
    incomplete. Every block has to have two matrices of its size, so that no small file asks for a large network."""
    shapes = {name: array.shape for name, array in backbone_part(arrays, {})[0].items()}
    depths, embed_dims, ratios, wrong = [], [], [], [] if len(shapes.get(STEM, ())) == 4 else [STEM]
    for stage in range(4):
        parts = (name.split(".") for name in shapes)
        blocks = {part[2] for part in parts if part[:2] == ["network", str(2 * stage)] and part[2].isdecimal()}
        front = f"network.{2 * stage}"
        (dim,), (hidden,) = (shapes.get(f"{front}.0.{name}.bias", (0,))[:1] for name in ("norm1", "mlp.fc1"))
        for name in [f"{front}.{block}.{rest}.weight" for block in blocks for rest in ("attn.sfc_h", "mlp.fc1")]:
            needed = dim * dim if "sfc_h" in name else dim * hidden
            if not needed or np.prod(shapes.get(name, (0,))) != needed:
                wrong.append(name)
        wrong += [] if blocks else [f"{front}.0.norm1.bias"]
        depths.append(len(blocks))
        embed_dims.append(dim)
        # The half makes int(channels * ratio) come out right whatever the division rounds to.
        ratios.append(1 if not dim else hidden // dim if hidden % dim == 0 else (hidden + 0.5) / dim)
    if wrong:
        raise CheckpointError(f"{described}: not the weights of a CycleMLP; missing or misshapen: {listed(wrong)}")
    told: dict[str, Any] = {"in_channels": shapes[STEM][1]}
    if shapes.get("network.1.proj.weight", ())[2:] == (2, 2):
        told["swin_like"] = True
    if len(shapes.get("head.bias", ())) == 1:
        told["num_classes"] = shapes["head.bias"][0]
    elif outputs := [index for index in range(4) if f"norm{2 * index}.weight" in shapes]:
        told["out_indices"] = outputs
    return (depths, embed_dims, ratios), told


def _build(variant: str, pretrained: Pretrained, layout: Layout | None, **options: Any) -> CycleNet:
    model = CycleNet(**VARIANTS[variant_name(variant)].network, **options)
    if pretrained is not None and pretrained is not False:
        load_weights(model, locate_weights(pretrained, variant), layout=layout, adapt=True)
    return model
