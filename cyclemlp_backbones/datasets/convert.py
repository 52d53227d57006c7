"""LabelMe's and Pascal VOC's annotations as PaddleSeg's and PaddleDetection's layouts."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from cyclemlp_backbones.checks import check_fraction, check_integer, did_you_mean
from cyclemlp_backbones.files import new_folder
from cyclemlp_backbones.pictures import FORMATS, UNREADABLE, class_palette, shown_size

LAYOUTS = ("seg", "det")
BACKGROUND, IGNORED, IGNORE_INDEX = "background", "__ignore__", 255
"""Class 0 of masks; LabelMe's label of what is in no class, and its value there."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
_CORNERS = 64  # of the polygon that stands for a circle

Points = list[tuple[float, float]]
Classes = Mapping[str, tuple[int, ...] | None]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Object(NamedTuple):
    """Its label, its outlines in pixels with their area, whether they are a mask or a box, and whether it is a crowd.
    Entries of one label and one `group` are one object."""

    label: str
    outlines: list[Points]
    group: object = None
    is_mask: bool = True
    crowd: bool = False


class Record(NamedTuple):
    """An image, its size (width, height), and `file`, which holds `objects` or, where they are None, is a mask."""

    name: str
    file: Path
    image: Path
    size: tuple[int, int]
    objects: list[Object] | None

    @property
    def target(self) -> str:
        return f"images/{self.name}{self.image.suffix.lower()}"


def convert(
    source: Path,
    out: Path,
    *,
    to: str,
    classes: Path | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    link: bool = False,
    progress: Progress = iter,
) -> tuple[dict[str, int], list[str]]:
    """Writes the folder `out` from the LabelMe or VOC folder `source`: images per split, and the names of the classes.

    `to` "seg": images/, annotations/*.png of class numbers, train.txt, val.txt. "det": images/,
    annotations/instances_train.json and instances_val.json, with polygons where there are some. Both: labels.txt.
    Without `classes` (a name a line, R G B behind it for masks of colours) labels are put in alphabetical order. The
    split follows from `seed` and the names alone; it holds out `val_share` of the images, one at least.

    ValueError or OSError that names file and entry for whatever cannot be converted; then nothing is written.
    """
    check_fraction("--val-share", val_share)
    check_integer("--seed", seed, 0)
    listed = _read_classes(classes) if classes else {}
    with new_folder(out) as folder:
        records = list(_read(source, to, listed, progress))
        order = sorted(records, key=lambda record: hashlib.sha256(f"{seed} {record.name}".encode()).digest())
        count = max(round(val_share * len(records)), val_share > 0)
        if count >= len(records):
            raise ValueError(f"--val-share {val_share} of {len(records)} images leaves none to train on; lower it")
        split = {"train": sorted(order[count:])} | ({"val": sorted(order[:count])} if count else {})
        for name in ("images", "annotations"):
            (folder / name).mkdir()
        for record in progress(records):
            target = folder / record.target
            target.symlink_to(record.image.resolve()) if link else shutil.copyfile(record.image, target)
        found = sorted({thing.label for record in records for thing in record.objects or ()})
        labels = [name for name in listed or found if name not in (BACKGROUND, IGNORED)]
        if to == "det":
            _write_coco(folder, split, labels)
        else:
            labels = _write_masks(folder, split, [BACKGROUND, *labels], listed, progress)
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return {part: len(records) for part, records in split.items()}, labels


def _read_classes(path: Path) -> Classes:
    """Name -> colour, None where the line gives none."""
    found: dict[str, tuple[int, ...] | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        match = re.fullmatch(r"\s*(\S.*?)(?:\s+(\d+)[\s,]+(\d+)[\s,]+(\d+))?\s*", line)
        if match is None or (name := _plain(match[1])) in found:
            raise ValueError(f"{path}, line {number}: {line!r}; it takes a name, each once, with R G B or without")
        found[name] = tuple(map(int, match.groups()[1:])) if match[2] else None
    return found


def _plain(label: str) -> str:
    return BACKGROUND if label.strip().strip("_").lower() == BACKGROUND else label.strip()


def _read(source: Path, to: str, listed: Classes, progress: Progress) -> Iterator[Record]:
    masks = [source / name for name in ("SegmentationClassPNG", "SegmentationClass") if (source / name).is_dir()]
    boxes = source / "Annotations" if (source / "Annotations").is_dir() else source
    voc = [(boxes, "*.xml", _voc)] if to == "det" else [(folder, "*.png", _mask) for folder in masks]
    kinds = [(source, "*.json", _labelme), *voc]
    folder, files, read = next(
        ((f, found, r) for f, end, r in kinds if (found := sorted(f.rglob(end)))), (source, [], _mask)
    )
    if not files:
        wanted = "Annotations/*.xml" if to == "det" else "SegmentationClass/*.png (boxes make no masks)"
        raise ValueError(f"{source} has nothing for --to {to}: neither LabelMe's *.json nor Pascal VOC's {wanted}")
    taken: dict[str, Path] = {}
    for file in progress(files):  # a space would end a name in PaddleSeg's lists
        name = re.sub(r"[^\w.-]+", "_", file.relative_to(folder).with_suffix("").as_posix())
        if taken.setdefault(name, file) != file:
            raise ValueError(f"{taken[name]} and {file} would both be called {name}; rename one of them")
        where = str(file)
        try:
            named, stated, entries, parse = read(file)
            image, size = _locate(file, named, file.parent, source / "JPEGImages", source)
            if all(stated) and stated != size:
                raise ValueError(f"it is of {stated[0]} x {stated[1]}, {image} is {size[0]} x {size[1]}")
            objects: dict[object, Object] = {}
            for number, entry in enumerate(entries, start=1):
                where = f"{file}: entry {number}"
                thing = parse(entry)
                if not thing.label or (listed and thing.label not in listed):
                    raise ValueError(f"--classes has no {thing.label!r}{did_you_mean(thing.label, listed)}")
                outlines = [_clamp(points, size) for points in thing.outlines]
                if _area(outlines) <= 0:
                    raise ValueError(f"{thing.label!r} has no area inside its image of {size[0]} x {size[1]}")
                key = number if thing.group is None else (thing.label, thing.group)
                objects.setdefault(key, thing._replace(outlines=[])).outlines.extend(outlines)
        except (*UNREADABLE, AttributeError, ElementTree.ParseError) as error:
            told = str(error) if type(error) in (ValueError, FileNotFoundError) else repr(error)
            raise ValueError(f"{where}: {told}") from error
        yield Record(name, file, image, size, None if parse is None else [*objects.values()])


def _locate(file: Path, named: str, *folders: Path) -> tuple[Path, tuple[int, int]]:
    """The image that `file` names, or that is called like it, and its size."""
    names = [named, Path(named).name, *(file.stem + suffix for suffix in _SUFFIXES)]
    for image in (folder / name for folder in folders for name in names if name):
        if image.is_file() and image != file:
            return image, shown_size(image)
    raise FileNotFoundError(f"no image {named or file.stem} in {' or '.join(map(str, folders))}")


def _clamp(points: Points, size: tuple[int, int]) -> Points:
    return [(min(max(x, 0.0), float(size[0])), min(max(y, 0.0), float(size[1]))) for x, y in points]


def _area(outlines: list[Points]) -> float:
    pairs = [zip(points, [*points[1:], points[0]]) for points in outlines]
    return sum(abs(sum(x * y2 - x2 * y for (x, y), (x2, y2) in pair)) / 2 for pair in pairs)


def _mask(file: Path) -> tuple[Any, ...]:
    return "", (None, None), (), None


def _labelme(file: Path) -> tuple[Any, ...]:
    """The image's name and size, the entries and the function that reads one; as `_mask` and `_voc`."""
    document = json.loads(file.read_bytes())
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError("no file of LabelMe: it has no list of shapes")
    stated = document.get("imageWidth"), document.get("imageHeight")
    return document["imagePath"].replace("\\", "/"), stated, document["shapes"], _shape


def _shape(shape: Mapping[str, Any]) -> Object:
    kind, points = shape.get("shape_type") or "polygon", [(float(x), float(y)) for x, y in shape["points"]]
    if not all(map(math.isfinite, itertools.chain(*points))):
        raise ValueError(f"a {kind} with points that are no numbers")
    if kind == "circle" and len(points) == 2:
        x, y = points[0]
        radius, turns = math.dist(*points), [math.tau * corner / _CORNERS for corner in range(_CORNERS)]
        points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    elif kind == "rectangle" and len(points) == 2:
        points = _corners(*points[0], *points[1])
    elif kind not in ("polygon", "rectangle") or len(points) < 3:
        raise ValueError(f"a {kind} of {len(points)} points; polygons, rectangles and circles are taken")
    return Object(_plain(shape["label"]), [points], shape.get("group_id"))


def _corners(x: float, y: float, x2: float, y2: float) -> Points:
    return [(x, y), (x2, y), (x2, y2), (x, y2)]


def _voc(file: Path) -> tuple[Any, ...]:
    root = ElementTree.parse(file).getroot()
    stated = tuple(int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    return root.findtext("filename", ""), stated, root.iter("object"), _box


def _box(entry: ElementTree.Element) -> Object:
    x, y, x2, y2 = (float(entry.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not (x < x2 and y < y2):
        raise ValueError(f"the box {x:g}, {y:g} to {x2:g}, {y2:g} has no area")
    corners = _corners(x - 1, y - 1, x2, y2)  # VOC counts pixels from 1, and the last one in
    crowd = entry.findtext("difficult", "0").strip() == "1"
    return Object(_plain(entry.findtext("name", "")), [corners], is_mask=False, crowd=crowd)


def _write_masks(
    folder: Path, split: Mapping[str, list[Record]], labels: list[str], listed: Classes, progress: Progress
) -> list[str]:
    """Draws objects; masks stay as they are or, where they are of colours, get the classes of these: VOC's, or the
    `listed` ones."""
    is_mask, numbers = split["train"][0].objects is None, {**dict(zip(labels, range(255))), IGNORED: IGNORE_INDEX}
    if is_mask and listed:
        labels = [name for name in listed if name != IGNORED]
        numbers.update(zip(labels, range(255)))
    colours = {colour: numbers[name] for name, colour in listed.items() if colour}
    palette, highest = class_palette(256), 0
    for part, records in split.items():
        lines = []
        for record in progress(records):
            if record.objects is None:
                array = _classes_of(record, colours or dict(zip(palette, range(256))), bool(colours))
            else:
                canvas = Image.new("L", record.size)
                for thing in record.objects:
                    for points in thing.outlines:
                        ImageDraw.Draw(canvas).polygon(points, fill=numbers[thing.label])
                array = np.asarray(canvas)
            highest = max(highest, int(array[array != IGNORE_INDEX].max(initial=0)))
            if highest >= (len(labels) if listed or not is_mask else IGNORE_INDEX):
                raise ValueError(f"{record.file} has the class {highest}; --classes has {len(labels)}, from 0 on")
            mask = Image.fromarray(array.astype(np.uint8))
            mask.putpalette(list(itertools.chain(*palette)))
            mask.save(folder / f"annotations/{record.name}.png")
            lines.append(f"{record.target} annotations/{record.name}.png\n")
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
    return labels if listed or not is_mask else [BACKGROUND, *map(str, range(1, highest + 1))]


def _classes_of(record: Record, colours: Mapping[tuple[int, ...], int], always: bool) -> np.ndarray:
    """The classes in a mask; `colours` tell them where it has colours, or `always`."""
    try:
        with Image.open(record.file, formats=FORMATS) as opened:
            coloured = always or len(opened.getbands()) > 1
            pixels = np.asarray(opened.convert("RGB") if coloured else opened)
    except UNREADABLE as error:
        raise ValueError(f"{record.file}: {error}") from error
    if pixels.shape[1::-1] != record.size:
        raise ValueError(f"{record.file} is {pixels.shape[1]} x {pixels.shape[0]}, its image {record.size}")
    if not coloured:
        return pixels
    found, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if unknown := [colour for colour in map(tuple, found.tolist()) if colour not in colours]:
        raise ValueError(f"{record.file} has the colour {unknown[0]}; a line `name R G B` in --classes gives its class")
    return np.array([colours[tuple(colour)] for colour in found.tolist()])[places.reshape(pixels.shape[:2])]


def _write_coco(folder: Path, split: Mapping[str, list[Record]], labels: list[str]) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(labels, start=1)]
    for part, records in split.items():
        annotations: list[dict[str, Any]] = []
        for image_id, record in enumerate(records, start=1):
            for thing in record.objects or ():
                if thing.label not in labels:
                    continue
                low, high = (tuple(map(pick, zip(*itertools.chain(*thing.outlines)))) for pick in (min, max))
                annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image_id}
                annotation["iscrowd"] = int(thing.crowd)
                annotation |= {"category_id": labels.index(thing.label) + 1, "area": _area(thing.outlines)}
                annotation["bbox"] = [*low, high[0] - low[0], high[1] - low[1]]
                if thing.is_mask:
                    annotation["segmentation"] = [[*itertools.chain(*points)] for points in thing.outlines]
                annotations.append(annotation)
        images = [
            {"id": number, "file_name": Path(record.target).name, "width": record.size[0], "height": record.size[1]}
            for number, record in enumerate(records, start=1)
        ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(document), encoding="utf-8")
