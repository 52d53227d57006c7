"""The detection demo's picture: truth and detections side by side, with boxes, labels and masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cyclemlp_backbones.digits import PALETTE
from demo.picture import draw_scenes, show

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
    scenes = [
        [partial(_draw, image, objects) for objects in columns] for image, *columns in zip(images, truths, detections)
    ]
    draw_scenes(path, scenes, ("truth", "detected"), title=title, scenes_a_row=scenes_a_row, inches=2.2)


def _draw(image: np.ndarray, objects: Sequence[Found], axis: Any) -> None:
    from matplotlib.patches import Rectangle

    painted = image.astype(np.float64)
    for found in objects:
        if found.mask is not None:
            painted[found.mask] = (1 - _OPACITY) * painted[found.mask] + _OPACITY * np.array(PALETTE[found.class_id])
    show(painted.astype(np.uint8), axis)
    for found in objects:
        colour = np.array(PALETTE[found.class_id]) / 255
        x, y, width, height = found.box
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=2))
        axis.text(
            x,
            max(y, 5),
            found.label,
            fontsize=8,
            color="black" if colour @ _LUMINANCE > 0.5 else "white",
            verticalalignment="bottom",
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )
