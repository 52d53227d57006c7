"""Weights files: `.pdparams`, `.pth` (both formats, without PyTorch), `.safetensors`; nothing in them is ever run."""

from __future__ import annotations

import functools
import io
import json
import logging
import math
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.numpy

from cyclemlp_backbones.files import write_atomically
from cyclemlp_backbones.weights.arrays import NAMES, Storage, StoredArray, check_shape, join
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader, damaged, listed, printable, refused

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

_DTYPES = ("BF16 <u2", "F16 <f2", "F32 <f4", "F64 <f8", "I8 i1", "I16 <i2", "I32 <i4", "I64 <i8", "U8 u1", "BOOL ?")
_SAFETENSORS_DTYPES = {name: np.dtype(code) for name, code in map(str.split, _DTYPES)}
_MAX_HEADER = 1_000_000  # bytes, of some 8,000 arrays; as Python objects up to 40 times as many
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # PyTorch's number, version 1001


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
        advice = "check the path, or use pretrained=True for the published weights"
        raise MissingCheckpointError(f"there is no weights file {path}; {advice}")
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
    except OSError:
        raise
    except Exception as error:  # whatever the libraries underneath raise on bytes that make no sense
        shown = f"{type(error).__name__}: {printable(error)}"
        raise CheckpointError(f"{path}: {damaged(f'its content makes no sense ({shown})')}") from error


def _read(data: memoryview, path: Path) -> CheckpointFile:
    start = bytes(data[:4096])
    layout: Layout | None = "torch"
    if start.startswith(_ZIP_MAGIC):
        stored = _find_weights(_read_torch_zip(data, path), path)
    elif start.startswith(_LEGACY_MAGIC[:15]):
        stored = _find_weights(_read_torch_legacy(data), path)
    elif start[4:9] == b"\0\0\0\0{":  # before it the length of a header, whose first bytes may be a pickle's
        stored, layout = _read_safetensors(data)
    elif start[:1] == b"\x80":
        stored, layout = _find_weights(PickleReader(data, NAMES).read(), path), "paddle"
    else:
        raise CheckpointError(f"{_guess_format(start)}; weights are read from .pdparams, .pth and .safetensors files")
    # A suffix that contradicts the content leaves open in which layout the program wrote that wrote it.
    if path.suffix == {"torch": ".pdparams", "paddle": ".pth"}.get(layout or ""):
        layout = None
    total = sum(array.nbytes for array in stored.values())
    if total > _MAX_GROWTH * len(data) + _MAX_SMALL:
        raise refused(f"{len(data):,} bytes would unpack to {total:,}", "save plain, contiguous tensors")
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


class _ZipFile(io.FileIO):
    """A zip file that `zipfile` opens for its directory only, which it reads in one go."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_HEADER:
            raise refused(f"its zip directory has {size:,} bytes", "save the weights alone")
        return super().read(size)


def _read_torch_zip(data: memoryview, path: Path) -> Any:
    """What `torch.save` put into a zip file: a pickle, and an entry for each storage that it refers to."""
    try:
        with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:  # OSError: a seek that a broken directory asks for
        raise damaged(f"its zip directory makes no sense ({printable(error)})") from error
    by_name = {entry.filename: entry for entry in entries}
    weights = [printable(name) for name in sorted(by_name) if name.endswith((".pdparams", ".pth", ".safetensors"))]
    roots = [name.removesuffix("data.pkl") for name in by_name if f"/{name}".endswith("/data.pkl")]
    if len(roots) != 1:
        advice = f"unpack it and give one of {', '.join(weights[:9])}" if weights else "there is no data.pkl in it"
        raise CheckpointError(f"it is a zip archive, but not of weights that torch.save wrote: {advice}")
    (root,) = roots
    if f"{root}constants.pkl" in by_name:
        raise refused("it is a TorchScript program", "save its weights: torch.save(model.state_dict(), …)")
    for entry in entries:
        twice = by_name[entry.filename] is not entry
        if twice or entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            what = f"its entry {printable(entry.filename)!r} {'stands twice in it' if twice else 'is compressed'}"
            raise refused(f"{what}, which torch.save never does", "write the file again")
    if sum(entry.file_size for entry in entries) > len(data):
        raise refused("its entries are larger than the file", "write the file again")

    @functools.cache
    def content_of(name: str) -> memoryview:
        """The bytes of an entry, not copied, checked against their CRC."""
        entry = by_name[name]
        sizes = data[entry.header_offset + 26 : entry.header_offset + 30]  # of the name and the extra field
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", sizes))
        content = data[start : start + entry.file_size]
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise damaged(f"its entry {printable(name)!r} fails its checksum")
        return content

    byte_order = bytes(content_of(f"{root}byteorder")) if f"{root}byteorder" in by_name else b"little"
    if byte_order not in (b"little", b"big"):
        raise damaged("its byteorder is neither little nor big")

    def load_storage(identifier: Any) -> Storage:
        dtype, key, length = _parse_storage(identifier)
        name = f"{root}data/{key}"
        if name not in by_name or by_name[name].file_size != length * dtype.itemsize:
            raise damaged(f"it has no storage {printable(key)!r} of {length} elements of {dtype}")
        return Storage(dtype, length, "<" if byte_order == b"little" else ">", lambda: content_of(name))

    return PickleReader(content_of(f"{root}data.pkl"), NAMES, load_storage).read()


def _parse_storage(identifier: Any) -> tuple[np.dtype, str, int]:
    """(element type, key, number of elements) of PyTorch's persistent id of a storage."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise damaged("its pickle refers to what is no PyTorch storage")
    kind, dtype, key, _, length, *view = identifier
    if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
        raise damaged("its pickle refers to what is no PyTorch storage")
    if view not in ([], [None]):
        raise refused("it has views of storages, as PyTorch 0.3 wrote them", "load and save it with a newer PyTorch")
    return dtype, key, check_shape((length,))[0]


def _read_torch_legacy(data: memoryview) -> Any:
    """What `torch.save` put into a file of its format before PyTorch 1.6: pickles, then the storages."""
    if bytes(data[: len(_LEGACY_MAGIC)]) != _LEGACY_MAGIC:
        raise damaged("it begins as PyTorch's legacy format, but not of version 1001")
    contents: dict[str, memoryview] = {}
    described: dict[str, tuple[np.dtype, int]] = {}

    def load_storage(identifier: Any) -> Storage:
        dtype, key, length = _parse_storage(identifier)
        if described.setdefault(key, (dtype, length)) != (dtype, length):
            raise damaged(f"its storage {printable(key)!r} is described in two ways")
        # Legacy files are little-endian whatever machine wrote them; their record of its byte order tells nothing.
        return Storage(dtype, length, "<", lambda: contents[key])

    reader = PickleReader(data, NAMES, load_storage)
    reader.position = len(_LEGACY_MAGIC)
    _sizes, tree, keys = reader.read(), reader.read(), reader.read()  # sizes of types on the machine that wrote it
    known = isinstance(keys, list) and len(keys) == len(described) and all(isinstance(key, str) for key in keys)
    if not known or set(keys) != set(described):
        raise damaged("its list of storages is not that of its tensors")
    for key in keys:
        dtype, length = described[key]
        if int.from_bytes(reader.take(8), "little") != length:
            raise damaged(f"its storage {printable(key)!r} has not the {length} elements that its tensors need")
        contents[key] = reader.take(length * dtype.itemsize)
    return tree


def _read_safetensors(data: memoryview) -> tuple[dict[str, StoredArray], Layout | None]:
    start = position = 8 + int.from_bytes(data[:8], "little")
    if start > _MAX_HEADER:
        raise refused(f"its header has {start - 8:,} bytes", "save the weights alone")
    header = json.loads(bytes(data[8:start]), object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", None) or {}
    arrays = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            allowed = f"allowed are {', '.join(_SAFETENSORS_DTYPES)}"
            raise refused(f"{printable(name)} has dtype {printable(entry['dtype'])}", allowed)
        dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], check_shape(tuple(entry["shape"]))
        begin, end = (start + offset for offset in check_shape(tuple(entry["data_offsets"])))
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
            raise damaged(f"{printable(name)}, {dtype} of shape {list(shape)}, is not at bytes {begin} to {end}")
        arrays[name], position = StoredArray(functools.partial(data.__getitem__, slice(begin, end)), dtype, shape), end
    if position != len(data):
        raise damaged(f"its arrays end at byte {position}, the file at {len(data)}")
    known = {"cyclemlp": metadata.get("layout"), "pt": "torch"}.get(str(metadata.get("format")))
    return arrays, known if known in LAYOUTS else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise refused(f"the key {printable(name)!r} stands twice in its header", "write the file again")
        names.add(name)
    return dict(pairs)


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
        allowed = f"a dictionary from names to arrays, alone or under {', '.join(WRAPPERS)}"
        raise CheckpointError(f"no weights in it; a weights file holds {allowed}")
    tree = {key: value for key, value in tree.items() if key != "StructuredToParameterName@@"}
    _join_slices(tree)
    for key, value in tree.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            tree[key] = value[1]  # (name, array): how Paddle pickles a tensor inside other structures
    wrong = [key for key, value in tree.items() if not (isinstance(key, str) and isinstance(value, StoredArray))]
    if wrong:
        keys = ", ".join(WRAPPERS)
        raise CheckpointError(f"no arrays: {listed(wrong, 10)}; save the weights alone, or under a key of {keys}")
    return tree


def _join_slices(tree: dict) -> None:
    """Puts together what Paddle's pickle protocols 2 and 3 cut up: parameters of more than a gigabyte."""
    for name, entry in tree.pop("UnpackBigParamInfor@@", {}).items():
        slices, shape = entry["slices"], entry["OriginShape"]
        if name in tree or not isinstance(slices, list):  # bytes would make a list many times as large
            raise damaged(f"its table of cut-up parameters makes no sense at {printable(name)!r}")
        parts = [tree.pop(part, None) for part in slices]
        if not all(isinstance(part, StoredArray) for part in parts) or len({part.dtype for part in parts}) != 1:
            raise damaged(f"parts of the cut-up parameter {printable(name)!r} are missing or differ in dtype")
        tree[name] = join(parts, tuple(shape) if isinstance(shape, list) else shape)


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
        write_atomically(path, lambda temporary: _write_safetensors(temporary, contiguous, metadata))
    else:
        raise ValueError(
            f"cannot write {path} with layout {layout!r}; "
            "a name ends in .pdparams (layout 'paddle') or .safetensors (layout 'paddle' or 'torch')"
        )


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Puts the metadata into what the library writes, which writes it itself in varying order."""
    known = [dtype for name, dtype in _SAFETENSORS_DTYPES.items() if name != "BF16"]
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<") not in known:
            raise ValueError(f"{name} has dtype {array.dtype}; safetensors files take {', '.join(map(str, known))}")
    content = memoryview(safetensors.numpy.save(arrays))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(bytes(content[8:end]))}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.writelines((struct.pack("<Q", len(header)), header, content[end:]))
