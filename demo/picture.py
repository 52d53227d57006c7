"""The demos' pictures: what a scene shows, side by side; image, truth and prediction of the segmentation demo."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cyclemlp_backbones.digits import CLASSES, PALETTE

Panel = Callable[[Any], object]
"""Draws into one of matplotlib's axes."""


def draw_scenes(
    path: str | os.PathLike,
    scenes: Sequence[Sequence[Panel]],
    names: Sequence[str],
    *,
    title: str,
    scenes_a_row: int,
    inches: float,
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> None:
    """Writes a PNG with `scenes_a_row` scenes next to each other, a column of `inches` for each of their panels, which
    have `names`; `legend` has names and colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows, panels = -(-len(scenes) // scenes_a_row), len(names)
    height = inches * rows + (1.1 if legend else 0.8)
    widths = ([1.0] * panels + [0.12]) * scenes_a_row  # a thin empty column keeps neighbouring scenes apart
    figure, axes = plt.subplots(
        rows,
        len(widths) - 1,
        figsize=(inches * panels * scenes_a_row, height),
        gridspec_kw={"width_ratios": widths[:-1], "wspace": 0.04, "hspace": 0.04},
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, scene in enumerate(scenes):
        row, first = number // scenes_a_row, number % scenes_a_row * (panels + 1)
        for axis, draw, name in zip(axes[row, first:], scene, names):
            draw(axis)
            if row == 0:
                axis.set_title(name, fontsize=11)
    figure.suptitle(title, fontsize=12, y=1 - 0.15 / height, va="top")
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.65 / height, bottom=(0.45 if legend else 0.1) / height)
    if legend:
        handles = [Patch(facecolor=np.array(colour) / 255, label=name) for name, colour in legend]
        figure.legend(
            handles=handles, ncol=len(handles), loc="lower center", frameon=False, fontsize=10, handlelength=1.2
        )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(image: np.ndarray, axis: Any) -> None:
    axis.imshow(image, interpolation="nearest")


def draw_picture(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    *,
    title: str,
    scenes_a_row: int = 2,
) -> None:
    """Writes a PNG with three columns for each scene: the image [H, W, 3] uint8, and two maps of class ids [H, W]."""
    colours = np.array(PALETTE, np.uint8)
    scenes = [
        [partial(show, panel) for panel in (image, colours[truth], colours[prediction])]
        for image, truth, prediction in zip(images, truths, predictions)
    ]
    names, legend = ("image", "truth", "prediction"), list(zip(CLASSES, PALETTE))
    draw_scenes(path, scenes, names, title=title, scenes_a_row=scenes_a_row, inches=1.9, legend=legend)
