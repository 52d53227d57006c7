"""The sizes of CycleMLP, as rows of one table. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

MIN_SIZE = 32
"""Smallest height and width of an image, in pixels: the last stage still has one position."""


@dataclass(frozen=True)
class StageSpec:
    """Channels and stride (input pixels per output position, along each side) of one output of a network."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Variant:
    """One size of the network.

    `depths`, `embed_dims` and `mlp_ratios` have one entry per stage. `crop_pct` is the share of the shorter image side
    that evaluation crops. `paper_top1` is ImageNet-1k top-1 accuracy in percent as printed in the paper
    (Chen et al., ICLR 2022, arXiv 2107.10224, table 2), or for `swin_like` rows as the authors publish it; None where
    there is no such variant. `parameters` counts the 1000-class classifier. `network` is what CycleNet takes.
    """

    depths: tuple[int, int, int, int]
    embed_dims: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]
    crop_pct: float
    parameters: int
    paper_top1: float | None
    swin_like: bool = False

    @property
    def network(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("depths", "embed_dims", "mlp_ratios", "swin_like")}


_NARROW = (64, 128, 320, 512)
_WIDE = (96, 192, 384, 768)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        # b0 is ours, not the paper's: for edge devices, tests and the demo (the proportions of PVTv2-B0).
        "b0": Variant((2, 2, 2, 2), (32, 64, 160, 256), (8, 8, 4, 4), 0.9, 3_342_920, None),
        "b1": Variant((2, 2, 4, 2), _NARROW, (4, 4, 4, 4), 0.9, 15_155_400, 78.9),
        "b2": Variant((2, 3, 10, 3), _NARROW, (4, 4, 4, 4), 0.9, 26_802_504, 81.6),
        "b3": Variant((3, 4, 18, 3), _NARROW, (8, 8, 4, 4), 0.9, 38_385_720, 82.4),
        "b4": Variant((3, 8, 27, 3), _NARROW, (8, 8, 4, 4), 0.875, 51_796_552, 83.0),
        "b5": Variant((3, 4, 24, 3), _WIDE, (4, 4, 4, 4), 0.875, 75_747_280, 83.2),
        # Without published code: a skeleton that has all six published sizes, 28, 50 and 88 M parameters and 4.4, 8.5
        # and 15.2 G multiply-adds, of which a stem of 4x4, downsampling of 3x3 or reweighting miss some.
        "t": Variant((2, 2, 6, 2), _WIDE, (4, 4, 4, 4), 0.9, 28_265_896, 81.3, swin_like=True),
        "s": Variant((2, 2, 18, 2), _WIDE, (4, 4, 4, 4), 0.9, 49_554_856, 82.9, swin_like=True),
        "b": Variant((2, 2, 18, 2), (128, 256, 512, 1024), (4, 4, 4, 4), 0.9, 87_699_688, 83.4, swin_like=True),
    }
)
"""Every variant by its short name: "b0" to "b5"; "t", "s" and "b", a reconstruction from the published sizes; names of
the weights unknown. Their top-1 is the authors' network's, and no claim about ours."""


def list_variants() -> tuple[str, ...]:
    """The short names that `build_backbone` and `build_classifier` accept, each family smallest first."""
    return tuple(VARIANTS)


def variant_name(name: str) -> str:
    """The short name ("b1") for "b1", "B1", "cyclemlp_b1" or "CycleMLP_B1".

    Raises ValueError, which lists the names, for anything else.
    """
    if isinstance(name, str):
        short = re.sub(r"^cyclemlp_", "", name.strip().lower())
        if short in VARIANTS:
            return short
    raise ValueError(
        f"unknown CycleMLP variant {name!r}; choose from {', '.join(VARIANTS)} "
        "(also written B1, cyclemlp_b1, CycleMLP_B1)"
    )
