"""What predictions are written as: pictures for people, PNG masks, COCO's JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.deploy.drawing import Colour, Object, fitted, paint, with_legend, with_objects
from cyclemlp_backbones.deploy.images import ImageFile
from cyclemlp_backbones.deploy.manifest import Manifest
from cyclemlp_backbones.deploy.video import Video
from cyclemlp_backbones.pictures import class_palette

_BACKGROUND = ("background", "_background_", "背景", "0")
"""What class 0 is called where it is nothing in particular, or where classes have numbers alone."""


@dataclass(frozen=True)
class Detections:
    """An image's objects: `labels` [R] class numbers, `scores` [R], `boxes` [R, 4] (x1, y1, x2, y2 in the picture's
    pixels), `masks` COCO run-length codes of the picture's size, or None."""

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: Sequence[Mapping[str, Any]] | None = None


_COLUMNS = {
    "cls": ("rank", "number", "class", "probability"),
    "seg": ("number", "class", "pixels", "share"),
    "det": ("image_id", "category_id", "class", "score", "x1", "y1", "x2", "y2"),
}
"""Of results.csv, between the image and the files."""


class Describer:
    """What a model's results say, in words and in pictures, by the task of its `manifest`.

    `top` is the number of classes of an image, `draw_threshold` the lowest score drawn. Legends name the classes found,
    or, with `all_classes`, those of the model, so that all pictures of one size get legends of one size.
    """

    def __init__(
        self, manifest: Manifest, *, top: int = 5, draw_threshold: float = 0.5, all_classes: bool = False
    ) -> None:
        self.manifest, self.top, self.draw_threshold, self.all_classes = manifest, top, draw_threshold, all_classes
        self.colours: tuple[Colour, ...] = manifest.palette or class_palette(len(manifest.classes))
        background = manifest.task == "seg" and manifest.classes[0].lower() in _BACKGROUND
        self._plain = (0,) if background else ()  # the class that is not coloured

    def rows(self, result: Any) -> list[dict[str, Any]]:
        """Of logits [classes], labels [H, W] or `Detections`: a line of results.csv for each class or object."""
        if self.manifest.task == "cls":
            shares = softmax(result, axis=0)
            rows: Any = [(n, label, self.name(label), shares[label]) for n, label in enumerate(self._best(shares), 1)]
        elif self.manifest.task == "seg":
            counts = np.bincount(result.ravel())
            found = np.flatnonzero(counts).tolist()
            rows = [(label, self.name(label), int(counts[label]), counts[label] / result.size) for label in found]
        else:
            return [
                {
                    "category_id": self.manifest.category_ids[label],
                    "class": self.name(label),
                    "score": _rounded(score),
                    **{key: round(float(value), 3) for key, value in zip(_COLUMNS["det"][4:], box)},
                }
                for label, score, box in zip(result.labels.tolist(), result.scores.tolist(), result.boxes)
            ]
        return [dict(zip(_COLUMNS[self.manifest.task], (*row[:-1], _rounded(row[-1])))) for row in rows]

    def overlay(self, image: Image.Image, result: Any) -> Image.Image:
        """The picture with its classes or objects, and a legend below."""
        if self.manifest.task == "cls":
            shares = softmax(result, axis=0)
            lines = [(f"{shares[label]:.1%}  {self.name(label)}", None) for label in self._best(shares)]
            return with_legend(fitted(image), lines)
        if self.manifest.task == "seg":
            return with_legend(paint(image, result, self.colours, self._plain), self._legend(np.unique(result)))
        masks = [None] * len(result.scores) if result.masks is None else [partial(decode_mask, m) for m in result.masks]
        objects = map(Object, result.labels.tolist(), result.scores.tolist(), result.boxes, masks)
        legend = range(len(self.manifest.classes)) if self.all_classes else None
        return with_objects(image, objects, self.manifest.classes, self.colours, self.draw_threshold, legend)

    def mask(self, labels: np.ndarray) -> Image.Image:
        """Class numbers as a picture that shows the classes' colours."""
        if len(self.colours) > 256:
            return Image.fromarray(labels.astype(np.uint16))
        mask = Image.fromarray(labels.astype(np.uint8))
        mask.putpalette([channel for colour in self.colours for channel in colour])
        return mask

    def name(self, label: int) -> str:
        classes = self.manifest.classes
        return classes[label] if label < len(classes) else str(label)

    def _best(self, shares: np.ndarray) -> list[int]:
        return np.argsort(-shares, kind="stable")[: self.top].tolist()

    def _legend(self, found: np.ndarray) -> list[tuple[str, Colour | None]]:
        """Names and colours, white for none."""
        shown = range(len(self.manifest.classes)) if self.all_classes else found.tolist()
        return [(self.name(n), (255, 255, 255) if n in self._plain else self.colours[n]) for n in shown]


class Writer:
    """Results as files: results.csv, a line for each class or object; overlays/*.jpg with `pictures`, one of a whole
    `video`; of segmentation masks/*.png; of detection detections.json, COCO's list of results, and images.json, the
    images and categories that its ids stand for."""

    def __init__(
        self,
        folder: Path,
        describer: Describer,
        *,
        image_ids: Mapping[ImageFile, int] | None = None,
        pictures: bool = True,
        video: Video | None = None,
    ) -> None:
        self.folder, self.describer, self.pictures, self.video = folder, describer, pictures, video
        self._ids, self._task = image_ids, describer.manifest.task
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        # A name that is no text in UTF-8 is written with backslashes.
        self._file = (folder / "results.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.DictWriter(self._file, ("image", *_COLUMNS[self._task], "result", "files"))
        self._csv.writeheader()

    def write(self, file: ImageFile, image: Image.Image, result: Any) -> dict[str, Any]:
        """Writes an image's results, one line without values where it has none; its `image`, `results` and `files`."""
        rows = self.describer.rows(result)
        if self._task == "det":
            rows = self._as_coco(file, image, rows, result)
        files = []
        if self._task == "seg":
            files.append(self._save(self.describer.mask(result), f"masks/{file.name}.png"))
        if self.pictures:
            overlay = self.describer.overlay(image, result)
            name = f"{file.name}.jpg" if self.video is None else f"{self.video.name}.mp4"
            files.append(self._save(overlay, f"overlays/{name}"))
        told = {"image": str(file.path), "result": file.name, "files": ";".join(files)}
        self._csv.writerows({**row, **told} for row in rows or [{}])
        return {"image": str(file.path), "results": rows, "files": files}

    def close(self) -> None:
        self._file.close()
        if self._task != "det":
            return
        ids = enumerate(self.describer.manifest.category_ids)
        categories = [{"id": identity, "name": self.describer.name(number)} for number, identity in ids]
        described = {"info": {}, "images": self._images, "categories": categories, "annotations": []}
        (self.folder / "images.json").write_text(json.dumps(described), encoding="utf-8")
        (self.folder / "detections.json").write_text(json.dumps(self._results), encoding="utf-8")

    def _save(self, picture: Image.Image, name: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".mp4") and self.video is not None:
            self.video.write(path, picture)
        else:
            picture.save(path, quality=90)
        return name

    def _as_coco(
        self, file: ImageFile, image: Image.Image, rows: Sequence[Mapping[str, Any]], found: Detections
    ) -> list[dict[str, Any]]:
        """Keeps the objects for detections.json; the rows with the image's id."""
        identity = len(self._images) + 1 if self._ids is None else self._ids[file]
        self._images.append({"id": identity, "file_name": file.file_name, "width": image.width, "height": image.height})
        for index, row in enumerate(rows):
            x1, y1, x2, y2 = (row[side] for side in _COLUMNS["det"][4:])
            box = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            result = {"image_id": identity, "category_id": row["category_id"], "bbox": box, "score": row["score"]}
            if found.masks is not None:
                result["segmentation"] = found.masks[index]
            self._results.append(result)
        return [{"image_id": identity, **row} for row in rows]


def _rounded(share: float) -> float:
    return round(float(share), 6)


def softmax(logits: np.ndarray, *, axis: int) -> np.ndarray:
    """Probabilities along `axis`, in the logits' dtype."""
    shares = np.exp(logits - logits.max(axis=axis, keepdims=True))
    shares /= shares.sum(axis=axis, keepdims=True)
    return shares


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] of 0 and 1 as COCO's run-length code, with text that JSON takes."""
    from pycocotools import mask as codes

    code = codes.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(size) for size in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_mask(code: Mapping[str, Any]) -> np.ndarray:
    from pycocotools import mask as codes

    return codes.decode(dict(code))


def coco_image_ids(files: Sequence[ImageFile], annotations: Path) -> dict[ImageFile, int]:
    """The ids that a COCO annotation file has for `files`: that of the file_name which is the longest end of an image's
    path, else of the only one that ends like the path. ValueError for another file, and for images without an id of
    their own."""
    known: dict[str, list[tuple[str, int]]] = defaultdict(list)
    try:
        for image in json.loads(annotations.read_text(encoding="utf-8-sig"))["images"]:
            known[Path(image["file_name"]).name].append((Path(image["file_name"]).as_posix(), int(image["id"])))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{annotations} is no COCO annotation file: {type(error).__name__}: {error}") from error
    lacking = [file.file_name for file in files if file.path.name not in known]
    if lacking:
        raise ValueError(f"the annotations of --coco-images lack {len(lacking)} images, {lacking[0]} first")
    ids: dict[ImageFile, int] = {}
    owners: dict[int, ImageFile] = {}
    for file in files:
        path = f"/{file.path.absolute().as_posix()}"
        same_name = known[file.path.name]
        ends = [entry for entry in same_name if path.endswith(f"/{entry[0]}")]
        longest = max((len(name) for name, _ in ends), default=0)
        found = {identity for name, identity in ends or same_name if len(name) == longest or not ends}
        if len(found) > 1:
            raise ValueError(f"{annotations} has {len(found)} images that may be {file.path}: ids {sorted(found)}")
        (ids[file],) = found
        other = owners.setdefault(ids[file], file)
        if other is not file:
            raise ValueError(f"{annotations} has one image for two, {other.path} and {file.path}: id {ids[file]}")
    return ids
