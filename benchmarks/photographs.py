"""JPEG files of ImageNet's usual size, made from scikit-learn's two photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 32
SIZES = ((500, 375), (375, 500), (500, 333))
"""Width and height; 500 x 375 is the size that most of ImageNet's training images have."""

_QUALITY = 93


def write_photographs(folder: Path) -> list[Path]:
    """Writes the files, crops with a quarter turn where they are upright; the same at every call."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(COUNT):
        width, height = SIZES[number % len(SIZES)]
        photograph = photographs[number // len(SIZES) % len(photographs)]
        if height > width:
            photograph = photograph.transpose(Image.Transpose.ROTATE_90)
        left = int(rng.integers(photograph.width - width + 1))
        top = int(rng.integers(photograph.height - height + 1))
        path = folder / f"{number:02}.jpg"
        photograph.crop((left, top, left + width, top + height)).save(path, quality=_QUALITY)
        paths.append(path)
    return paths
