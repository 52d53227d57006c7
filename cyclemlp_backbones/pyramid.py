"""What a feature pyramid declares about itself. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_SIZE = 32
"""Smallest height and width of an image, in pixels: the last stage still has one position."""


@dataclass(frozen=True)
class StageSpec:
    """Channels and stride (input pixels per output position, along each side) of one pyramid output."""

    channels: int
    stride: int


def check_out_indices(out_indices: Sequence[int], stages: int = 4) -> tuple[int, ...]:
    """`out_indices` as a tuple, if it is a non-empty, increasing subset of 0 .. stages - 1; else ValueError."""
    needed = f"it takes a non-empty, increasing subset of {list(range(stages))}, for example [0, 1, 2, 3]"
    if isinstance(out_indices, (str, bytes)) or not isinstance(out_indices, Sequence):
        raise ValueError(f"out_indices is {out_indices!r}; {needed}")
    indices = tuple(out_indices)
    integers = all(isinstance(index, int) and not isinstance(index, bool) for index in indices)
    if not indices or not integers or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= stages:
        raise ValueError(f"out_indices is {list(indices)!r}; {needed}")
    return indices
