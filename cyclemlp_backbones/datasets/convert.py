"""LabelMe's and Pascal VOC's annotations as PaddleSeg's and PaddleDetection's layouts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from cyclemlp_backbones.checks import check_fraction, check_integer, did_you_mean
from cyclemlp_backbones.files import new_folder
from cyclemlp_backbones.pictures import FORMATS, UNREADABLE, class_palette, shown_size

BACKGROUND, IGNORED, IGNORE_INDEX = "background", "__ignore__", 255
"""Class 0 of masks; LabelMe's label of what is in no class, and its value there."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 64, endpoint=False)) for f in (np.cos, np.sin)], 1)

Classes = Mapping[str, tuple[int, ...] | None]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Object(NamedTuple):
    """`outlines` are arrays [N, 2] of x and y in pixels. Entries of one label and one `group` are one object."""

    label: str
    outlines: list[np.ndarray]
    group: object = None
    is_mask: bool = True
    crowd: bool = False

    @property
    def area(self) -> float:
        pairs = ((points, np.roll(points, 1, 0)) for points in self.outlines)
        return float(sum(abs(a[:, 0] @ b[:, 1] - a[:, 1] @ b[:, 0]) / 2 for a, b in pairs))


class Record(NamedTuple):
    """An image of `size` (width, height), and `file`, which holds its `objects` or, where they are None, is a mask."""

    name: str
    file: Path
    image: Path
    size: tuple[int, int]
    objects: list[Object] | None

    @property
    def target(self) -> str:
        return f"images/{self.name}{self.image.suffix.lower()}"


def convert(
    source: Path, out: Path, *, to: str, classes: Path | None = None, val_share: float = 0.2, seed: int = 0,
    link: bool = False, progress: Progress = iter,
) -> tuple[dict[str, int], list[str]]:  # fmt: skip
    """Writes the folder `out` from the LabelMe or VOC folder `source`: images per split, and the names of the classes.

    `to` "seg": images/, annotations/*.png of class numbers, train.txt, val.txt. "det": images/ and
    annotations/instances_{train,val}.json, with polygons where there are some. Both: labels.txt. `classes`: a name a
    line, R G B behind it for masks of colours; without it, labels in alphabetical order. The split follows from `seed`
    and the names alone. ValueError or OSError that names file and entry; then nothing is written.
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
        if records[0].objects is not None and not 0 < len(labels) < IGNORE_INDEX:
            raise ValueError(f"{source} has objects of {len(labels)} classes; it takes 1 to {IGNORE_INDEX - 1}")
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
    voc = ("Annotations", "*.xml", _voc) if to == "det" else ("SegmentationClass", "*.png", _mask)
    folder = source / voc[0] if to == "seg" or (source / voc[0]).is_dir() else source
    places: list[tuple[Path, str, Callable[[Path], tuple]]] = [(source, "*.json", _labelme), (folder, *voc[1:])]
    found = [(folder, read, files) for folder, ending, read in places if (files := sorted(folder.rglob(ending)))]
    if not found:
        raise FileNotFoundError(f"{source} has neither LabelMe's *.json nor Pascal VOC's {'/'.join(voc[:2])}, for {to}")
    folder, read, files = found[0]
    taken: dict[str, Path] = {}
    for file in progress(files):  # a space would end a name in PaddleSeg's lists
        name = re.sub(r"[^\w.-]+", "_", file.relative_to(folder).with_suffix("").as_posix())
        if taken.setdefault(name, file) != file:
            raise ValueError(f"{taken[name]} and {file} would both be called {name}; rename one of them")
        where, objects = str(file), dict[object, Object]()
        try:
            named, stated, entries, parse = read(file)
            image, size = _locate(file, named, file.parent, source / "JPEGImages", source)
            if all(stated) and stated != size:
                raise ValueError(f"it is of {stated[0]} x {stated[1]}, {image} is {size[0]} x {size[1]}")
            for number, entry in enumerate(entries, start=1):
                where = f"{file}: entry {number}"
                thing = parse(entry)
                if not thing.label or (listed and thing.label not in {*listed, BACKGROUND, IGNORED}):
                    raise ValueError(f"the label {thing.label!r} is no class{did_you_mean(thing.label, listed)}")
                thing = thing._replace(outlines=[points.clip(0, size) for points in thing.outlines])
                if not thing.area > 0:
                    raise ValueError(f"{thing.label!r} has no area inside its image of {size[0]} x {size[1]}")
                key = number if thing.group is None else (thing.label, thing.group)
                if objects.setdefault(key, thing) is not thing:
                    objects[key].outlines.extend(thing.outlines)
        except (*UNREADABLE, AttributeError, ElementTree.ParseError) as error:
            told = str(error) if isinstance(error, (ValueError, OSError)) else repr(error)
            raise ValueError(f"{where}: {told}") from error
        yield Record(name, file, image, size, None if parse is None else [*objects.values()])


def _locate(file: Path, named: str, *folders: Path) -> tuple[Path, tuple[int, int]]:
    """The image that `file` names, or that is called like it, and its size."""
    names = [named, Path(named).name, *(file.stem + suffix for suffix in _SUFFIXES)]
    for image in (folder / name for folder in folders for name in names if name):
        if image.is_file() and image != file:
            return image, shown_size(image)
    raise FileNotFoundError(f"no image {named or file.stem} in {' or '.join(map(str, folders))}")


# The name and the size of the image that a file states, its entries, and the function that makes an Object of one.
def _mask(file: Path) -> tuple:
    return "", (None, None), (), None


def _labelme(file: Path) -> tuple:
    document = json.loads(file.read_bytes())
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError("no file of LabelMe: it has no list of shapes")
    stated = document.get("imageWidth"), document.get("imageHeight")
    return document["imagePath"].replace("\\", "/"), stated, document["shapes"], _shape


def _voc(file: Path) -> tuple:
    root = ElementTree.parse(file).getroot()
    stated = tuple(int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    return root.findtext("filename", ""), stated, root.iter("object"), _box


def _shape(shape: Mapping[str, Any]) -> Object:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float)
    if kind == "circle" and points.shape == (2, 2):
        points = points[0] + np.linalg.norm(points[1] - points[0]) * _CIRCLE
    elif kind == "rectangle" and points.shape == (2, 2):
        points = _corners(*points.ravel())
    elif kind not in ("polygon", "rectangle") or len(points) < 3 or points.shape[1:] != (2,):
        raise ValueError(f"a {kind} of {len(points)} points; polygons, rectangles and circles are taken")
    return Object(_plain(shape["label"]), [points], shape.get("group_id"))


def _box(entry: ElementTree.Element) -> Object:
    x, y, x2, y2 = (float(entry.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not (x < x2 and y < y2):
        raise ValueError(f"the box {x:g}, {y:g} to {x2:g}, {y2:g} has no area")
    corners = _corners(x - 1, y - 1, x2, y2)  # VOC counts pixels from 1, and the last one in
    crowd = entry.findtext("difficult", "0").strip() == "1"
    return Object(_plain(entry.findtext("name", "")), [corners], is_mask=False, crowd=crowd)


def _corners(x: float, y: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x, y], [x2, y], [x2, y2], [x, y2]])


def _write_masks(
    folder: Path, split: Mapping[str, list[Record]], labels: list[str], listed: Classes, progress: Progress
) -> list[str]:
    """Draws objects, or keeps masks, which, where they are of colours, get the classes of these."""
    is_mask, highest, palette = split["train"][0].objects is None, 0, class_palette(256)
    if is_mask:
        labels = [name for name in listed if name != IGNORED] or [*map(str, range(IGNORE_INDEX))]
    numbers = {**{label: number for number, label in enumerate(labels)}, IGNORED: IGNORE_INDEX}
    colours = {colour: numbers[name] for name, colour in listed.items() if colour}
    for part, records in split.items():
        for record in progress(records):
            mask = Image.new("L", record.size)
            if record.objects is None:
                array = _classes_of(record, colours)
                highest = max(highest, int(array[array != IGNORE_INDEX].max(initial=0)))
                mask = Image.fromarray(array.astype(np.uint8))
            for thing in record.objects or ():
                for points in thing.outlines:
                    ImageDraw.Draw(mask).polygon([*points.ravel()], fill=numbers[thing.label])
            if highest >= len(labels):
                raise ValueError(f"{record.file} has the class {highest}; --classes has {len(labels)}, from 0 on")
            mask.putpalette([*chain(*palette)])
            mask.save(folder / f"annotations/{record.name}.png")
        lines = [f"{record.target} annotations/{record.name}.png\n" for record in records]
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
    return labels if listed or not is_mask else [BACKGROUND, *labels[1 : highest + 1]]


def _classes_of(record: Record, colours: Mapping[tuple[int, ...], int]) -> np.ndarray:
    """The classes in a mask: its values, or those of `colours`, or of VOC's where it has three bands."""
    try:
        with Image.open(record.file, formats=FORMATS) as opened:
            coloured = bool(colours) or len(opened.getbands()) > 1
            pixels = np.asarray(opened.convert("RGB") if coloured else opened)
    except UNREADABLE as error:
        raise ValueError(f"{record.file}: {error}") from error
    if pixels.shape[1::-1] != record.size:
        raise ValueError(f"{record.file} is {pixels.shape[1]} x {pixels.shape[0]}, its image {record.size}")
    if not coloured:
        return pixels
    number_of = colours or {colour: number for number, colour in enumerate(class_palette(256))}
    found, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if unknown := [colour for colour in map(tuple, found.tolist()) if colour not in number_of]:
        raise ValueError(f"{record.file} has the colour {unknown[0]}; a line `name R G B` in --classes gives its class")
    classes = [number_of[tuple(colour)] for colour in found.tolist()]
    return np.array(classes)[places.reshape(pixels.shape[:2])]


def _write_coco(folder: Path, split: Mapping[str, list[Record]], labels: list[str]) -> None:
    document: dict[str, list] = {"categories": [{"id": n, "name": name} for n, name in enumerate(labels, start=1)]}
    for part, records in split.items():
        document |= {"images": [], "annotations": []}
        for number, record in enumerate(records, start=1):
            image = {"id": number, "file_name": Path(record.target).name}
            document["images"].append({**image, "width": record.size[0], "height": record.size[1]})
            for thing in record.objects or ():
                if thing.label in (BACKGROUND, IGNORED):
                    continue
                low, high = (getattr(np.concatenate(thing.outlines), end)(0) for end in ("min", "max"))
                annotation = {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": labels.index(thing.label) + 1,
                    "bbox": [*low, *(high - low)],
                    "area": thing.area,
                    "iscrowd": int(thing.crowd),
                }
                polygons = {"segmentation": [points.ravel().tolist() for points in thing.outlines]}
                document["annotations"].append({**annotation, **(polygons if thing.is_mask else {})})
        (folder / f"annotations/instances_{part}.json").write_text(json.dumps(document), encoding="utf-8")
