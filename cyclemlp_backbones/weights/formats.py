"""Weights files: `.pdparams`, `.pth` (both formats, without PyTorch), `.safetensors`; nothing in them is ever run."""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cyclemlp_backbones.weights.arrays import NAMES, ElementType, JoinedArray, StoredArray, check_shape
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader, damaged, printable
from cyclemlp_backbones.weights.torch_files import LEGACY_MAGIC, ZIP_MAGIC, read_torch_legacy, read_torch_zip

logger = logging.getLogger(__name__)

Layout = Literal["paddle", "torch"]
LAYOUTS: tuple[Layout, ...] = ("paddle", "torch")

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "module",
    "params",
    "weights",
    "model_ema",
    "state_dict_ema",
    "ema",
    "params_ema",
)
"""Keys under which training programs put the weights; the first that a file has is read."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""Prefixes that wrappers of a network give to all of its names."""

_MAX_WRAPPERS = 4
_MAX_GROWTH = 8
"""Arrays outgrow their file where they share a storage or were bfloat16, but never by more than this factor."""

_SAFETENSORS_DTYPES = {
    "BF16": ElementType(np.dtype("<u2"), bfloat16=True),
    **{
        name: ElementType(np.dtype(code))
        for name, code in {
            "F16": "<f2",
            "F32": "<f4",
            "F64": "<f8",
            "I8": "i1",
            "I16": "<i2",
            "I32": "<i4",
            "I64": "<i8",
            "U8": "u1",
            "BOOL": "?",
        }.items()
    },
}
_MAX_SAFETENSORS_HEADER = 100_000_000  # the format's own limit

# What the libraries underneath raise on bytes that make no sense.
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no file at the path that was given."""


@dataclass(frozen=True)
class CheckpointFile:
    """The arrays of a weights file, names as in the file, and their layout, None where the file cannot tell."""

    arrays: dict[str, np.ndarray]
    layout: Layout | None


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a file: name -> array, with names and layout as in the file, in the file's order.

    Reads Paddle's `.pdparams`, PyTorch's `.pth` in both of its formats and `.safetensors`, told apart by content; needs
    neither PyTorch nor Paddle, and runs nothing from the file. Wrappers (`model`, `state_dict` …) and prefixes that all
    names share (`module.`, `backbone.`) are removed; bfloat16 becomes float32, other dtypes stay.

    Raises CheckpointError, which names the file, the reason and the remedy, for a file that is not there, is damaged,
    unpacks to far more than its size, or names anything that weights do not need.
    """
    return read_checkpoint_file(path).arrays


def read_checkpoint_file(path: str | os.PathLike) -> CheckpointFile:
    """As `read_checkpoint`, with the layout that the file's format or metadata tells."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a weights file in it")
    if not path.exists():
        raise MissingCheckpointError(
            f"there is no weights file {path}; check the path, or download the file and put it there"
        )
    try:
        if path.stat().st_size == 0:
            raise damaged("it is empty")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(memoryview(mapped), path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: reading it takes more memory than there is") from error
    except _MALFORMED as error:
        raise CheckpointError(f"{path}: {damaged(f'its content makes no sense ({printable(str(error))})')}") from error


def _read(data: memoryview, path: Path) -> CheckpointFile:
    start = bytes(data[:4096])
    layout: Layout | None
    if start.startswith(ZIP_MAGIC):
        tree, layout = read_torch_zip(data, path), "torch"
    elif start.startswith(LEGACY_MAGIC[:15]):
        tree, layout = read_torch_legacy(data), "torch"
    elif start[:1] == b"\x80":
        tree, layout = _read_paddle(data), "paddle"
    elif len(start) > 8 and start[8:9] == b"{":
        return _read_safetensors(data, path)
    else:
        raise CheckpointError(f"{_guess_format(start)}; weights are read from .pdparams, .pth and .safetensors files")
    # A suffix that contradicts the content leaves open in which layout the program wrote that wrote it.
    if path.suffix == (".pdparams" if layout == "torch" else ".pth"):
        layout = None
    return CheckpointFile(_load_all(_find_weights(tree, path), len(data)), layout)


def _guess_format(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not a weights file: the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights: run git lfs pull"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
        return "it is an archive: unpack it first"
    return "its format is not known, or its beginning is damaged"


def _read_paddle(data: memoryview) -> Any:
    return _with_wide_bfloat16(PickleReader(data, NAMES).read())


def _with_wide_bfloat16(tree: Any) -> Any:
    """`tree` with Paddle's bfloat16 marked, in place: its pickles hold it as uint16."""
    for node in _dictionaries(tree):
        for value in node.values():
            array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
            if isinstance(array, StoredArray) and array.element.dtype.str[1:] == "u2":
                array.element = ElementType(array.element.dtype, bfloat16=True)
    return tree


def _dictionaries(tree: Any, depth: int = _MAX_WRAPPERS) -> Iterable[dict]:
    if isinstance(tree, dict):
        yield tree
        if depth:
            for key in WRAPPERS:
                yield from _dictionaries(tree.get(key), depth - 1)


def _read_safetensors(data: memoryview, path: Path) -> CheckpointFile:
    import safetensors

    size = int.from_bytes(data[:8], "little")
    if size > min(len(data) - 8, _MAX_SAFETENSORS_HEADER):
        raise damaged(f"its header announces {size} bytes, of a file of {len(data)}")
    header = json.loads(bytes(data[8 : 8 + size]), object_pairs_hook=_without_duplicates)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # opening checks every shape, dtype and position against the file's size
    except safetensors.SafetensorError as error:
        raise damaged(f"safetensors refuses it ({printable(str(error))})") from error
    metadata = header.pop("__metadata__", None) or {}
    arrays: dict[str, StoredArray] = {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"refused: {printable(name)} has dtype {entry['dtype']}; weights are {', '.join(_SAFETENSORS_DTYPES)}"
            )
        element = _SAFETENSORS_DTYPES[entry["dtype"]]
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        arrays[name] = StoredArray.from_buffer(data[begin:end], element, check_shape(tuple(entry["shape"])))
    layout = metadata.get("layout") if metadata.get("format") == "cyclemlp" else None
    return CheckpointFile(_load_all(strip_prefixes(arrays), len(data)), layout if layout in LAYOUTS else None)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"refused: the key {printable(twice)!r} stands twice in its header; write the file again")
    return dict(pairs)


def _find_weights(tree: Any, path: Path) -> dict[str, StoredArray]:
    """The flat state dict in what a file holds, without wrappers and prefixes."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(tree, dict):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
        if wrapper is None:
            break
        others = [key for key in WRAPPERS if key != wrapper and isinstance(tree.get(key), dict)]
        if others:
            logger.info("%s: reading its %r; it also has %s", path, wrapper, ", ".join(map(repr, others)))
        tree = tree[wrapper]
    if not isinstance(tree, dict) or not tree:
        raise CheckpointError(
            "no weights in it; a weights file holds a dictionary from names to arrays, alone or under "
            + ", ".join(WRAPPERS)
        )
    tree = {key: value for key, value in tree.items() if key != "StructuredToParameterName@@"}
    tree = _join_slices(tree)
    arrays = {key: value[1] if _is_named_array(value) else value for key, value in tree.items()}
    wrong = [
        printable(str(key))
        for key, value in arrays.items()
        if not isinstance(key, str) or not isinstance(value, StoredArray)
    ]
    if wrong:
        shown = ", ".join(wrong[:10]) + (" …" if len(wrong) > 10 else "")
        raise CheckpointError(
            f"these entries are no arrays: {shown}; save the weights alone, or under a key of {', '.join(WRAPPERS)}"
        )
    return strip_prefixes(arrays)


def _is_named_array(value: Any) -> bool:
    """How Paddle pickles a tensor inside other structures: (name, array)."""
    return (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], StoredArray)
    )


def _join_slices(tree: dict) -> dict:
    """Puts together what Paddle's pickle protocols 2 and 3 cut up: parameters of more than a gigabyte."""
    tree = dict(tree)
    table = tree.pop("UnpackBigParamInfor@@", {})
    if not isinstance(table, dict):
        raise damaged("its table of cut-up parameters makes no sense")
    for name, entry in table.items():
        if name in tree or not isinstance(entry, dict) or not isinstance(entry.get("slices"), list):
            raise damaged(f"its table of cut-up parameters makes no sense at {printable(str(name))!r}")
        parts = [tree.pop(part, None) for part in entry["slices"]]
        shape = entry.get("OriginShape")
        arrays = [part for part in parts if isinstance(part, StoredArray)]
        if len(arrays) != len(parts) or not arrays or len({(part.element, len(part.shape)) for part in arrays}) != 1:
            raise damaged(f"parts of the cut-up parameter {printable(str(name))!r} are missing or differ in dtype")
        tree[name] = JoinedArray(arrays, tuple(shape) if isinstance(shape, list) else shape)
    return tree


def _load_all(arrays: Mapping[str, StoredArray], file_size: int) -> dict[str, np.ndarray]:
    total = sum(array.nbytes for array in arrays.values())
    if total > _MAX_GROWTH * file_size:
        raise CheckpointError(
            f"refused: {file_size:,} bytes would unpack to {total:,}; save the weights as plain, contiguous tensors"
        )
    return {name: array.load() for name, array in arrays.items()}


def strip_prefixes(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` without the prefixes (`module.`, `backbone.` …) that every name has."""
    names = list(arrays)
    while True:
        prefix = next((prefix for prefix in PREFIXES if names and all(name.startswith(prefix) for name in names)), None)
        if prefix is None:
            return dict(zip(names, arrays.values()))
        names = [name.removeprefix(prefix) for name in names]


WriteFile = Callable[[Path], None]


def write_checkpoint(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, layout: Layout = "paddle") -> None:
    """Writes name -> array to a `.pdparams` (Paddle's layout only) or `.safetensors` file, whole or not at all.

    A `.pdparams` is what `paddle.save(state_dict, path)` writes, so `paddle.load` and the toolkits read it.
    The `.safetensors` metadata is {"format": "cyclemlp", "layout": layout}. ValueError for another suffix or layout.
    """
    path = Path(path)
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if path.suffix == ".pdparams" and layout == "paddle":
        import pickle

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                pickle.dump(contiguous, file, protocol=4)

    elif path.suffix == ".safetensors" and layout in LAYOUTS:
        from safetensors.numpy import save_file

        def write(temporary: Path) -> None:
            save_file(contiguous, temporary, metadata={"format": "cyclemlp", "layout": layout})

    else:
        raise ValueError(
            f"cannot write {path} with layout {layout!r}; "
            "a name ends in .pdparams (layout 'paddle') or .safetensors (layout 'paddle' or 'torch')"
        )
    _write_atomically(path, write)


def _write_atomically(path: Path, write: WriteFile) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
