"""The demo's data: scikit-learn's handwritten digits on crops of its two photographs, in three formats.

Every mask, box and class is exact, since the scenes are composed here. A scene follows from (seed, split, index) alone,
in integer arithmetic, so the same settings give the same pixels anywhere and the same bytes with the same Pillow.

The splits share nothing: the held-out one (`val`) uses the last quarter of the digits and the right part of each
photograph, training the rest, with a gap between the two parts of a photograph.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.checks import check_integer
from cyclemlp_backbones.files import write_atomically

CLASSES = ("background", *map(str, range(10)))
"""Names of the class ids 0 to 10: the digit `d` is class `d + 1`."""

PALETTE = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
    (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0),
)  # fmt: skip
"""A colour for each class, RGB: those of `pictures.class_palette`, which needs Pillow."""

SPLITS = ("train", "val")
FORMATS = ("seg", "coco", "imagenet")
MARKER = "demo-data.json"
"""In a folder that `write_demo_data` wrote: the settings, and whether it came to the end."""

MIN_SIZE, MAX_SIZE = 32, 1024
MAX_SCENES = 100_000

_DIGITS_OF = {"train": slice(0, 1347), "val": slice(1347, 1797)}
_COLUMNS_OF = {"train": slice(0, 400), "val": slice(416, 640)}  # of the photographs, which are 640 wide
_CROP_SIDES = (96, 224)  # of the photographs, in pixels, before resizing
_HEIGHTS = (0.7, 0.95)  # of a digit's 8 rows, as a share of its cell; the strokes fill most of it
_OVERHANG = 0.25  # share of a cell by which a digit may reach into the neighbouring ones
_MOST_HIDDEN = 0.25  # share of a digit that later ones may cover
_PLACEMENTS = 20  # tries before a digit that would hide too much is left out


@dataclass(frozen=True)
class Digit:
    """One digit of a scene: its value 0 to 9 and its visible pixels, bool [S, S]."""

    value: int
    mask: np.ndarray

    @property
    def class_id(self) -> int:
        return self.value + 1

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The tight box (x, y, width, height) of the visible pixels, in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


@dataclass(frozen=True)
class Scene:
    """One picture: `image` uint8 RGB [S, S, 3] and its digits, in the order they were laid down."""

    image: np.ndarray
    digits: tuple[Digit, ...]

    @property
    def class_map(self) -> np.ndarray:
        """The class id of every pixel, uint8 [S, S]."""
        ids = np.zeros(self.image.shape[:2], np.uint8)
        for digit in self.digits:
            ids[digit.mask] = digit.class_id
        return ids


def make_scene(split: str, index: int, *, size: int = 128, seed: int = 0, max_digits: int = 4) -> Scene:
    """Scene `index` of a split: one to `max_digits` digits on a photograph, `size` x `size` pixels.

    The digits stand in a loose grid: one fills the picture, up to 4 have a quarter each, up to 9 a ninth. The first
    one's value is `index % 10`, so that ten scenes show all classes. Later digits lie over earlier ones and hide at
    most a quarter of each.
    Raises ValueError for a value that is not allowed, ImportError without scikit-learn.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    check_integer("size", size, MIN_SIZE, MAX_SIZE)
    check_integer("max_digits", max_digits, 1, 9)
    check_integer("seed", seed, 0, 2**32 - 1)
    check_integer("index", index, 0, 2**32 - 1)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = _background(rng, split, size)
    digits: list[Digit] = []
    full_areas: list[int] = []
    cells = _cells(rng, size, max_digits)
    for position in range(int(rng.integers(1, max_digits + 1))):
        value = index % 10 if position == 0 else int(rng.integers(10))
        alpha = _place(rng, split, value, size, cells[position], digits, full_areas)
        if alpha is None:
            continue
        mask = alpha >= 128
        _paint(rng, image, alpha, mask)
        digits = [Digit(digit.value, digit.mask & ~mask) for digit in digits] + [Digit(value, mask)]
        full_areas.append(int(mask.sum()))
    return Scene(image, tuple(digits))


@functools.cache
def _sources() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """All digits uint8 [1797, 8, 8] with 0..255, their values [1797], and the photographs uint8 [427, 640, 3]."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError("the demo's data comes with scikit-learn: pip install 'cyclemlp-backbones[demo]'") from error
    digits = load_digits()
    return ((digits.images * 255 + 8) // 16).astype(np.uint8), digits.target, tuple(load_sample_images().images)


@functools.cache
def digit_indices(split: str, value: int) -> np.ndarray:
    """Which of scikit-learn's digits show `value` in a split, positions in `load_digits()`."""
    chosen = _DIGITS_OF[split]
    return chosen.start + np.flatnonzero(_sources()[1][chosen] == value)


def photograph_parts(split: str) -> tuple[np.ndarray, ...]:
    """The parts of the photographs that a split's backgrounds are cropped from, uint8 [427, width, 3]."""
    return tuple(photograph[:, _COLUMNS_OF[split]] for photograph in _sources()[2])


def _background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    from PIL import Image

    parts = photograph_parts(split)
    part = parts[rng.integers(len(parts))]
    side = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1] + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in part.shape[:2])
    crop = part[top : top + side, left : left + side]
    if rng.integers(2):
        crop = crop[:, ::-1]
    image = np.array(Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.Resampling.BILINEAR))
    return (image.astype(np.uint16) // 2).astype(np.uint8)  # dimmed, so that every digit can be brighter


def _cells(rng: np.random.Generator, size: int, max_digits: int) -> list[tuple[int, int, int]]:
    """The cells (top, left, side) of a loose grid, shuffled: the whole scene for one digit, else 2 x 2 or 3 x 3."""
    cells_a_row = next(number for number in (1, 2, 3) if number**2 >= max_digits)
    side = size // cells_a_row
    corners = [(row * side, column * side, side) for row in range(cells_a_row) for column in range(cells_a_row)]
    return [corners[number] for number in rng.permutation(len(corners))]


def _stroke(rng: np.random.Generator, split: str, value: int, side: int) -> np.ndarray:
    """The opacity of one digit, enlarged for a cell of `side` pixels, uint8 [h, w], cut to where it is visible."""
    from PIL import Image

    indices = digit_indices(split, value)
    pixels = np.pad(_sources()[0][indices[rng.integers(len(indices))]], 1)  # room for the strokes to fade out
    low, high = (int(share * side) * 10 // 8 for share in _HEIGHTS)
    height = int(rng.integers(low, high + 1))
    width = height * int(rng.integers(85, 116)) // 100
    grey = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int32)
    opacity = np.clip((grey - 75) * 255 // 80, 0, 255).astype(np.uint8)
    return opacity[opacity.any(1)][:, opacity.any(0)]


def _place(
    rng: np.random.Generator,
    split: str,
    value: int,
    size: int,
    cell: tuple[int, int, int],
    digits: list[Digit],
    full_areas: list[int],
) -> np.ndarray | None:
    """The opacity of a digit in its cell, uint8 [S, S], that leaves earlier ones visible; None if there is no room."""
    *corner, side = cell
    alpha = _stroke(rng, split, value, side)
    overhang = int(_OVERHANG * side) if side < size else 0
    for _ in range(_PLACEMENTS):
        start = []
        for first, length in zip(corner, alpha.shape):
            low = max(0, first - overhang)
            high = min(size, first + side + overhang) - length
            start.append(int(rng.integers(low, max(low, high) + 1)))
        placed = np.zeros((size, size), np.uint8)
        window = placed[start[0] : start[0] + alpha.shape[0], start[1] : start[1] + alpha.shape[1]]
        window[:] = alpha[: window.shape[0], : window.shape[1]]
        uncovered = placed < 128
        if all((digit.mask & uncovered).sum() >= (1 - _MOST_HIDDEN) * area for digit, area in zip(digits, full_areas)):
            return placed
    return None


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, mask: np.ndarray) -> None:
    """Lays a digit over `image`, in the one of six random tints that differs most from what it covers."""
    covered = image[mask].astype(np.int64).sum(0) // int(mask.sum())
    colours = rng.integers(112, 256, (6, 3))
    colour = colours[((colours - covered) ** 2).sum(1).argmax()]
    opacity = alpha[..., None].astype(np.int64)
    image[:] = (image * (255 - opacity) + colour * opacity + 127) // 255


@dataclass(frozen=True)
class DemoSettings:
    """What `write_demo_data` writes: `train` and `val` scenes of `size` x `size` pixels, see `make_scene`, in a format.

    `max_digits` None is 4, or 1 for the format imagenet, which takes nothing else. What is not allowed is a ValueError.
    """

    format: str
    train: int = 1000
    val: int = 240
    size: int = 128
    seed: int = 0
    max_digits: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}; choose from {', '.join(FORMATS)}")
        alone = self.format == "imagenet"
        if self.max_digits is None:
            object.__setattr__(self, "max_digits", 1 if alone else 4)
        check_integer("train", self.train, 1, MAX_SCENES)
        check_integer("val", self.val, 1, MAX_SCENES)
        check_integer("size", self.size, MIN_SIZE, MAX_SIZE)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_integer("max_digits", self.max_digits, 1, 1 if alone else 9)


def is_complete(folder: str | os.PathLike, settings: DemoSettings) -> bool:
    """Whether `folder` holds exactly what `settings` ask for, written to the end."""
    try:
        marker = json.loads((Path(folder) / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return marker == {"complete": True, **asdict(settings)}


def write_demo_data(
    folder: str | os.PathLike,
    settings: DemoSettings,
    *,
    force: bool = False,
    workers: int = 2,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Writes both splits into `folder`, the same bytes whatever the number of `workers` (threads).

    seg: `images/SPLIT/*.png`, `annotations/SPLIT/*.png` (pixel = class id), `train.txt`, `val.txt`, `labels.txt`, as
    PaddleSeg's `Dataset` reads them.
    coco: `SPLIT/*.png`, `annotations/instances_SPLIT.json`; masks are uncompressed RLE of the visible pixels, category
    ids the class ids.
    imagenet: `SPLIT/n00000007/n00000007_000017.png` for a 7, with folders in the manner of synsets, `train.txt` and
    `val.txt` with `name label` a line, `map_to_10.txt` with `synset label`.

    A folder that is not empty is an error (FileExistsError) unless `force`, which replaces what an earlier call wrote
    and leaves other files alone. An interrupted run is never taken for a complete one: see `is_complete`. `progress`
    wraps the iterable of scenes, as tqdm does.
    """
    check_integer("workers", workers, 1, 64)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not force:
        raise FileExistsError(
            f"{folder} is not empty; choose another folder, or --force to replace the demo data in it"
        )
    _start(folder, settings)
    writers: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
        "seg": (_write_seg_scene, _finish_seg),
        "coco": (_write_coco_scene, _finish_coco),
        "imagenet": (_write_imagenet_scene, _finish_imagenet),
    }
    write_scene, finish = writers[settings.format]

    def write(split_and_index: tuple[str, int]) -> Any:
        split, index = split_and_index
        scene = make_scene(split, index, size=settings.size, seed=settings.seed, max_digits=settings.max_digits or 1)
        return write_scene(folder, split, index, scene)

    todo = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    _sources()  # once, not in every thread
    with ThreadPoolExecutor(workers) as pool:
        records = list(progress(pool.map(write, todo)))
    finish(folder, "train", records[: settings.train])
    finish(folder, "val", records[settings.train :])
    _write_marker(folder, settings, complete=True)


_FOLDERS_OF = {"seg": ("images", "annotations"), "coco": (*SPLITS, "annotations"), "imagenet": SPLITS}
_LISTS = ("train.txt", "val.txt", "labels.txt", "map_to_10.txt")


def _start(folder: Path, settings: DemoSettings) -> None:
    """Removes what an earlier call wrote into `folder`."""
    try:
        earlier = json.loads((folder / MARKER).read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = None
    folder.mkdir(parents=True, exist_ok=True)
    _write_marker(folder, settings, complete=False)
    if earlier in _FOLDERS_OF:
        for name in _FOLDERS_OF[earlier]:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in _LISTS:
            (folder / name).unlink(missing_ok=True)


def _write_marker(folder: Path, settings: DemoSettings, *, complete: bool) -> None:
    text = json.dumps({"complete": complete, **asdict(settings)}, indent=1) + "\n"
    write_atomically(folder / MARKER, lambda path: path.write_text(text))


def _save_image(image: np.ndarray, path: Path, palette: Sequence[Sequence[int]] = ()) -> None:
    from PIL import Image

    picture = Image.fromarray(image)
    if palette:
        picture.putpalette([channel for colour in palette for channel in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=6)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _write_seg_scene(folder: Path, split: str, index: int, scene: Scene) -> str:
    image, annotation = f"images/{split}/{index:06d}.png", f"annotations/{split}/{index:06d}.png"
    _save_image(scene.image, folder / image)
    _save_image(scene.class_map, folder / annotation, PALETTE)
    return f"{image} {annotation}"


def _finish_seg(folder: Path, split: str, lines: list[str]) -> None:
    _write_lines(folder / f"{split}.txt", lines)
    _write_lines(folder / "labels.txt", CLASSES)


def _write_imagenet_scene(folder: Path, split: str, index: int, scene: Scene) -> str:
    value = scene.digits[0].value
    name = f"{_synset(value)}/{_synset(value)}_{index:06d}.png"
    _save_image(scene.image, folder / split / name)
    return f"{name} {value}"


def _finish_imagenet(folder: Path, split: str, lines: list[str]) -> None:
    _write_lines(folder / f"{split}.txt", lines)
    _write_lines(folder / "map_to_10.txt", (f"{_synset(value)} {value}" for value in range(10)))
    for value in range(10):  # also those that no scene of the split shows
        (folder / split / _synset(value)).mkdir(exist_ok=True)


def _synset(value: int) -> str:
    return f"n{value:08d}"


def _write_coco_scene(folder: Path, split: str, index: int, scene: Scene) -> dict[str, Any]:
    name = f"{index:06d}.png"
    _save_image(scene.image, folder / split / name)
    height, width = scene.image.shape[:2]
    annotations = [
        {
            "image_id": index + 1,
            "category_id": digit.class_id,
            "bbox": list(digit.box),
            "area": int(digit.mask.sum()),
            "segmentation": {"size": [height, width], "counts": run_lengths(digit.mask)},
            "iscrowd": 0,
        }
        for digit in scene.digits
    ]
    return {"image": {"id": index + 1, "file_name": name, "height": height, "width": width}, "annotations": annotations}


def _finish_coco(folder: Path, split: str, records: list[dict[str, Any]]) -> None:
    annotations = [annotation for record in records for annotation in record["annotations"]]
    document = {
        "info": {"description": "digits on photographs"},
        "images": [record["image"] for record in records],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES) if number > 0],
    }
    target = folder / "annotations" / f"instances_{split}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(json.dumps(document).encode())


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code of a bool mask [H, W]: column by column, starting with the zeros."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff([0, *changes, mask.size]).tolist()
