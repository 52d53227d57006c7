"""`cyclemlp.yml`, the file that makes an exported folder complete: what the model takes, gives and was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cyclemlp_backbones.checks import dataclass_from
from cyclemlp_backbones.files import sha256

FILE_NAME = "cyclemlp.yml"
FORMATS = ("paddle", "onnx")
TASKS = ("cls", "features", "seg", "det")
SCHEMA = 1
_SUFFIXES = {"paddle": ((".json", ".pdmodel"), (".pdiparams",)), "onnx": ((".onnx",),)}
"""What the files of a format end with: the program, its weights."""

RESIZES = ("none", "short", "within", "exact")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


class ManifestError(ValueError):
    """A folder that is no exported model, or not a whole one."""


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the array that the model takes: resize, crop, (value / 255 - mean) / std, pad.

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
        sizes = {"none": 0, "short": 1, "within": 2, "exact": 2}
        if self.resize not in RESIZES:
            raise ValueError(f"preprocessing.resize is {self.resize!r}; choose from {', '.join(RESIZES)}")
        if len(self.size) != sizes[self.resize] or any(value < 1 for value in self.size):
            raise ValueError(
                f"preprocessing.size is {list(self.size)}; resize {self.resize} takes {sizes[self.resize]} sizes"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"preprocessing.interpolation is {self.interpolation!r}; choose from {', '.join(INTERPOLATIONS)}"
            )
        if not all(self.std):
            raise ValueError(f"preprocessing.std is {list(self.std)}; it takes three numbers other than 0")
        for name in ("crop", "pad_to", "least"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"preprocessing.{name} is {value}; it takes 1 and more")


@dataclass(frozen=True)
class Manifest:
    """What `cyclemlp.yml` says.

    `files` are the model's own files by name, each with its sha256. `nms` is given where the model returns candidates
    that are not suppressed yet. `category_ids` are a detector's ids of the classes in COCO's
    sense. `quantization` is None for a model in float32.
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
    schema: int = SCHEMA

    def model_files(self) -> tuple[str, ...]:
        """The names of the program and, in Paddle's format, of its weights. ValueError where `files` are others."""
        found = [[name for name in self.files if name.endswith(endings)] for endings in _SUFFIXES[self.format]]
        if len(self.files) != len(found) or any(len(names) != 1 for names in found):
            wanted = " and ".join(" or ".join(endings) for endings in _SUFFIXES[self.format])
            raise ValueError(f"files of the format {self.format} end with {wanted}: {', '.join(self.files) or 'none'}")
        return tuple(names[0] for names in found)


def class_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours that differ, Pascal VOC's: bit k of a class number goes to bit 7 - k // 3 of channel k % 3."""
    colours = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(24):
            channels[bit % 3] |= (number >> bit & 1) << max(0, 7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


def write_manifest(folder: Path, manifest: Manifest, files: Sequence[str]) -> Manifest:
    """Writes `cyclemlp.yml` into `folder`, with the checksums of `files`; what was written."""
    manifest = dataclasses.replace(manifest, files={name: sha256(folder / name) for name in files})
    plain = _plain(dataclasses.asdict(manifest))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    (folder / FILE_NAME).write_text(
        f"# An exported CycleMLP model; `cyclemlp predict {folder.name} IMAGES --out DIR`\n{text}"
    )
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder whose files are all there and unchanged; else a ManifestError says why."""
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "not there"
        raise ManifestError(f"{folder} is {what}; give the folder that `cyclemlp export` wrote")
    path = folder / FILE_NAME
    if not path.is_file():
        raise ManifestError(f"{folder} has no {FILE_NAME}; it is not a folder that `cyclemlp export` wrote")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        manifest = _manifest(values)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{path} is damaged: {error}") from error
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ManifestError(f"{folder} has no file {name}, which {FILE_NAME} names; export the model again")
        if sha256(file) != expected:
            raise ManifestError(f"{file} has changed since the export (sha256); export the model again")
    return manifest


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
    if manifest.task not in TASKS:
        raise ValueError(f"task is {manifest.task!r}; choose from {', '.join(TASKS)}")
    if manifest.format not in FORMATS:
        raise ValueError(f"format is {manifest.format!r}; choose from {', '.join(FORMATS)}")
    manifest.model_files()
    if manifest.task == "det" and len(manifest.category_ids) != len(manifest.classes):
        raise ValueError(f"{len(manifest.category_ids)} category_ids for {len(manifest.classes)} classes")
    return manifest
