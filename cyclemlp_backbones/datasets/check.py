"""Every image and label of a data set, read once: what is there, and what a training would stumble over."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.coco import check_class_count, examine_annotations
from cyclemlp_backbones.datasets.samples import SampleError, checked_sample
from cyclemlp_backbones.pictures import FORMATS, shown_size


@dataclass(frozen=True)
class Files:
    """A data set as far as its files go: images, or pairs of image and mask. Of images, `counts` are how often each
    class is there, and `sizes`, (width, height), what an annotation file states."""

    file_list: Sequence[Sequence[str]]
    num_classes: int = 0
    ignore_index: int = 255
    counts: Sequence[Mapping[int, int]] = ()
    sizes: Sequence[tuple[float, float]] = ()

    def __len__(self) -> int:
        return len(self.file_list)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, *masks = self.file_list[index]
        size = shown_size(image, whole=True)
        if self.sizes and size != self.sizes[index]:
            stated = " x ".join(f"{side:g}" for side in self.sizes[index])
            raise ValueError(f"the image is {size[0]} x {size[1]}, its annotations are of {stated}")
        if not masks:
            return {"size": size, "counts": self.counts[index]}
        with Image.open(masks[0], formats=FORMATS) as mask:
            return {"size": size, "label": np.asarray(mask)}


@dataclass
class Split:
    """One section of a configuration: `settings` name what lists its files, `unit` what `counts` counts per class,
    `images` how many images show it. `faults` end or spoil a training, `notes` do not."""

    section: str
    settings: str
    unit: str
    dataset: Any = Files(())
    names: Sequence[str] = ()
    sizes: list[tuple[int, int]] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, workers: int, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        """Reads the samples in `workers` processes."""
        empty = 0
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (self.dataset,))
        try:
            for size, counts, fault in progress(pool.map(_examine, range(len(self.dataset)), chunksize=8)):
                if fault:
                    self.faults.append(f"{fault} ({self.settings})")
                    continue
                self.sizes.append(size)
                self.counts.update(counts)
                self.images.update(counts.keys())
                empty += not counts
        except BrokenProcessPool as error:
            raise ValueError("a process that reads images was killed, as for memory; try --workers 1") from error
        finally:
            pool.shutdown(cancel_futures=True)
        if empty:
            self.notes.append(f"{empty} images without {self.unit} of any class")
        if unseen := [name for index, name in enumerate(self.names) if not self.counts[index]]:
            self.notes.append(f"{len(unseen)} classes without {self.unit}: {', '.join(unseen[:10])}")

    def report(self) -> dict[str, Any]:
        """All of it as JSON holds it; sizes as minimum, median, maximum."""
        told: dict[str, Any] = {"section": self.section, "samples": len(self.dataset)}
        for side, lengths in zip(("width", "height"), zip(*self.sizes)):
            told[side] = [int(summary(lengths)) for summary in (min, np.median, max)]
        told["classes"] = [
            {"class": index, "name": name, "images": self.images[index], self.unit: self.counts[index]}
            for index, name in enumerate(self.names)
        ]
        return {**told, "faults": self.faults, "notes": self.notes}

    def table(self) -> str:
        """The report without its faults, to be read."""
        report, columns = self.report(), [*dict.fromkeys(("images", self.unit))]
        lines = [f"{self.section}: {report['samples']} images"]
        for side in ("width", "height"):
            if side in report:
                least, median, most = report[side]
                lines.append(f"  {side:<6} {least} to {most}, median {median}")
        lines.append(f"  {'class':<24}" + "".join(f"{column:>14}" for column in columns))
        for row in report["classes"]:
            name = f"{row['class']} {row['name']}"
            lines.append(f"  {name:<24}" + "".join(f"{row[column]:>14,}" for column in columns))
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


_dataset: Any = None


def _start(dataset: Any) -> None:
    global _dataset
    _dataset = dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for the results ends its workers


def _examine(index: int) -> tuple[tuple[int, int], Mapping[int, int], str]:
    """Of one sample: its size, how often each class is there, and the fault."""
    try:
        sample = checked_sample(_dataset, index)
    except SampleError as error:
        return (0, 0), {}, str(error)
    if "counts" in sample:
        return sample["size"], sample["counts"], ""
    label = sample["label"]
    pixels = np.bincount(label[label != getattr(_dataset, "ignore_index", 255)].astype(int)).tolist()
    return label.shape[:-3:-1], {index: count for index, count in enumerate(pixels) if count}, ""


def segmentation_splits(tree: Mapping[str, Any], open_dataset: Callable[[Mapping[str, Any]], Any]) -> Iterator[Split]:
    """PaddleSeg's train_dataset and val_dataset; `open_dataset` makes those that are no plain `Dataset` of lists."""
    for section, key in (("train_dataset", "train_path"), ("val_dataset", "val_path")):
        if not (settings := tree.get(section)):
            continue
        split = Split(section, f"{section}.{key} and dataset_root", "pixels")
        root, listing = Path(settings.get("dataset_root") or ""), Path(settings.get(key) or "")
        plain, count = settings.get("type") == "Dataset", settings.get("num_classes")
        of_model = tree.get("model", {}).get("num_classes", count)
        if not root.is_dir():
            split.faults.append(f"{section}.dataset_root is {str(root)!r}, which is no folder")
        elif not plain:
            split.dataset = open_dataset(settings)
        elif not isinstance(count, int) or count != of_model:
            split.faults.append(f"{section}.num_classes is {count}, model.num_classes {of_model}; make them equal")
        elif not listing.is_file():
            split.faults.append(f"{section}.{key} is {str(listing)!r}, which is no file")
        else:
            pairs, separator = [], settings.get("separator", " ")
            for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
                pairs.append([str(root / name) for name in line.strip().split(separator)])
                if len(pairs[-1]) != 2:
                    told = f"{listing}, line {number}: {line!r} is no image and mask with {separator!r} between"
                    split.faults.append(f"{told} ({section}.separator)")
            pairs = [pair for pair in pairs if len(pair) == 2]
            split.dataset = Files(pairs, count, settings.get("ignore_index", 255))
        count, labels = getattr(split.dataset, "num_classes", 0), root / "labels.txt"
        names = labels.read_text(encoding="utf-8").splitlines()[:count] if labels.is_file() else []
        split.names = [*names, *map(str, range(len(names), count))]
        yield split


def detection_splits(tree: Mapping[str, Any]) -> Iterator[Split]:
    """PaddleDetection's TrainDataset and EvalDataset, whose annotations are COCO's."""
    first: Sequence[str] = ()
    for section in ("TrainDataset", "EvalDataset"):
        if not (settings := tree.get(section)):
            continue
        if "COCODataSet" not in str(settings.get("name")):
            raise ValueError(f"{section}.name is {settings.get('name')!r}; `cyclemlp data check` reads COCODataSet")
        split = Split(section, f"{section}.dataset_dir, image_dir and anno_path", "boxes")
        path, image_dir = (
            Path(settings.get("dataset_dir") or "", settings.get(key) or "") for key in ("anno_path", "image_dir")
        )
        try:
            document, faults, split.notes = examine_annotations(path, image_dir, fields=settings.get("data_fields", ()))
            split.faults += map(str, faults)
            if document:
                split.names = [category["name"] for category in document["categories"]]
                order = [category["id"] for category in document["categories"]]  # PaddleDetection's of the classes
                boxes: dict[Any, Counter[int]] = {image["id"]: Counter() for image in document["images"]}
                for entry in document.get("annotations", ()):
                    if entry.get("category_id") in order and entry.get("image_id") in boxes:
                        boxes[entry["image_id"]][order.index(entry["category_id"])] += 1
                files = [[str(image_dir / image["file_name"])] for image in document["images"]]
                sizes = [(image["width"], image["height"]) for image in document["images"]]
                split.dataset = Files(files, counts=[*boxes.values()], sizes=sizes)
            check_class_count(path, len(split.names), tree.get("num_classes", len(split.names)))
        except (ValueError, OSError) as error:
            split.faults.append(f"{error} ({split.settings})")
        first = first or split.names
        if split.names and split.names != first:
            split.faults.append(
                f"{path}: its categories differ from TrainDataset's, by whose order classes are numbered"
            )
        yield split


def classification_splits(read_samples: Callable[[str], Any], wanted: Iterable[str], classes: int) -> Iterator[Split]:
    """The pretraining program's training and validation images, which `read_samples` of it lists."""
    for what in wanted:
        split = Split(f"data.{what}_images", f"data.{what}_images and data.{what}_list", "images")
        try:
            samples = read_samples(what)
            files = [[str(samples.path(index))] for index in range(len(samples))]
            split.dataset = Files(files, counts=[{label: 1} for label in samples.labels])
            folders = {label: name.rpartition("/")[0] for name, label in zip(samples.names, samples.labels)}
            split.names = [folders.get(label) or str(label) for label in range(classes)]
        except (ValueError, OSError) as error:
            split.faults.append(str(error))
        yield split
