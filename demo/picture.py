"""The demo's picture: image, truth and prediction side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from cyclemlp_backbones.digits import CLASSES, PALETTE


def draw_picture(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    *,
    title: str,
    scenes_a_row: int = 2,
) -> None:
    """Writes a PNG with three columns for each scene: the image [H, W, 3] uint8, and two maps of class ids [H, W].

    `scenes_a_row` scenes stand next to each other; a legend names the classes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = -(-len(images) // scenes_a_row)
    columns = 3 * scenes_a_row
    # A thin empty column keeps neighbouring scenes apart.
    widths = ([1, 1, 1, 0.12] * scenes_a_row)[:-1]
    figure, axes = plt.subplots(
        rows,
        len(widths),
        figsize=(1.9 * columns, 1.9 * rows + 1.1),
        gridspec_kw={"width_ratios": widths, "wspace": 0.04, "hspace": 0.04},
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, panels in enumerate(zip(images, map(in_colour, truths), map(in_colour, predictions))):
        row, first = number // scenes_a_row, number % scenes_a_row * 4
        for offset, (panel, name) in enumerate(zip(panels, ("image", "truth", "prediction"))):
            axis = axes[row, first + offset]
            axis.imshow(panel, interpolation="nearest")
            if row == 0:
                axis.set_title(name, fontsize=11)
    figure.suptitle(title, fontsize=12, y=1 - 0.15 / figure.get_figheight(), va="top")
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.65 / figure.get_figheight(), bottom=0.45 / figure.get_figheight()
    )
    legend = [Patch(facecolor=np.array(colour) / 255, label=name) for colour, name in zip(PALETTE, CLASSES)]
    figure.legend(handles=legend, ncol=len(CLASSES), loc="lower center", frameon=False, fontsize=10, handlelength=1.2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def in_colour(class_map: np.ndarray) -> np.ndarray:
    """Class ids [H, W] -> uint8 RGB [H, W, 3]."""
    return np.array(PALETTE, np.uint8)[class_map]
