"""What an annotation file in COCO's format has to hold, checked before training or evaluation begins."""

from __future__ import annotations

import codecs
import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
_SLACK = 1.0  # pixels that a box may reach outside its image without a word: rounding

_TYPES: dict[str, Any] = {"an integer": int, "a number": (int, float), "text": str, "an integer or text": (int, str)}
_ENTRIES = {
    "images": {"id": "an integer", "file_name": "text", "width": "a number", "height": "a number"},
    "categories": {"id": "an integer or text", "name": "text"},
    "annotations": {"id": "an integer"},
}


def check_annotations(path: str | os.PathLike, image_dir: str | os.PathLike, *, fields: Collection[str] = ()) -> None:
    """Raises the first fault that `examine_annotations` finds, and warns of what training can do without or with."""
    _, faults, notes = examine_annotations(path, image_dir, fields=fields)
    if faults:
        raise faults[0]
    for note in notes:
        _LOG.warning("%s", note)


def examine_annotations(
    path: str | os.PathLike, image_dir: str | os.PathLike, *, fields: Collection[str] = ()
) -> tuple[dict[str, Any], list[ValueError], list[str]]:
    """Reads the annotation file `path`, whose images lie in `image_dir`: what it holds ({} with faulty
    entries), its faults, and notes.

    `fields` are a data set's `data_fields`: with gt_bbox there have to be annotations, with gt_poly masks.

    ValueError (FileNotFoundError for a missing file) for a file that says nothing: no valid JSON, no categories or
    images, none of the images there. Faults, which name the file and the entry: an entry without what COCO's tools
    read of it, an annotation of an unknown category, a box that is no box or wholly outside its image, a mask that is
    none, or of another size. Notes count what training can do without or with: images that are missing, boxes without
    an area, boxes that reach outside their image.
    """
    document = _read(Path(path))
    images, annotations = document["images"], document.get("annotations", None if "gt_bbox" in fields else [])
    if not isinstance(annotations, list):
        raise ValueError(f"{path} has no list of annotations, which training takes")
    faults = []
    for kind, names in _ENTRIES.items():
        for index, entry in enumerate(document.get(kind, ())):
            try:
                _check_entry(f"{path}: entry {index} of {kind}", entry, names)
            except ValueError as error:
                faults.append(error)
    if faults:
        return {}, faults, []
    notes = _check_images(path, images, Path(image_dir))
    categories = {category["id"] for category in document["categories"]}
    sizes = {image["id"]: (float(image["height"]), float(image["width"])) for image in images}
    kinds: dict[str, list[object]] = {"empty": [], "reaching": [], "inside": []}
    for annotation in annotations:
        number, size, kind = annotation["id"], sizes.get(annotation.get("image_id")), "inside"
        try:
            if annotation.get("category_id") not in categories:
                raise ValueError(
                    f"{path}: annotation {number} is of category {annotation.get('category_id')!r}, "
                    f"which is not among the file's {len(categories)} categories"
                )
            if size is None:
                image = annotation.get("image_id")
                raise ValueError(f"{path}: annotation {number} is of image {image!r}, which the file does not list")
            if "bbox" in annotation:
                _check_entry(f"{path}: annotation {number}", annotation, {"iscrowd": "an integer", "area": "a number"})
                kind = _box_kind(path, number, annotation["bbox"], size)
                if "gt_poly" in fields and kind != "empty" and not annotation["iscrowd"]:
                    _check_mask(path, number, annotation.get("segmentation"))
            if isinstance(annotation.get("segmentation"), Mapping):
                _check_run_lengths(path, number, annotation["segmentation"], size)
            kinds[kind].append(number)
        except ValueError as error:
            faults.append(error)
    for kind, what in (
        ("empty", "without an area, which are left out"),
        ("reaching", "that reach outside their image, which are used as they are"),
    ):
        if numbers := kinds[kind]:
            total = len(annotations)
            notes.append(f"{path}: {len(numbers)} of {total} boxes {what}; the first is annotation {numbers[0]}")
    return document, faults, notes


def check_class_count(path: str | os.PathLike, categories: int, num_classes: int, where: str = "") -> None:
    """ValueError, with `where` before it, if the file `path` has more categories than a model has classes."""
    if categories > num_classes:
        raise ValueError(
            f"{where}num_classes is {num_classes}, but {path} has {categories} categories; "
            f"set num_classes: {categories}"
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no annotation file {path}; put the data there, or set the dataset's dataset_dir and anno_path"
        )
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError(f"{path} begins with a byte order mark, which COCO's tools refuse; write it as plain UTF-8")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    for name in ("images", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise ValueError(f"{path} has no list of {name}; it takes COCO's format of instances")
        if not document[name]:
            raise ValueError(f"{path}: its list of {name} is empty")
    return document


def _check_entry(where: str, entry: Any, names: Mapping[str, str]) -> None:
    """ValueError unless `entry` has a value for each of `names`, of the type that stands there."""
    for name, wanted in names.items():
        value = entry.get(name) if isinstance(entry, Mapping) else None
        if not isinstance(value, _TYPES[wanted]):
            given = f"no {name}" if value is None else f"the {name} {value!r}"
            raise ValueError(f"{where} has {given}; it takes {wanted}")


def _check_mask(path: str | os.PathLike, number: object, mask: Any) -> None:
    polygons = mask if isinstance(mask, list) and mask else [None]
    good = [isinstance(points, list) and len(points) >= 6 and not len(points) % 2 for points in polygons]
    if not isinstance(mask, Mapping) and not all(good):
        raise ValueError(
            f"{path}: the segmentation of annotation {number} is {str(mask)[:60]}; masks take polygons of 3 points and "
            "more, [[x1, y1, x2, y2, x3, y3, …], …], or a run-length code"
        )


def _check_images(path: str | os.PathLike, images: Sequence[Mapping[str, Any]], image_dir: Path) -> list[str]:
    """A note of the images that are missing; FileNotFoundError if all are."""
    missing = [image["file_name"] for image in images if not (image_dir / image["file_name"]).is_file()]
    if len(missing) == len(images):
        raise FileNotFoundError(
            f"{path}: none of its {len(images)} images is in {image_dir}, for example {missing[0]}; "
            "check dataset_dir and image_dir of the configuration's dataset"
        )
    note = f"{path}: {len(missing)} of {len(images)} images are missing and left out"
    return [f"{note}; the first is {image_dir / missing[0]}"] if missing else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _box_kind(path: str | os.PathLike, number: object, box: Any, size: tuple[float, float]) -> str:
    """ "inside", "reaching" outside the image, or "empty"; a box wholly outside, or none at all, is an error."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{path}: the box of annotation {number} is {box!r}; it takes [x, y, width, height]")
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return "empty"
    height, width = size
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        raise ValueError(
            f"{path}: the box {list(box)} of annotation {number} is outside its image, "
            f"which is {width:g} wide and {height:g} high"
        )
    inside = x >= -_SLACK and y >= -_SLACK and x + box_width <= width + _SLACK and y + box_height <= height + _SLACK
    return "inside" if inside else "reaching"


def _check_run_lengths(path: str | os.PathLike, number: object, code: Mapping[str, Any], size: Sequence[float]) -> None:
    if [float(length) for length in code.get("size", ())] != list(size):
        raise ValueError(
            f"{path}: the run-length code of annotation {number} is of size {code.get('size')}, "
            f"its image is {[int(length) for length in size]} (height, width)"
        )
    counts = code.get("counts")
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"{path}: the run lengths of annotation {number} add up to {sum(counts)} pixels, "
            f"its image has {int(size[0] * size[1])}"
        )
