"""The detection demo's picture: truth and detections side by side, with boxes, labels and masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclemlp_backbones.digits import PALETTE

_OPACITY = 0.55
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # what each of RGB adds to brightness


@dataclass(frozen=True)
class Found:
    """One object of a scene: its class id 1 to 10, its box (x, y, width, height), and what is known of it besides."""

    class_id: int
    box: Sequence[float]
    mask: np.ndarray | None = None  # bool [H, W]
    score: float | None = None

    @property
    def label(self) -> str:
        digit = str(self.class_id - 1)
        return digit if self.score is None else f"{digit} {self.score:.2f}"


def draw_detections(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    truths: Sequence[Sequence[Found]],
    detections: Sequence[Sequence[Found]],
    *,
    title: str,
    scenes_a_row: int = 3,
) -> None:
    """Writes a PNG with two columns for each scene, truth and detection, over the images uint8 [H, W, 3]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(images) // scenes_a_row)
    widths = ([1, 1, 0.1] * scenes_a_row)[:-1]  # a thin empty column keeps neighbouring scenes apart
    figure, axes = plt.subplots(
        rows,
        len(widths),
        figsize=(2.2 * 2 * scenes_a_row, 2.2 * rows + 0.8),
        gridspec_kw={"width_ratios": widths, "wspace": 0.03, "hspace": 0.05},
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (image, *columns) in enumerate(zip(images, truths, detections)):
        row, first = number // scenes_a_row, number % scenes_a_row * 3
        for offset, (objects, name) in enumerate(zip(columns, ("truth", "detected"))):
            _draw(axes[row, first + offset], image, objects)
            if row == 0:
                axes[row, first + offset].set_title(name, fontsize=11)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.65 / figure.get_figheight())
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axis: object, image: np.ndarray, objects: Sequence[Found]) -> None:
    from matplotlib.patches import Rectangle

    painted = image.astype(np.float64)
    for found in objects:
        if found.mask is not None:
            painted[found.mask] = (1 - _OPACITY) * painted[found.mask] + _OPACITY * np.array(PALETTE[found.class_id])
    axis.imshow(painted.astype(np.uint8), interpolation="nearest")  # type: ignore[attr-defined]
    for found in objects:
        colour = np.array(PALETTE[found.class_id]) / 255
        x, y, width, height = found.box
        axis.add_patch(  # type: ignore[attr-defined]
            Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=2)
        )
        axis.text(  # type: ignore[attr-defined]
            x,
            max(y, 5),
            found.label,
            fontsize=8,
            color="black" if colour @ _LUMINANCE > 0.5 else "white",
            verticalalignment="bottom",
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )
