"""The text files that training reads, made from a copy of ImageNet."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .data import image_names, read_class_map

_SYNSET = re.compile(r"n\d{8}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", required=True, metavar="FILE", help="map_to_1000.txt: `synset index` a line")
    parser.add_argument("--train", metavar="DIR", help="a folder per synset, or files n01440764_123.JPEG")
    parser.add_argument("--val", metavar="DIR", help="validation images: one folder, or a folder per synset")
    parser.add_argument(
        "--val-truth",
        metavar="FILE",
        help="a class for each validation image, in the order of their names: synsets or the development kit's ids a "
        "line; or a CSV file with ImageId and a synset",
    )
    parser.add_argument("--devkit-ids", metavar="FILE", help="`id synset` a line, or meta.mat: what the kit's ids mean")
    parser.add_argument("--output", default=".", metavar="DIR", help="where train.txt and val.txt go (%(default)s)")


def write_lists(arguments: argparse.Namespace) -> Iterator[str]:
    """Writes the lists that were asked for; yields a line about each."""
    if not arguments.train and not arguments.val:
        raise ValueError("nothing to list: give --train DIR, --val DIR or both")
    classes = read_class_map(arguments.classes)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if arguments.train:
        yield _write(output / "train.txt", list_by_synset(Path(arguments.train), classes))
    if arguments.val:
        folder = Path(arguments.val)
        if arguments.val_truth:
            pairs = list_by_truth(folder, Path(arguments.val_truth), classes, devkit_ids=arguments.devkit_ids)
        else:
            pairs = list_by_synset(folder, classes)
        yield _write(output / "val.txt", pairs)


def list_by_synset(folder: Path, classes: Mapping[str, int]) -> list[tuple[str, int]]:
    """(name, class) of the images in folders called after synsets, or of files whose names begin with one. Some of the
    classes may be missing; a synset that `classes` does not have is an error."""
    subfolders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if subfolders:
        named = [(f"{name}/{image}", name) for name in subfolders for image in image_names(folder / name)]
    else:
        named = [(image, image.partition("_")[0]) for image in image_names(folder)]
    if not named:
        raise ValueError(f"{folder} holds no image")
    unknown = sorted({synset for _, synset in named if synset not in classes})
    if unknown:
        raise ValueError(
            f"{folder}: no class for {', '.join(unknown[:5])}; folders or file names have to begin with a synset of "
            "the class map, or the classes come from --val-truth"
        )
    return [(name, classes[synset]) for name, synset in named]


def list_by_truth(
    folder: Path, truth: Path, classes: Mapping[str, int], *, devkit_ids: str | None = None
) -> list[tuple[str, int]]:
    """(name, class) of the images of one folder by a ground-truth file.

    The development kit's numbers, 1 to 1000, are ids of its own, not the class map's: they need `devkit_ids`.
    """
    names = image_names(folder)
    if truth.suffix.lower() == ".csv":
        by_name = _read_csv(truth)
        missing = [name for name in names if Path(name).stem not in by_name]
        if missing:
            raise ValueError(f"{truth} has no line for {len(missing)} images, the first {missing[0]}")
        synsets = [by_name[Path(name).stem] for name in names]
    else:
        words = truth.read_text(encoding="utf-8-sig").split()
        if len(words) != len(names):
            raise ValueError(f"{truth} has {len(words)} entries, {folder} {len(names)} images; they have to be as many")
        synsets = words if all(_SYNSET.fullmatch(word) for word in words) else _synsets_of_ids(words, truth, devkit_ids)
    unknown = sorted(set(synsets) - set(classes))
    if unknown:
        raise ValueError(f"{truth}: the class map has no {', '.join(unknown[:5])}")
    return [(name, classes[synset]) for name, synset in zip(names, synsets)]


def _read_csv(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 2]
    found = {row[0]: match[0] for row in rows if (match := _SYNSET.match(row[1].strip()))}
    if not found:
        raise ValueError(f"{path} has no lines of an image id and a synset")
    return found


def _synsets_of_ids(words: list[str], truth: Path, devkit_ids: str | None) -> list[str]:
    if devkit_ids is None:
        raise ValueError(
            f"{truth} holds the development kit's own ids, which are not the order of the class map: give its "
            "meta.mat, or `id synset` a line, as --devkit-ids"
        )
    synsets = _read_meta(devkit_ids) if devkit_ids.endswith(".mat") else _read_ids(Path(devkit_ids))
    unknown = [word for word in words if word not in synsets]
    if unknown:
        raise ValueError(f"{devkit_ids} has no id {unknown[0]!r}, which {truth} uses")
    return [synsets[word] for word in words]


def _read_ids(path: Path) -> dict[str, str]:
    pairs = [line.split()[:2] for line in path.read_text(encoding="utf-8-sig").splitlines() if len(line.split()) >= 2]
    return {number: synset for number, synset in pairs if _SYNSET.fullmatch(synset)}


def _read_meta(path: str) -> dict[str, str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading meta.mat takes scipy: pip install scipy, or give `id synset` a line") from error
    table = loadmat(path, squeeze_me=True)["synsets"]
    return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}


def _write(path: Path, pairs: list[tuple[str, int]]) -> str:
    path.write_text("".join(f"{name} {label}\n" for name, label in pairs), encoding="utf-8")
    return f"{path}: {len(pairs)} images of {len({label for _, label in pairs})} classes"
