"""Weights files: `.pdparams`, `.pth` (both formats, without PyTorch), `.safetensors`; nothing in them is ever run."""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cyclemlp_backbones.files import write_atomically
from cyclemlp_backbones.weights.arrays import NAMES, StoredArray, check_shape, join
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader, damaged, printable
from cyclemlp_backbones.weights.torch_files import LEGACY_MAGIC, ZIP_MAGIC, read_torch_legacy, read_torch_zip

logger = logging.getLogger(__name__)

Layout = Literal["paddle", "torch"]
LAYOUTS: tuple[Layout, ...] = ("paddle", "torch")

WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "module", "params", "weights"),
    *("model_ema", "state_dict_ema", "ema", "params_ema"),
)
"""Keys under which training programs put the weights; the first that a file has is read."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""Prefixes that wrappers of a network give to all of its names."""

_MAX_WRAPPERS = 4
_MAX_GROWTH, _MAX_SMALL = 2, 8_000_000
"""Arrays outgrow their file where they share a storage or were bfloat16: by this factor and this many bytes at most."""

_SAFETENSORS_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        **{"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1"},
        **{"I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"},
    }.items()
}
_MAX_SAFETENSORS_HEADER = 1_000_000  # bytes, of some 8,000 arrays; as Python objects up to 40 times as many

# What the libraries underneath raise on bytes that make no sense.
_MALFORMED = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile),
)


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no file at the path that was given."""


class CheckpointFile(NamedTuple):
    """The arrays of a weights file, names as in the file, and their layout, None where the file cannot tell."""

    arrays: dict[str, np.ndarray]
    layout: Layout | None


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a file: name -> array, with names and layout as in the file, in the file's order.

    Reads Paddle's `.pdparams`, PyTorch's `.pth` in both of its formats and `.safetensors`, told apart by content; needs
    neither PyTorch nor Paddle, and runs nothing from the file. Wrappers (`model`, `state_dict` …) and prefixes that all
    names share (`module.`, `backbone.`) are removed; bfloat16 becomes float32, other dtypes stay. Takes time linear in
    the file's size, and memory of at most three times that and 64 MB.

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
        raise CheckpointError(f"{path}: {damaged(f'its content makes no sense ({printable(error)})')}") from error


def _read(data: memoryview, path: Path) -> CheckpointFile:
    start = bytes(data[:4096])
    layout: Layout | None = "torch"
    if start.startswith(ZIP_MAGIC):
        stored = _find_weights(read_torch_zip(data, path), path)
    elif start.startswith(LEGACY_MAGIC[:15]):
        stored = _find_weights(read_torch_legacy(data), path)
    elif start[:1] == b"\x80":
        stored, layout = _find_weights(PickleReader(data, NAMES).read(), path), "paddle"
    elif start[8:9] == b"{":
        stored, layout = _read_safetensors(data)
    else:
        raise CheckpointError(f"{_guess_format(start)}; weights are read from .pdparams, .pth and .safetensors files")
    # A suffix that contradicts the content leaves open in which layout the program wrote that wrote it.
    if path.suffix == {"torch": ".pdparams", "paddle": ".pth"}.get(layout or ""):
        layout = None
    total = sum(array.nbytes for array in stored.values())
    if total > _MAX_GROWTH * len(data) + _MAX_SMALL:
        raise CheckpointError(
            f"refused: {len(data):,} bytes would unpack to {total:,}; save the weights as plain, contiguous tensors"
        )
    arrays = strip_prefixes(stored)
    return CheckpointFile({name: array.load() for name, array in arrays.items()}, layout)


def _guess_format(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not a weights file: the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights: run git lfs pull"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
        return "it is an archive: unpack it first"
    return "its format is not known, or its beginning is damaged"


def _read_safetensors(data: memoryview) -> tuple[dict[str, StoredArray], Layout | None]:
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise damaged(f"its header announces {size} bytes, of a file of {len(data)}")
    if size > _MAX_SAFETENSORS_HEADER:
        raise CheckpointError(f"refused: its header has {size:,} bytes; save the weights alone")
    header = json.loads(bytes(data[8 : 8 + size]), object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", None) or {}
    arrays, position = {}, 8 + size
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"refused: {printable(name)} has dtype {printable(entry['dtype'])}; "
                f"weights are {', '.join(_SAFETENSORS_DTYPES)}"
            )
        shape = check_shape(tuple(entry["shape"]))
        begin, end = (8 + size + offset for offset in check_shape(tuple(entry["data_offsets"])))
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
            raise damaged(f"{printable(name)}, {dtype} of shape {list(shape)}, is not at bytes {begin} to {end}")
        arrays[name], position = StoredArray(partial(data.__getitem__, slice(begin, end)), dtype, shape), end
    if position != len(data):
        raise damaged(f"its arrays end at byte {position}, the file at {len(data)}")
    known = {"cyclemlp": metadata.get("layout"), "pt": "torch"}.get(str(metadata.get("format")))
    return arrays, known if known in LAYOUTS else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise CheckpointError(
                f"refused: the key {printable(name)!r} stands twice in its header; write the file again"
            )
        result[name] = value
    return result


def _find_weights(tree: Any, path: Path) -> dict[str, StoredArray]:
    """The flat state dict in what a file holds, without wrappers."""
    for _ in range(_MAX_WRAPPERS):
        wrappers = [key for key in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(key), dict)]
        if not wrappers:
            break
        if wrappers[1:]:
            logger.info("%s: reading its %r; it also has %s", path, wrappers[0], ", ".join(map(repr, wrappers[1:])))
        tree = tree[wrappers[0]]
    if not isinstance(tree, dict) or not tree:
        raise CheckpointError(
            "no weights in it; a weights file holds a dictionary from names to arrays, alone or under "
            + ", ".join(WRAPPERS)
        )
    tree = {key: value for key, value in tree.items() if key != "StructuredToParameterName@@"}
    _join_slices(tree)
    for key, value in tree.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            tree[key] = value[1]  # (name, array): how Paddle pickles a tensor inside other structures
    wrong = [
        printable(key) for key, value in tree.items() if not isinstance(key, str) or not isinstance(value, StoredArray)
    ]
    if wrong:
        shown = ", ".join(wrong[:10]) + (" …" if len(wrong) > 10 else "")
        raise CheckpointError(
            f"these entries are no arrays: {shown}; save the weights alone, or under a key of {', '.join(WRAPPERS)}"
        )
    return tree


def _join_slices(tree: dict) -> None:
    """Puts together what Paddle's pickle protocols 2 and 3 cut up: parameters of more than a gigabyte."""
    table = tree.pop("UnpackBigParamInfor@@", {})
    if not isinstance(table, dict):
        raise damaged("its table of cut-up parameters makes no sense")
    for name, entry in table.items():
        if name in tree or not isinstance(entry, dict) or not isinstance(entry.get("slices"), list):
            raise damaged(f"its table of cut-up parameters makes no sense at {printable(name)!r}")
        parts = [tree.pop(part, None) for part in entry["slices"]]
        shape = entry.get("OriginShape")
        arrays = [part for part in parts if isinstance(part, StoredArray)]
        if len(arrays) != len(parts) or len({part.dtype for part in arrays}) != 1:
            raise damaged(f"parts of the cut-up parameter {printable(name)!r} are missing or differ in dtype")
        tree[name] = join(arrays, tuple(shape) if isinstance(shape, list) else shape)


def strip_prefixes(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` without the prefixes (`module.`, `backbone.` …) that every name has."""
    names = list(arrays)
    for _ in range(_MAX_WRAPPERS):
        prefix = next((prefix for prefix in PREFIXES if names and all(name.startswith(prefix) for name in names)), "")
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, arrays.values()))


def write_checkpoint(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, layout: Layout = "paddle") -> None:
    """Writes name -> array to a `.pdparams` (Paddle's layout only) or `.safetensors` file, whole or not at all.

    A `.pdparams` is what `paddle.save(state_dict, path)` writes, so `paddle.load` and the toolkits read it.
    The `.safetensors` metadata is {"format": "cyclemlp", "layout": layout}. Equal arrays give equal bytes.
    ValueError for another suffix, layout or dtype.
    """
    path = Path(path)
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if path.suffix == ".pdparams" and layout == "paddle":
        write_atomically(path, lambda temporary: temporary.write_bytes(pickle.dumps(contiguous, protocol=4)))
    elif path.suffix == ".safetensors" and layout in LAYOUTS:
        metadata = {"format": "cyclemlp", "layout": layout}
        write_atomically(path, lambda temporary: write_safetensors(temporary, contiguous, metadata))
    else:
        raise ValueError(
            f"cannot write {path} with layout {layout!r}; "
            "a name ends in .pdparams (layout 'paddle') or .safetensors (layout 'paddle' or 'torch')"
        )


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file in the format of safetensors, whose own library writes metadata in varying order."""
    codes = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # keeps every array aligned
    position = 0
    for name, array in ordered:
        code, end = codes.get(array.dtype.newbyteorder("<")), position + array.nbytes
        if code is None:
            raise ValueError(f"{name} has dtype {array.dtype}; safetensors files take {', '.join(codes.values())}")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, array in ordered:
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
