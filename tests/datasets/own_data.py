"""What a user begins with: digits on photographs, labelled with LabelMe, or in Pascal VOC's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.digits import Digit, make_scene

SIZE = 160
CLASSES = ("even", "odd")
COLOURS = ((0, 0, 0), (250, 10, 10), (10, 10, 250))
"""Of background, even and odd in masks of colours; not VOC's."""


def scenes(count: int, split: str = "train") -> list[Any]:
    return [make_scene(split, index, size=SIZE, max_digits=3) for index in range(count)]


def outline(digit: Digit) -> list[list[float]]:
    """The left edge downwards and the right edge upwards."""
    rows = np.flatnonzero(digit.mask.any(1))[::3]
    edges = [np.flatnonzero(digit.mask[row])[[0, -1]] for row in rows]
    down = [[float(left), float(row)] for row, (left, _) in zip(rows, edges)]
    return down + [[float(right + 1), float(row)] for row, (_, right) in reversed(list(zip(rows, edges)))]


def write_labelme(folder: Path, count: int) -> None:
    """photo 0.jpg with photo 0.json, …"""
    folder.mkdir(parents=True)
    for index, scene in enumerate(scenes(count)):
        Image.fromarray(scene.image).save(folder / f"photo {index}.jpg")
        shapes = [{"label": CLASSES[digit.value % 2], "points": outline(digit)} for digit in scene.digits]
        write_json(folder / f"photo {index}.json", shapes)


def write_json(path: Path, shapes: list[dict[str, Any]], size: tuple[int, int] = (SIZE, SIZE)) -> None:
    whole = [{"shape_type": "polygon", "group_id": None, "flags": {}, **shape} for shape in shapes]
    stated = {"imagePath": f"{path.stem}.jpg", "imageData": None, "imageWidth": size[0], "imageHeight": size[1]}
    path.write_text(json.dumps({"version": "5.4.1", "flags": {}, "shapes": whole, **stated}))


def write_voc(folder: Path, count: int) -> None:
    """JPEGImages, Annotations and SegmentationClass with masks of `COLOURS`."""
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for index, scene in enumerate(scenes(count)):
        Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{index:03d}.jpg")
        mask = np.zeros((SIZE, SIZE), np.uint8)
        boxes = []
        for digit in scene.digits:
            mask[digit.mask] = 1 + digit.value % 2
            x, y, width, height = digit.box
            boxes.append((CLASSES[digit.value % 2], x + 1, y + 1, x + width, y + height))
        Image.fromarray(np.array(COLOURS, np.uint8)[mask]).save(folder / "SegmentationClass" / f"{index:03d}.png")
        write_xml(folder / "Annotations" / f"{index:03d}.xml", boxes)


def write_xml(path: Path, boxes: list[tuple[Any, ...]], size: tuple[int, int] = (SIZE, SIZE)) -> None:
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box))
        + "</bndbox></object>"
        for name, *box in boxes
    ]
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    head = f"<annotation><filename>{path.stem}.jpg</filename>{stated}"
    path.write_text(head + "".join(objects) + "</annotation>")
