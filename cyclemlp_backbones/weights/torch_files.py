"""PyTorch's two file formats, read without PyTorch: a zip of a pickle and its storages, and the older single stream."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.weights.arrays import NAMES, Storage
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader, damaged, printable

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
"""PyTorch's magic number, then its protocol version 1001, each a pickle."""

_MAX_DIRECTORY = 1_000_000  # bytes, of some 15,000 entries


class _ZipFile(io.FileIO):
    """A zip file that `zipfile` opens for its directory only, which it reads in one go."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise CheckpointError(f"refused: its zip directory has {size:,} bytes; save the weights alone")
        return super().read(size)


def read_torch_zip(data: memoryview, path: Path) -> Any:
    """What `torch.save` put into a zip file; `data` is the content of `path`."""
    try:
        with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:  # OSError: a seek that a broken directory asks for
        raise damaged(f"its zip directory makes no sense ({printable(error)})") from error
    by_name: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        shown = printable(entry.filename)
        if entry.filename in by_name:
            raise CheckpointError(f"refused: its entry {shown!r} stands twice in it; write the file again")
        by_name[entry.filename] = entry
    pickles = [name for name in by_name if name.rpartition("/")[2] == "data.pkl"]
    weights = [printable(name) for name in sorted(by_name) if name.endswith((".pdparams", ".pth", ".safetensors"))]
    if len(pickles) != 1 and weights:
        raise CheckpointError(f"it is an archive of weights files: unpack it and give one of {', '.join(weights[:9])}")
    if len(pickles) != 1:
        raise CheckpointError(
            "it is a zip archive, but not of weights: there is no data.pkl in it; give a file that torch.save wrote"
        )
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in by_name:
        raise CheckpointError(
            "refused: it is a TorchScript program; save the weights alone, with torch.save(model.state_dict(), …)"
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            shown = printable(entry.filename)
            raise CheckpointError(
                f"refused: its entry {shown!r} is compressed, which torch.save never does; write the file again"
            )
    if sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError("refused: its entries are larger than the file; write the file again")

    @functools.cache
    def entry_bytes(name: str) -> memoryview:
        if name not in by_name:
            raise damaged(f"its entry {printable(name)!r} is missing")
        return _stored_bytes(data, by_name[name])

    byte_order = bytes(entry_bytes(root + "byteorder")) if root + "byteorder" in by_name else b"little"
    if byte_order not in (b"little", b"big"):
        raise damaged("its byteorder is neither little nor big")

    def load_storage(identifier: Any) -> Storage:
        dtype, key, length = _parse_storage(identifier)
        name = f"{root}data/{key}"
        size = by_name[name].file_size if name in by_name else "no"
        if size != length * dtype.itemsize:
            raise damaged(f"its storage {printable(key)!r} has {size} bytes; {length} elements of {dtype} do not fit")
        return Storage(dtype, length, "<" if byte_order == b"little" else ">", lambda: entry_bytes(name))

    return PickleReader(entry_bytes(pickles[0]), NAMES, load_storage).read()


def _stored_bytes(data: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed entry, not copied, checked against their CRC."""
    shown = printable(entry.filename)
    header = bytes(data[entry.header_offset : entry.header_offset + 30])
    if len(header) < 30 or not header.startswith(ZIP_MAGIC):
        raise damaged(f"its entry {shown!r} is not where its zip directory says")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    content = data[start : start + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise damaged(f"its entry {shown!r} fails its checksum")
    return content


def _parse_storage(identifier: Any) -> tuple[np.dtype, str, int]:
    """(element type, key, number of elements) of PyTorch's persistent id of a storage."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise damaged("its pickle refers to what is no PyTorch storage")
    _, dtype, key, _, length, *view = identifier
    if not isinstance(dtype, np.dtype) or not isinstance(key, str) or type(length) is not int or length < 0:
        raise damaged("its pickle refers to a PyTorch storage without type, key or length")
    if view not in ([], [None]):
        raise CheckpointError(
            "refused: it has views of storages, as PyTorch 0.3 wrote them; load and save it with a newer PyTorch"
        )
    return dtype, key, length


def read_torch_legacy(data: memoryview) -> Any:
    """What `torch.save` put into a file of its format before PyTorch 1.6: pickles, then the storages."""
    if bytes(data[: len(LEGACY_MAGIC)]) != LEGACY_MAGIC:
        raise damaged("it begins as PyTorch's legacy format, but not of version 1001")
    contents: dict[str, memoryview] = {}
    described: dict[str, tuple[np.dtype, int]] = {}

    def content_of(key: str) -> Callable[[], memoryview]:
        return lambda: contents[key]

    def load_storage(identifier: Any) -> Storage:
        dtype, key, length = _parse_storage(identifier)
        if described.setdefault(key, (dtype, length)) != (dtype, length):
            raise damaged(f"its storage {printable(key)!r} is described in two ways")
        # Legacy files are little-endian whatever machine wrote them; their record of its byte order tells nothing.
        return Storage(dtype, length, "<", content_of(key))

    reader = PickleReader(data, NAMES, load_storage)
    reader.position = len(LEGACY_MAGIC)
    _sizes, tree, keys = reader.read(), reader.read(), reader.read()  # sizes of types on the machine that wrote it
    unknown = not isinstance(keys, list) or not all(isinstance(key, str) for key in keys)
    if unknown or len(keys) != len(described) or set(keys) != set(described):
        raise damaged("its list of storages is not that of its tensors")
    for key in keys:
        dtype, length = described[key]
        (announced,) = struct.unpack("<q", reader.take(8))
        if announced != length:
            raise damaged(f"its storage {printable(key)!r} has {announced} elements, where its tensors need {length}")
        contents[key] = reader.take(length * dtype.itemsize)
    return tree
