"""Image files as RGB pictures, whatever they hold."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255)

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are missing, cut short, damaged or no images."""


def read_rgb(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as a viewer shows it: turned by its EXIF orientation, transparency on white, RGB.

    Raises one of `UNREADABLE` for a file that holds no whole picture.
    """
    with Image.open(path) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Grayscale, palette, CMYK, 16-bit and transparent pictures as RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Gray values of 16 bits (modes I;16 and I) or floats (0 to 1, or 0 to 255) as uint8."""
    numbers = values.astype(np.float64)
    if mode != "F":
        numbers = numbers / 257
    elif numbers.size and numbers.min() >= 0 and numbers.max() <= 1:
        numbers = numbers * 255
    return np.clip(np.rint(numbers), 0, 255).astype(np.uint8)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W]: (value / 255 - mean) / std."""
    array = np.empty((3, *pixels.shape[:2]), np.float32)
    for plane, band, centre, deviation in zip(array, np.moveaxis(pixels, 2, 0), mean, std):
        np.divide(band, np.float32(255), out=plane)
        plane -= np.float32(centre)
        plane /= np.float32(deviation)
    return array
