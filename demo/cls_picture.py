"""The picture of the classification demo: how the students learn, and what they say about held-out digits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np


def draw_students(
    path: str | os.PathLike,
    losses: Mapping[str, Sequence[tuple[int, float]]],
    images: np.ndarray,
    labels: Sequence[int],
    answers: Sequence[int],
    *,
    title: str,
    columns: int = 10,
) -> None:
    """Writes a PNG: the task's loss by step of each run in `losses`, and below it images uint8 [N, H, W, 3] with the
    answers, wrong ones in red with the right one behind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(images) // columns)
    figure = plt.figure(figsize=(columns, 3.4 + 1.2 * rows))
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.4, 1.2 * rows))
    axes = top.subplots()
    for name, points in losses.items():
        axes.plot(*zip(*points), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss of the task")
    axes.legend(frameon=False)
    top.subplots_adjust(left=0.08, right=0.98, bottom=0.17, top=0.88)
    figure.suptitle(title)
    grid = bottom.subplots(rows, columns, squeeze=False)
    bottom.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.93, hspace=0.35, wspace=0.05)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, image, label, answer in zip(grid.flat, images, labels, answers):
        axis.imshow(image)
        right = label == answer
        axis.set_title(f"{answer}" if right else f"{answer} ({label})", fontsize=9, color="black" if right else "red")
    figure.savefig(path, dpi=100)
    plt.close(figure)
