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
from PIL import Image, ImageDraw, ImageFont

from cyclemlp_backbones.deploy.images import ImageFile
from cyclemlp_backbones.deploy.manifest import Manifest
from cyclemlp_backbones.pictures import class_palette

_LARGEST_PICTURE = 2048
_OPACITY = 0.5


@dataclass(frozen=True)
class Detections:
    """An image's objects: `labels` [R] class numbers, `scores` [R], `boxes` [R, 4] (x1, y1, x2, y2 in the picture's
    pixels), `masks` COCO run-length codes of the picture's size, or None."""

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: Sequence[Mapping[str, Any]] | None = None


class _Writer:
    def __init__(self, folder: Path, manifest: Manifest, header: Sequence[str], *, pictures: bool):
        self.folder, self.manifest, self.pictures = folder, manifest, pictures
        folder.mkdir(parents=True, exist_ok=True)
        # A name that is no text in UTF-8 is written with backslashes.
        self._file = (folder / "results.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self._csv = csv.writer(self._file)
        self._csv.writerow((*header, "result"))

    def close(self) -> None:
        self._file.close()

    def _row(self, file: ImageFile, *values: Any) -> None:
        """A line of results.csv: the image, `values`, and the name of its mask and overlay without their suffix."""
        self._csv.writerow((str(file.path), *values, file.name))

    def _save(self, image: Image.Image, part: str, name: str, suffix: str, **options: Any) -> None:
        path = self.folder / part / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)

    def _name(self, label: int) -> str:
        classes = self.manifest.classes
        return classes[label] if label < len(classes) else str(label)

    def _colours(self) -> tuple[tuple[int, int, int], ...]:
        return self.manifest.palette or class_palette(len(self.manifest.classes))


class ClassWriter(_Writer):
    """results.csv (image, rank, class, probability), and pictures with their best classes below."""

    def __init__(self, folder: Path, manifest: Manifest, *, top: int, pictures: bool):
        super().__init__(folder, manifest, ("image", "rank", "number", "class", "probability"), pictures=pictures)
        self.top = top

    def write(self, file: ImageFile, image: Image.Image, logits: np.ndarray) -> None:
        shares = softmax(logits, axis=0)
        best = np.argsort(-shares, kind="stable")[: self.top]
        for rank, label in enumerate(best.tolist(), 1):
            self._row(file, rank, label, self._name(label), f"{shares[label]:.6f}")
        if self.pictures:
            lines = [f"{shares[label]:6.1%}  {self._name(label)}" for label in best.tolist()]
            self._save(_with_lines(_smaller(image), lines), "overlays", file.name, ".jpg", quality=90)


class MaskWriter(_Writer):
    """masks/*.png with the class numbers, in the classes' colours; overlays; results.csv (image, class, pixels)."""

    def __init__(self, folder: Path, manifest: Manifest, *, pictures: bool):
        super().__init__(folder, manifest, ("image", "number", "class", "pixels", "share"), pictures=pictures)

    def write(self, file: ImageFile, image: Image.Image, labels: np.ndarray) -> None:
        counts = np.bincount(labels.ravel())
        for label in np.flatnonzero(counts).tolist():
            share = counts[label] / labels.size
            self._row(file, label, self._name(label), counts[label], f"{share:.6f}")
        if len(self._colours()) > 256:
            mask = Image.fromarray(labels.astype(np.uint16))
        else:
            mask = Image.fromarray(labels.astype(np.uint8))
            mask.putpalette([channel for colour in self._colours() for channel in colour])
        self._save(mask, "masks", file.name, ".png")
        if self.pictures:
            size = _smaller_size(image)
            colours = np.asarray(self._colours(), np.uint8)
            small = Image.fromarray(labels.astype(np.uint16) if len(colours) > 256 else labels.astype(np.uint8))
            shown = Image.fromarray(colours[np.asarray(small.resize(size, Image.Resampling.NEAREST))])
            self._save(Image.blend(_smaller(image), shown, _OPACITY), "overlays", file.name, ".jpg", quality=90)


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
    ):
        header = ("image", "image_id", "category_id", "class", "score", "x1", "y1", "x2", "y2")
        super().__init__(folder, manifest, header, pictures=pictures)
        self._ids, self._draw_threshold = image_ids, draw_threshold
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def write(self, file: ImageFile, image: Image.Image, found: Detections) -> None:
        identity = len(self._images) + 1 if self._ids is None else self._ids[file]
        self._images.append({"id": identity, "file_name": file.file_name, "width": image.width, "height": image.height})
        for index, (label, score, box) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), found.boxes)):
            x1, y1, x2, y2 = (round(float(value), 3) for value in box)
            category = self.manifest.category_ids[label]
            self._row(file, identity, category, self._name(label), f"{score:.6f}", x1, y1, x2, y2)
            result = {
                "image_id": identity,
                "category_id": category,
                "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                "score": round(score, 6),
            }
            if found.masks is not None:
                result["segmentation"] = found.masks[index]
            self._results.append(result)
        if self.pictures:
            self._save(self._draw(image, found), "overlays", file.name, ".jpg", quality=90)

    def close(self) -> None:
        super().close()
        categories = [
            {"id": identity, "name": self._name(number)} for number, identity in enumerate(self.manifest.category_ids)
        ]
        described = {"info": {}, "images": self._images, "categories": categories, "annotations": []}
        (self.folder / "images.json").write_text(json.dumps(described), encoding="utf-8")
        (self.folder / "detections.json").write_text(json.dumps(self._results), encoding="utf-8")

    def _draw(self, image: Image.Image, found: Detections) -> Image.Image:
        picture = _smaller(image).copy()
        factors = (picture.width / image.width, picture.height / image.height) * 2
        for index in np.argsort(found.scores, kind="stable").tolist():  # the best on top
            if found.scores[index] < self._draw_threshold:
                continue
            label = int(found.labels[index])
            colour = self._colours()[label]
            if found.masks is not None:
                mask = Image.fromarray(decode_mask(found.masks[index]) * np.uint8(255 * _OPACITY))
                picture.paste(colour, (0, 0), mask.resize(picture.size, Image.Resampling.NEAREST))
            corners = [float(value) * factor for value, factor in zip(found.boxes[index], factors)]
            draw = ImageDraw.Draw(picture)
            draw.rectangle(
                (min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])), None, colour, 2
            )
            _label(draw, (corners[0], corners[1]), f"{self._name(label)} {found.scores[index]:.2f}", colour)
        return picture


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


def _smaller_size(image: Image.Image) -> tuple[int, int]:
    scale = min(1.0, _LARGEST_PICTURE / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _smaller(image: Image.Image) -> Image.Image:
    size = _smaller_size(image)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _with_lines(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture, at least 240 wide, with lines of text below."""
    scale = max(1.0, min(240 / image.width, 4096 / image.height))
    shown = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    line = 14
    panel = Image.new("RGB", (max(240, shown.width), shown.height + line * len(lines) + 6), "white")
    panel.paste(shown, (0, 0))
    draw = ImageDraw.Draw(panel)
    for index, text in enumerate(lines):
        draw.text((4, shown.height + 3 + line * index), _printable(text), fill="black", font=ImageFont.load_default())
    return panel


def _label(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    text, font = _printable(text), ImageFont.load_default()
    left, top, right, bottom = draw.textbbox(corner, text, font=font)
    draw.rectangle((left, top, right + 2, bottom + 1), fill=colour)
    draw.text((corner[0] + 1, corner[1]), text, fill="black" if sum(colour) > 380 else "white", font=font)


def _printable(text: str) -> str:
    """Pillow's oldest default font has Latin letters only."""
    return text.encode("latin-1", "replace").decode("latin-1")
