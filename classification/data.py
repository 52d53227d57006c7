"""Lists of images, the dataset that needs no state, and its loaders."""

from __future__ import annotations

import functools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from cyclemlp_backbones.interrupts import end_with_trainer, starting_workers
from cyclemlp_backbones.pictures import UNREADABLE, read_rgb

from .augment import EvalTransform, TrainTransform
from .config import Config
from .schedule import SAMPLE, Plan, generator

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
NO_LABEL = -1
NO_PICTURE = 2
"""Of `broken`: neither the image nor those after it could be read."""
_TRIES = 100
_LABELLED = re.compile(r"(.*\S)[ \t]+([0-9]+)", re.S)
_LABELLED_NAME = re.compile(r"\.\w+[ \t]+[0-9]+$")


@dataclass(frozen=True)
class Samples:
    """Images by their names below `root`, with class indices; `NO_LABEL` for all where there are none."""

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def fingerprint(self) -> str:
        """Names and labels in eight digits, with their number."""
        lines = "\n".join(f"{name} {label}" for name, label in zip(self.names, self.labels))
        return f"{len(self)} images, {zlib.crc32(lines.encode()):08x}"


def read_list(root: str | os.PathLike, path: str | os.PathLike, *, num_classes: int | None) -> Samples:
    """The samples of a text file: `name label` a line, with spaces or tabs between, or, with `num_classes` None, `name`
    (a label is ignored).

    Names may contain spaces. Errors name the line, or the lines that contradict each other.
    """
    names, labels = [], []
    seen: dict[str, tuple[int, int]] = {}
    for number, line in _lines(path):
        match = _LABELLED.fullmatch(line)
        if match and _LABELLED_NAME.search(match[1]):
            raise ValueError(f"{path}, line {number}: {line!r} has two labels")
        if num_classes is None:
            names.append(match[1] if match else line)
            labels.append(NO_LABEL)
            continue
        if not match or int(match[2]) >= num_classes:
            raise ValueError(
                f"{path}, line {number}: {line!r} is no `name label` with a label from 0 to {num_classes - 1} "
                "(model.num_classes - 1)"
            )
        names.append(match[1])
        labels.append(int(match[2]))
        first = seen.setdefault(names[-1], (number, labels[-1]))
        if first[1] != labels[-1]:
            raise ValueError(f"{path}, lines {first[0]} and {number}: {names[-1]!r} has different labels")
    if not names:
        raise ValueError(f"{path} lists no image")
    return Samples(Path(root), tuple(names), tuple(labels))


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Number and content of the lines that are not blank."""
    text = Path(path).read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a byte order mark
    for number, line in enumerate(text.split("\n"), start=1):  # names may hold what else splitlines() takes for an end
        if line := line.strip(" \t\r"):
            yield number, line


def read_class_map(path: str | os.PathLike) -> dict[str, int]:
    """`n01440764 0` a line -> {synset: class index}."""
    pairs = {}
    for number, line in _lines(path):
        words = line.split()
        if len(words) < 2 or not words[1].isdigit() or words[0] in pairs:
            raise ValueError(f"{path}, line {number}: {line!r} is no `synset index`, each synset once")
        pairs[words[0]] = int(words[1])
    if not pairs:
        raise ValueError(f"{path} maps no class")
    return pairs


def read_folders(root: str | os.PathLike, *, num_classes: int, class_map: str | os.PathLike | None = None) -> Samples:
    """The samples of one folder per class: the index is the folder's position by name, or `class_map`'s."""
    root = Path(root)
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if class_map is None:
        if len(folders) != num_classes:
            raise ValueError(
                f"{root} has {len(folders)} folders, model.num_classes is {num_classes}; without a list or "
                "data.class_map there must be one folder per class"
            )
        indices = {name: index for index, name in enumerate(folders)}
    else:
        indices = read_class_map(class_map)
        unknown = [name for name in folders if not 0 <= indices.get(name, -1) < num_classes]
        if unknown:
            raise ValueError(f"{root}: {class_map} gives no class below {num_classes} for {', '.join(unknown[:5])}")
    names = [f"{folder}/{name}" for folder in folders for name in image_names(root / folder)]
    if not names:
        raise ValueError(f"{root} holds no image in its folders")
    return Samples(root, tuple(names), tuple(indices[name.split("/")[0]] for name in names))


def image_names(folder: str | os.PathLike) -> list[str]:
    """The names of the image files in a folder, sorted."""
    return sorted(entry.name for entry in Path(folder).iterdir() if entry.name.lower().endswith(IMAGE_SUFFIXES))


def read_samples(config: Config, what: str) -> Samples:
    """What `data.{what}_images` and `data.{what}_list` name; `what` is "train" or "val"."""
    classes, images = config.model.num_classes, getattr(config.data, f"{what}_images")
    if not images:
        raise ValueError(f"data.{what}_images is not set; give the folder of the images")
    if not Path(images).is_dir():
        raise ValueError(f"data.{what}_images is {images!r}, which is no folder")
    if listing := getattr(config.data, f"{what}_list"):
        return read_list(images, listing, num_classes=classes)
    return read_folders(images, num_classes=classes, class_map=config.data.class_map)


class TrainDataset(paddle.io.Dataset):
    """Key (epoch, index, repetition) -> (image float32 [3, S, S], label, index, broken).

    What a key gives depends on nothing but the key and the seed. An unreadable image is replaced by the next one of the
    list, and `broken` is 1. It is NO_PICTURE, with zeros as image, where a hundred in a row cannot be read: an error
    in a worker would not reach the user as such.
    """

    def __init__(self, samples: Samples, transform: TrainTransform, *, seed: int):
        super().__init__()
        self.samples, self.transform, self.seed = samples, transform, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, np.int64, np.int64, np.int64]:
        epoch, index, repetition = key
        rng = generator(self.seed, SAMPLE, epoch, index, repetition)
        for tried in range(min(_TRIES, len(self.samples))):
            chosen = (index + tried) % len(self.samples)
            try:
                image = read_rgb(self.samples.path(chosen))
            except UNREADABLE:
                continue
            array = self.transform(image, rng)
            return array, np.int64(self.samples.labels[chosen]), np.int64(index), np.int64(tried > 0)
        zeros = np.zeros((3, self.transform.size, self.transform.size), np.float32)
        return zeros, np.int64(self.samples.labels[index]), np.int64(index), np.int64(NO_PICTURE)

    def __len__(self) -> int:
        return len(self.samples)


class EvalDataset(paddle.io.Dataset):
    """Index -> (image float32 [3, S, S], label, index, broken); an unreadable image is zeros."""

    def __init__(self, samples: Samples, transform: EvalTransform):
        super().__init__()
        self.samples, self.transform = samples, transform

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64, np.int64, np.int64]:
        try:
            array, broken = self.transform(read_rgb(self.samples.path(index))), 0
        except UNREADABLE:
            array, broken = np.zeros((3, self.transform.size, self.transform.size), np.float32), 1
        return array, np.int64(self.samples.labels[index]), np.int64(index), np.int64(broken)

    def __len__(self) -> int:
        return len(self.samples)


class _Batches(paddle.io.BatchSampler):
    """Batches of keys that are known beforehand."""

    def __init__(self, batches: Iterable[Sequence[Any]], length: int):
        self._batches, self._length = batches, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._length


def train_loader(
    dataset: TrainDataset, plan: Plan, *, rank: int, first_step: int, workers: int
) -> Iterator[list[paddle.Tensor]]:
    """The micro-batches of process `rank` from `first_step` to the end of the run; the workers are started once.

    ValueError where so many images in a row cannot be read that the folder must be the wrong one.
    """
    count = (plan.total_steps - first_step) * plan.accumulate
    for batch in _loader(dataset, _Batches(plan.micro_batches(first_step, rank), count), workers):
        lost = batch[2].numpy()[batch[3].numpy() == NO_PICTURE]
        if lost.size:
            raise ValueError(
                f"{dataset.samples.path(int(lost[0]))} cannot be read, nor can the images after it in the list; "
                "is data.train_images the right folder?"
            )
        yield batch


def eval_loader(
    dataset: EvalDataset, *, batch_size: int, workers: int, rank: int = 0, processes: int = 1
) -> paddle.io.DataLoader:
    """Every `processes`-th sample from the `rank`-th on: the processes together see each sample once."""
    own = range(rank, len(dataset), processes)
    batches = [list(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    return _loader(dataset, _Batches(batches, len(batches)), workers)


def _loader(dataset: paddle.io.Dataset, batches: _Batches, workers: int) -> paddle.io.DataLoader:
    workers = min(workers, max(1, len(batches)))
    init = functools.partial(end_with_trainer, os.getpid(), None)
    return _Loader(dataset, batch_sampler=batches, num_workers=workers, worker_init_fn=init)


class _Loader(paddle.io.DataLoader):
    def __iter__(self) -> Any:
        with starting_workers():
            return super().__iter__()


class BrokenImages:
    """The unreadable images seen so far. Raises ValueError when they are more than `most`, a share, of the samples."""

    def __init__(self, samples: Samples, most: float):
        self.samples, self.most = samples, most
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int]) -> list[str]:
        """Records positions in the list; returns the paths of those that are new."""
        new = sorted({int(index) for index in indices} - self.indices)
        self.indices.update(new)
        return [str(self.samples.path(index)) for index in new]

    def check(self) -> None:
        if len(self.indices) > self.most * len(self.samples):
            first = ", ".join(str(self.samples.path(index)) for index in sorted(self.indices)[:5])
            raise ValueError(
                f"{len(self.indices)} of {len(self.samples)} images cannot be read, more than data.max_broken "
                f"({self.most:.2%}) allows: {first}; repair or remove them, or raise the limit"
            )
