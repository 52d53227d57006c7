"""Pictures: finding files, reading what cameras and programs write, and the arrays that a model takes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.pictures import normalise

RESULTS = ("overlays", "masks")
"""The folders of pictures that predictions are written into."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_LONGEST = 4
"""A centre crop sees nothing of a picture beyond this ratio of its sides."""


@dataclass(frozen=True)
class ImageFile:
    """An image to predict, `file_name`, its path below the folder it was found in, and the name of its results: the
    same without suffix, where no other image has that. `picture` is that of a video's frame, which has no file."""

    path: Path
    file_name: str
    name: str
    picture: Image.Image | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Prepared:
    """`array` [3, H, W] float32; `content` is its height and width without padding, `original` the picture's,
    `scale` the factors (y, x) between them before any crop."""

    array: np.ndarray
    content: tuple[int, int]
    original: tuple[int, int]
    scale: tuple[float, float]


def find_images(sources: Sequence[str | os.PathLike], *, out: Path | None = None) -> list[ImageFile]:
    """The images that `sources`, files and folders (with all below them), stand for; of a folder, in the order of the
    numbers in their names (frame_2 before frame_10). What an earlier run wrote below `out` is none of them.
    FileNotFoundError for a source that is missing or holds none, ValueError for `out` that is a source itself."""
    found: list[tuple[Path, str]] = []
    results = [(out / part).resolve() for part in RESULTS if (out / part).is_dir()] if out is not None else []
    for source in map(Path, sources):
        if source.is_dir():
            if out is not None and out.is_dir() and out.samefile(source):
                raise ValueError(f"--out {out} is a folder of images, among which results do not belong; give another")
            paths = [path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
            if results:
                paths = [path for path in paths if not any(map(path.resolve().is_relative_to, results))]
            if not paths:
                raise FileNotFoundError(f"no image ({', '.join(SUFFIXES)}) in the folder {source}")
            named = [(path, path.relative_to(source).as_posix()) for path in paths]
            found += sorted(named, key=lambda pair: _natural(pair[1]))
        elif source.is_file():
            found.append((source, source.name))
        else:
            raise FileNotFoundError(f"no image or folder {source}")
    stems = Counter(_without_suffix(file_name) for _, file_name in found)
    taken: set[str] = set()
    files = []
    for path, file_name in found:
        stem = _without_suffix(file_name)
        name = unique = stem if stems[stem] == 1 else file_name
        number = 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        files.append(ImageFile(path, file_name, unique))
    return files


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix) or None]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def resized_shape(shape: tuple[int, int], preprocessing: Preprocessing) -> tuple[tuple[int, int], tuple[float, float]]:
    """Height and width after the resize of `preprocessing`, at least 1, and the factors (y, x)."""
    height, width = shape
    if preprocessing.resize == "none":
        return shape, (1.0, 1.0)
    if preprocessing.resize == "exact":
        target = (preprocessing.size[0], preprocessing.size[1])
        return target, (target[0] / height, target[1] / width)
    scale = preprocessing.size[0] / min(shape)
    if preprocessing.resize == "within":
        scale = min(scale, preprocessing.size[1] / max(shape))
    return (max(1, round(height * scale)), max(1, round(width * scale))), (scale, scale)


def prepare(image: Image.Image, preprocessing: Preprocessing, *, most_pixels: int) -> Prepared:
    """What the model takes for a picture. ValueError if it were resized to more than `most_pixels`."""
    original = (image.height, image.width)
    if preprocessing.crop and max(original) > _LONGEST * min(original):
        image = _centre(image, min(image.height, _LONGEST * min(original)), min(image.width, _LONGEST * min(original)))
    (height, width), scale = resized_shape((image.height, image.width), preprocessing)
    if height * width > most_pixels:
        raise ValueError(
            f"the model takes it as {width} x {height} pixels, more than --max-model-pixels {most_pixels}; "
            "segmentation goes by parts with --tile"
        )
    image = _resize(image, height, width, scale, preprocessing)
    if preprocessing.crop:
        image = _centre(image, preprocessing.crop, preprocessing.crop)
    return Prepared(to_array(np.asarray(image), preprocessing), (image.height, image.width), original, scale)


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _resize(
    image: Image.Image, height: int, width: int, scale: tuple[float, float], preprocessing: Preprocessing
) -> Image.Image:
    if (image.height, image.width) == (height, width):
        return image
    method = _FILTERS[preprocessing.interpolation]
    if preprocessing.antialias:
        return image.resize((width, height), method)
    # An affine map reads neighbours only, also in shrinking, as OpenCV's resize does.
    return image.transform((width, height), Image.Transform.AFFINE, (1 / scale[1], 0, 0, 0, 1 / scale[0], 0), method)


def to_array(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> normalised float32 [3, H', W'] in the model's order of channels, padded with zeros."""
    height, width = (_padded(size, preprocessing) for size in pixels.shape[:2])
    array = np.zeros((3, height, width), np.float32)
    order = ["RGB".index(channel) for channel in preprocessing.channel_order]
    low, high = preprocessing.input_range
    mean = [(value - low) / (high - low) for value in preprocessing.mean]  # of values from 0 to 1
    std = [value / (high - low) for value in preprocessing.std]
    array[:, : pixels.shape[0], : pixels.shape[1]] = normalise(pixels[..., order], mean, std)
    return array


def _padded(size: int, preprocessing: Preprocessing) -> int:
    return -(-max(size, preprocessing.least) // preprocessing.pad_to) * preprocessing.pad_to


def batches_of_equal_shape(
    items: Iterator[tuple[ImageFile, Image.Image, Prepared]], size: int, *, most_pixels: int
) -> Iterator[list[tuple[ImageFile, Image.Image, Prepared]]]:
    """Consecutive items whose arrays have one shape, at most `size` and, but for one alone, `most_pixels` together."""
    batch: list[tuple[ImageFile, Image.Image, Prepared]] = []
    for item in items:
        shape = item[2].array.shape
        most = min(size, most_pixels // (shape[1] * shape[2]))
        if batch and (len(batch) >= most or batch[0][2].array.shape != shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
