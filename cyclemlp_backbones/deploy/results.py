"""What predictions are written as: pictures for people, PNG masks, COCO's JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.deploy.drawing import Colour, fitted, mark, paint, with_legend
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


class _Writer:
    """What all tasks' results have: results.csv, a line for each of an image's results, and pictures."""

    def __init__(self, folder: Path, manifest: Manifest, header: Sequence[str], *, pictures: bool, video: Video | None):
        self.folder, self.manifest, self.pictures, self.video = folder, manifest, pictures, video
        folder.mkdir(parents=True, exist_ok=True)
        # A name that is no text in UTF-8 is written with backslashes.
        self._file = (folder / "results.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._header = header
        self._csv = csv.writer(self._file)
        self._csv.writerow(("image", *header, "result", "files"))

    def close(self) -> None:
        self._file.close()

    def _finish(self, file: ImageFile, rows: Sequence[Sequence[Any]], **pictures: Image.Image) -> dict[str, Any]:
        """Saves the pictures of an image, each in the folder of its name; its lines of results.csv (one without values
        if it has no results); what `predict_files` says of it."""
        files = []
        for part, picture in pictures.items():
            name = f"{part}/{file.name}{'.png' if part == 'masks' else '.jpg'}"
            if part == "overlays" and self.video is not None:
                name = f"{part}/{self.video.name}.mp4"
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if part == "overlays" and self.video is not None:
                self.video.write(path, picture)
            else:
                picture.save(path, quality=90)
            files.append(name)
        for row in rows or [[""] * len(self._header)]:
            self._csv.writerow((str(file.path), *row, file.name, ";".join(files)))
        results = [dict(zip(self._header, row)) for row in rows]
        return {"image": str(file.path), "results": results, "files": files}

    def _name(self, label: int) -> str:
        classes = self.manifest.classes
        return classes[label] if label < len(classes) else str(label)

    def _colours(self) -> tuple[Colour, ...]:
        return self.manifest.palette or class_palette(len(self.manifest.classes))

    def _legend(self, labels: Sequence[int]) -> list[tuple[str, Colour | None]]:
        """Names and colours of classes, white for none; of a video, whose pictures are of one size, of all."""
        shown = range(len(self.manifest.classes)) if self.video is not None else labels
        return [(self._name(n), (255, 255, 255) if n in self._plain() else self._colours()[n]) for n in shown]

    def _plain(self) -> tuple[int, ...]:
        """The class that is not coloured."""
        return (0,) if self.manifest.task == "seg" and self.manifest.classes[0].lower() in _BACKGROUND else ()


class ClassWriter(_Writer):
    """results.csv (image, rank, class, probability), and pictures with their best classes below."""

    def __init__(self, folder: Path, manifest: Manifest, *, top: int, pictures: bool, video: Video | None):
        header = ("rank", "number", "class", "probability")
        super().__init__(folder, manifest, header, pictures=pictures, video=video)
        self.top = top

    def write(self, file: ImageFile, image: Image.Image, logits: np.ndarray) -> dict[str, Any]:
        shares = softmax(logits, axis=0)
        best = np.argsort(-shares, kind="stable")[: self.top].tolist()
        rows = [(rank, label, self._name(label), _rounded(shares[label])) for rank, label in enumerate(best, 1)]
        if not self.pictures:
            return self._finish(file, rows)
        lines = [(f"{shares[label]:.1%}  {self._name(label)}", None) for label in best]
        return self._finish(file, rows, overlays=with_legend(fitted(image), lines))


class MaskWriter(_Writer):
    """masks/*.png with the class numbers, in the classes' colours; overlays; results.csv (image, class, pixels)."""

    def __init__(self, folder: Path, manifest: Manifest, *, pictures: bool, video: Video | None):
        header = ("number", "class", "pixels", "share")
        super().__init__(folder, manifest, header, pictures=pictures, video=video)

    def write(self, file: ImageFile, image: Image.Image, labels: np.ndarray) -> dict[str, Any]:
        counts, colours = np.bincount(labels.ravel()), self._colours()
        found = np.flatnonzero(counts).tolist()
        rows = [
            (label, self._name(label), int(counts[label]), _rounded(counts[label] / labels.size)) for label in found
        ]
        if len(colours) > 256:
            mask = Image.fromarray(labels.astype(np.uint16))
        else:
            mask = Image.fromarray(labels.astype(np.uint8))
            mask.putpalette([channel for colour in colours for channel in colour])
        if not self.pictures:
            return self._finish(file, rows, masks=mask)
        overlay = with_legend(paint(image, labels, colours, self._plain()), self._legend(found))
        return self._finish(file, rows, masks=mask, overlays=overlay)


class DetectionWriter(_Writer):
    """detections.json, COCO's list of results; images.json, the images and categories that its ids stand for;
    results.csv; overlays with boxes, names, scores and masks."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        image_ids: Mapping[ImageFile, int] | None,
        draw_threshold: float,
        pictures: bool,
        video: Video | None,
    ):
        header = ("image_id", "category_id", "class", "score", "x1", "y1", "x2", "y2")
        super().__init__(folder, manifest, header, pictures=pictures, video=video)
        self._ids, self._draw_threshold = image_ids, draw_threshold
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def write(self, file: ImageFile, image: Image.Image, found: Detections) -> dict[str, Any]:
        identity = len(self._images) + 1 if self._ids is None else self._ids[file]
        self._images.append({"id": identity, "file_name": file.file_name, "width": image.width, "height": image.height})
        rows = []
        for index, (label, score, box) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), found.boxes)):
            x1, y1, x2, y2 = (round(float(value), 3) for value in box)
            category = self.manifest.category_ids[label]
            rows.append((identity, category, self._name(label), _rounded(score), x1, y1, x2, y2))
            result = {
                "image_id": identity,
                "category_id": category,
                "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                "score": _rounded(score),
            }
            if found.masks is not None:
                result["segmentation"] = found.masks[index]
            self._results.append(result)
        return self._finish(file, rows, **({"overlays": self._draw(image, found)} if self.pictures else {}))

    def close(self) -> None:
        super().close()
        categories = [
            {"id": identity, "name": self._name(number)} for number, identity in enumerate(self.manifest.category_ids)
        ]
        described = {"info": {}, "images": self._images, "categories": categories, "annotations": []}
        (self.folder / "images.json").write_text(json.dumps(described), encoding="utf-8")
        (self.folder / "detections.json").write_text(json.dumps(self._results), encoding="utf-8")

    def _draw(self, image: Image.Image, found: Detections) -> Image.Image:
        picture = fitted(image)
        factors = (picture.width / image.width, picture.height / image.height) * 2
        drawn = np.flatnonzero(found.scores >= self._draw_threshold)
        for index in drawn[np.argsort(found.scores[drawn], kind="stable")].tolist():  # the best on top
            label = int(found.labels[index])
            mask = None if found.masks is None else decode_mask(found.masks[index])
            box = [float(value) * factor for value, factor in zip(found.boxes[index], factors)]
            mark(picture, box, f"{self._name(label)} {found.scores[index]:.2f}", self._colours()[label], mask)
        heading = f"threshold {self._draw_threshold:.2f}: {len(drawn)} of {len(found.scores)} objects"
        return with_legend(picture, [(heading, None), *self._legend(np.unique(found.labels[drawn]).tolist())])


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
