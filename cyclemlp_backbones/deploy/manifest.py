"""`cyclemlp.yml`, the file that makes an exported folder complete: what the model takes, gives and was made from."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cyclemlp_backbones.checks import check_integer, dataclass_from
from cyclemlp_backbones.files import sha256, temporary_beside, to_disk, write_atomically

FILE_NAME = "cyclemlp.yml"
FORMATS = ("paddle", "onnx")
MODEL_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model.onnx")
TASKS = ("cls", "features", "seg", "det")
SCHEMA = 1
_SUFFIXES = {"paddle": ((".json", ".pdmodel"), (".pdiparams",)), "onnx": ((".onnx",),)}
"""What the files of a format end with: the program, its weights."""

RESIZES = ("none", "short", "within", "exact")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
CHANNEL_ORDERS = ("RGB", "BGR")
NMS = ("score_threshold", "nms_threshold", "nms_top_k", "keep_top_k")
_BOXES = (("image", "im_shape", "scale_factor"), ("bbox", "bbox_num"))
_FORMS: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "cls": [(("image",), ("logits",))],
    "seg": [(("image",), ("logits",))],
    "features": [],
    "det": [_BOXES, (_BOXES[0], (*_BOXES[1], "mask"))],
    "det with nms": [(("image",), ("boxes", "scores"))],
}
"""Inputs and outputs of a task's models; of a pyramid, any."""
_LARGEST_SIDE = 16384
_LARGEST_PADDING = 1024


class ManifestError(ValueError):
    """A folder that is no exported model, or not a whole one."""


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the array that the model takes: resize, crop, (value - mean) / std, pad.

    The values reach from `input_range[0]` for black to `input_range[1]`, channels are in `channel_order`, as `mean` and
    `std` are.

    `resize` is "none", "short" (the shorter side becomes `size[0]`), "within" (as large as fits the shorter side
    `size[0]` and the longer `size[1]`) or "exact" (height and width become `size`). `antialias` makes shrinking
    average over what it leaves out, as Pillow does and OpenCV does not. `crop` is the side of a centre crop, or None.
    Then zeros are added at the bottom and right, up to a multiple of `pad_to` and to `least` pixels.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: str = "none"
    size: tuple[int, ...] = ()
    interpolation: str = "bilinear"
    antialias: bool = False
    crop: int | None = None
    pad_to: int = 1
    least: int = 32
    input_range: tuple[float, float] = (0.0, 1.0)
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        _choose("preprocessing.resize", self.resize, RESIZES)
        _choose("preprocessing.interpolation", self.interpolation, INTERPOLATIONS)
        _choose("preprocessing.channel_order", self.channel_order, CHANNEL_ORDERS)
        sizes = {"none": 0, "short": 1, "within": 2, "exact": 2}[self.resize]
        if len(self.size) != sizes:
            raise ValueError(f"preprocessing.size is {list(self.size)}; resize {self.resize} takes {sizes} sizes")
        for name in ("mean", "std", "input_range"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"preprocessing.{name} is {list(getattr(self, name))}; it takes finite numbers")
        if not all(self.std):
            raise ValueError(f"preprocessing.std is {list(self.std)}; it takes three numbers other than 0")
        if self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"preprocessing.input_range is {list(self.input_range)}; the first number is the smaller")
        for side in (*self.size, self.least, 1 if self.crop is None else self.crop):
            check_integer("a size, crop or least of preprocessing", side, 1, _LARGEST_SIDE)
        check_integer("preprocessing.pad_to", self.pad_to, 1, _LARGEST_PADDING)


@dataclass(frozen=True)
class Sample:
    """What the network gave at export for `verify.feeds`: each output's shape, and some of its values.

    Of a detector these are `bbox` alone, its best boxes.
    """

    batch: int
    height: int
    width: int
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        check_integer("the batch of a sample", self.batch, 1, 16)
        for side in (self.height, self.width):
            check_integer("a side of a sample", side, 32, 2 * _LARGEST_PADDING)
        if sorted(self.shapes) != sorted(self.values) or any(len(values) > 4096 for values in self.values.values()):
            raise ValueError("shapes and values of a sample are of other outputs, or too many")


@dataclass(frozen=True)
class Manifest:
    """What `cyclemlp.yml` says; ValueError for entries that contradict each other.

    `classes` has a name for every class of the model, `palette` a colour for each or none. `files` are the model's own
    files by name, each with its sha256. `nms` is given where a detector returns candidates that are not suppressed yet.
    `category_ids` are a detector's ids of the classes in COCO's sense. `quantization` is None for a model in float32.
    `samples` are what `cyclemlp verify` compares with.
    """

    task: str
    format: str
    architecture: str
    variant: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    category_ids: tuple[int, ...] = ()
    nms: Mapping[str, float] | None = None
    quantization: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _choose("task", self.task, TASKS)
        _choose("format", self.format, FORMATS)
        count = len(self.classes)
        if bool(count) == (self.task == "features"):
            raise ValueError(f"{count} classes; a model of the task {self.task} has {'none' if count else 'some'}")
        if len(self.palette) not in (0, count):
            raise ValueError(f"{len(self.palette)} colours in the palette for {count} classes")
        for value in (value for colour in self.palette for value in colour):
            check_integer("a value of the palette", value, 0, 255)
        if self.task == "det" and len(set(self.category_ids)) != count:
            raise ValueError(f"{len(set(self.category_ids))} category_ids for {count} classes")
        if self.nms is not None and self.task != "det":
            raise ValueError(f"nms is for detection; the task is {self.task}")
        if self.nms is not None and (sorted(self.nms) != sorted(NMS) or not all(map(math.isfinite, self.nms.values()))):
            raise ValueError(f"nms is {dict(self.nms)}; it takes finite numbers for {', '.join(NMS)}")
        forms = _FORMS[f"{self.task} with nms" if self.nms is not None else self.task]
        if forms and (self.inputs, self.outputs) not in forms:
            given = f"inputs {', '.join(self.inputs)} and outputs {', '.join(self.outputs)}"
            raise ValueError(f"a model of the task {self.task} has no {given}")
        compared = {"bbox"} if self.task == "det" else {*self.outputs}
        if any({*sample.values} != compared for sample in self.samples):
            raise ValueError(f"samples are of other outputs than {', '.join(sorted(compared))}")

    def model_files(self) -> tuple[str, ...]:
        """The names of the program and, in Paddle's format, of its weights. ValueError where `files` are others."""
        found = [[name for name in self.files if name.endswith(endings)] for endings in _SUFFIXES[self.format]]
        if len(self.files) != len(found) or any(len(names) != 1 for names in found):
            wanted = " and ".join(" or ".join(endings) for endings in _SUFFIXES[self.format])
            raise ValueError(f"files of the format {self.format} end with {wanted}: {', '.join(self.files) or 'none'}")
        return tuple(names[0] for names in found)


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def write_manifest(folder: Path, manifest: Manifest, files: Sequence[str]) -> Manifest:
    """Writes `cyclemlp.yml` into `folder`, with the checksums of `files`; what was written."""
    manifest = dataclasses.replace(manifest, files={name: sha256(folder / name) for name in files})
    plain = _plain(dataclasses.asdict(manifest))
    text = "# An exported CycleMLP model: `cyclemlp predict THIS_FOLDER IMAGES --out DIR`\n"
    bare = r"\x85" not in repr(plain)  # YAML's end of a line that PyYAML does not escape
    text += yaml.safe_dump(plain, sort_keys=False, allow_unicode=bare, width=120)
    write_atomically(folder / FILE_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    return manifest


@contextlib.contextmanager
def staged_export(folder: Path) -> Iterator[Path]:
    """A new folder on the same disk to write an export into, which then takes its place in `folder`.

    Killed at any moment or without room on the disk, `folder` holds its earlier export, whole, or the new one. Files in
    it that belong to neither stay.
    """
    there = folder.exists()
    staged = temporary_beside(folder / "model" if there else folder)
    staged.mkdir(parents=True)
    try:
        yield staged
        manifest = read_manifest(staged)
        for path in (*staged.iterdir(), staged):
            to_disk(path)
        if not there:
            os.replace(staged, folder)
            return
        # A manifest names its files: the new ones come under names of their own, with a manifest of them; then the
        # earlier ones, which none names any more, give way, and the new ones get the usual names.
        own = {name: f"{secrets.token_hex(4)}-{name}" for name in manifest.files}
        for name in manifest.files:
            shutil.copyfile(staged / name, folder / own[name])
            to_disk(folder / own[name])
        write_manifest(folder, manifest, [*own.values()])
        for name in manifest.files:
            os.replace(staged / name, folder / name)
        write_manifest(folder, manifest, [*manifest.files])
        for path in [*folder.iterdir()]:
            if _is_of_a_model(path) and path.is_file() and path.name not in manifest.files:
                path.unlink()
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_folder(folder: Path, overwrite: bool) -> None:
    """ValueError unless `folder` is new or empty, or holds an export, whole or not, that may be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty; choose another folder, or overwrite it with --force")
    if not (folder / FILE_NAME).is_file() and not all(map(_is_of_a_model, folder.iterdir())):
        raise ValueError(f"{folder} holds something else than an exported model; it is not overwritten")


def _is_of_a_model(path: Path) -> bool:
    """Whether a file has a name that `staged_export` gives."""
    name = path.name
    return {name, name.partition("-")[2]} & {*MODEL_FILES} != set() or name.startswith((".model.", f".{FILE_NAME}."))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder whose files are all there and unchanged; else a ManifestError says why."""
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "not there"
        raise ManifestError(f"{folder} is {what}; give the folder that `cyclemlp export` wrote")
    path = folder / FILE_NAME
    if not path.is_file():
        raise ManifestError(f"{folder} has no {FILE_NAME}; it is not a folder that `cyclemlp export` wrote")
    try:
        manifest = _manifest(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ManifestError(f"{path} is damaged: {error}") from error
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ManifestError(f"{folder} has no file {name}, which {FILE_NAME} names; export the model again")
        if sha256(file) != expected:
            raise ManifestError(f"{file} has changed since the export (sha256); export the model again")
    return manifest


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice, and aliases, of which a few lines make gigabytes or a list within itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"aliases are not taken: *{self.peek_event().anchor}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [str(key.value) for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice")
        return super().construct_mapping(node, deep)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _manifest(values: Any) -> Manifest:
    if isinstance(values, Mapping) and values.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"it is of schema {values['schema']}, this release reads {SCHEMA}")
    manifest = dataclass_from(Manifest, values)
    manifest.model_files()
    return manifest
