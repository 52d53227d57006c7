"""Segmentation of large pictures by overlapping tiles, in memory that does not grow with the picture's area."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 32
"""Tiles begin at multiples of this, the network's largest stride, so that its grid lies alike in all of them."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis: the model sees [start, stop), of which [reach_start, reach_stop) counts.

    The reaches of neighbours share `fade` pixels around the middle of their overlap, in which one fades into the other;
    anywhere else exactly one tile counts. `fade_in` and `fade_out` are 0 at the picture's borders.
    """

    start: int
    stop: int
    reach_start: int
    reach_stop: int
    fade_in: int
    fade_out: int


def check_tiling(tile: int, overlap: int) -> None:
    if tile < 2 * ALIGNMENT or tile % ALIGNMENT:
        raise ValueError(f"--tile is {tile}; it takes a multiple of {ALIGNMENT} from {2 * ALIGNMENT} on")
    if overlap < 0 or overlap % 2 or overlap > tile // 4:
        raise ValueError(f"--overlap is {overlap}; it takes an even number from 0 to a quarter of --tile, {tile // 4}")


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of `tile` pixels that cover `length`, spread evenly, with at least `overlap` common to neighbours."""
    if length <= tile:
        return [Span(0, length, 0, length, 0, 0)]
    last = -(-(length - tile) // ALIGNMENT)  # the last tile's start, in units of ALIGNMENT, as is the longest step
    count = -(-last // ((tile - overlap) // ALIGNMENT)) + 1
    starts = [last * index // (count - 1) * ALIGNMENT for index in range(count)]
    stops = [min(start + tile, length) for start in starts]
    seams = [(start + stop) // 2 for start, stop in zip(starts[1:], stops)]
    half = overlap // 2
    tiles = []
    for index, (start, stop) in enumerate(zip(starts, stops)):
        first, final = index == 0, index == count - 1
        tiles.append(
            Span(
                start,
                stop,
                0 if first else seams[index - 1] - half,
                length if final else seams[index] + half,
                0 if first else overlap,
                0 if final else overlap,
            )
        )
    return tiles


def _weights(span: Span) -> np.ndarray:
    """What a tile counts at each pixel of its reach; with its neighbours' weights, 1 everywhere."""
    weights = np.ones(span.reach_stop - span.reach_start, np.float32)
    if span.fade_in:
        weights[: span.fade_in] = (np.arange(span.fade_in, dtype=np.float32) + 0.5) / span.fade_in
    if span.fade_out:
        weights[-span.fade_out :] = 1 - (np.arange(span.fade_out, dtype=np.float32) + 0.5) / span.fade_out
    return weights


def segment_tiles(
    pixels: np.ndarray, predict: Callable[[np.ndarray], np.ndarray], *, tile: int, overlap: int
) -> np.ndarray:
    """The class of each pixel, int32 [H, W], of a picture uint8 [H, W, 3].

    `predict` gives a tile's probabilities [classes, h, w]. They are averaged where tiles overlap. Beside the picture
    and its classes, a few tiles of probabilities and one line of `overlap` rows are held.
    """
    check_tiling(tile, overlap)
    height, width = pixels.shape[:2]
    labels = np.empty((height, width), np.int32)
    above: np.ndarray | None = None  # what the tiles above add to the first `overlap` rows of this row of tiles
    for row in spans(height, tile, overlap):
        below: np.ndarray | None = None
        beside: np.ndarray | None = None  # what the tile to the left adds to the first `overlap` columns
        for column in spans(width, tile, overlap):
            scores = predict(pixels[row.start : row.stop, column.start : column.stop])
            scores = scores[
                :,
                row.reach_start - row.start : row.reach_stop - row.start,
                column.reach_start - column.start : column.reach_stop - column.start,
            ] * (_weights(row)[:, None] * _weights(column))
            if beside is not None:
                scores[:, :, : column.fade_in] += beside
            end = scores.shape[2] - column.fade_out
            beside = scores[:, :, end:].copy() if column.fade_out else None
            where = slice(column.reach_start, column.reach_start + end)
            done = scores[:, :, :end]
            if above is not None:
                done[:, : row.fade_in] += above[:, :, where]
            bottom = done.shape[1] - row.fade_out
            if row.fade_out:
                if below is None:
                    below = np.empty((done.shape[0], row.fade_out, width), np.float32)
                below[:, :, where] = done[:, bottom:]
            labels[row.reach_start : row.reach_start + bottom, where] = done[:, :bottom].argmax(axis=0)
        above = below
    return labels
