"""Image files as RGB pictures, whatever they hold."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What is read, whatever a file's name ends with. Pillow knows more, and starts Ghostscript for a PostScript file."""

WHITE = (255, 255, 255)

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are missing, cut short, damaged or no images."""

_ROWS = 256
_ORIENTATION, _QUARTER_TURN = 0x0112, 5  # EXIF: from this value on, width and height are exchanged


def shown_size(path: str | os.PathLike, *, whole: bool = False) -> tuple[int, int]:
    """Width and height of the picture in a file as a viewer shows it, turned by its EXIF orientation.

    Raises one of `UNREADABLE` for a file that holds no picture of one of the `FORMATS`; with `whole`, also for one
    that is cut short or damaged.
    """
    with Image.open(path, formats=FORMATS) as image:
        if whole:
            image.load()
        turned = image.getexif().get(_ORIENTATION, 1) >= _QUARTER_TURN
        return image.size[::-1] if turned else image.size


def read_rgb(path: str | os.PathLike | IO[bytes], *, most_pixels: int | None = None) -> Image.Image:
    """The picture in a file as a viewer shows it: turned by its EXIF orientation, transparency on white, RGB.

    Raises one of `UNREADABLE` for a file that holds no whole picture of one of the `FORMATS`, or one of more than
    `most_pixels`; None leaves the limit to Pillow.
    """
    with _pillows_limit(most_pixels is None), Image.open(path, formats=FORMATS) as image:
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than --max-pixels {most_pixels}")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def _pillows_limit(on: bool) -> Iterator[None]:
    """Pillow warns of, and refuses, pictures that are large, unless it is told otherwise for the whole process."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limit if on else None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def to_rgb(image: Image.Image) -> Image.Image:
    """Grayscale, palette, CMYK, 16-bit and transparent pictures as RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Gray values of 16 bits (modes I;16 and I) or floats (0 to 1, or 0 to 255) as uint8, some rows at a time."""
    factor = 1 / 257
    if mode == "F":
        factor = 255.0 if values.size and values.min() >= 0 and values.max() <= 1 else 1.0
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows] = np.clip(np.rint(values[rows] * factor), 0, 255)
    return result


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W]: (value / 255 - mean) / std."""
    array = np.empty((3, *pixels.shape[:2]), np.float32)
    for plane, band, centre, deviation in zip(array, np.moveaxis(pixels, 2, 0), mean, std):
        np.divide(band, np.float32(255), out=plane)
        plane -= np.float32(centre)
        plane /= np.float32(deviation)
    return array


def class_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours that differ, Pascal VOC's: bit k of a class number goes to bit 7 - k // 3 of channel k % 3."""
    colours = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(24):
            channels[bit % 3] |= (number >> bit & 1) << max(0, 7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)
