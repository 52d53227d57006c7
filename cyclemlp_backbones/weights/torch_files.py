"""PyTorch's two file formats, read without PyTorch: a zip of a pickle and its storages, and the older single stream."""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

from cyclemlp_backbones.weights.arrays import NAMES, ElementType, Storage
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader, damaged, printable

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
"""PyTorch's magic number, then its protocol version 1001, each a pickle."""


def read_torch_zip(data: memoryview, path: Path) -> Any:
    """What `torch.save` put into a zip file; `data` is the content of `path`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:  # OSError: a seek that a broken directory asks for
        raise damaged(f"its zip directory makes no sense ({error})") from error
    by_name: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.filename in by_name:
            raise CheckpointError(
                f"refused: its entry {printable(entry.filename)!r} stands twice in it; write the file again"
            )
        by_name[entry.filename] = entry
    pickles = [name for name in by_name if name.rpartition("/")[2] == "data.pkl"]
    weights = [name for name in by_name if name.endswith((".pdparams", ".pth", ".safetensors"))]
    if len(pickles) != 1 and weights:
        raise CheckpointError(
            f"it is an archive of weights files: unpack it and give one of {printable(', '.join(sorted(weights)))}"
        )
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
            raise CheckpointError(
                f"refused: its entry {printable(entry.filename)!r} is compressed, which torch.save never does; "
                "write the file again"
            )
    if sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError("refused: its entries are larger than the file; write the file again")

    @functools.cache
    def entry_bytes(name: str) -> memoryview:
        if name not in by_name:
            raise damaged(f"its entry {printable(name)!r} is missing")
        return _stored_bytes(data, by_name[name])

    byte_order = _byte_order(bytes(entry_bytes(root + "byteorder"))) if root + "byteorder" in by_name else "<"

    def load_storage(identifier: Any) -> Storage:
        element, key, length, _ = _parse_storage(identifier, 5)
        name = f"{root}data/{key}"
        if name not in by_name:
            raise damaged(f"its storage {printable(key)!r} is missing")
        needed = length * element.dtype.itemsize
        if by_name[name].file_size != needed:
            raise damaged(
                f"its storage {printable(key)!r} has {by_name[name].file_size} bytes; {length} elements need {needed}"
            )
        return Storage(element, length, byte_order, lambda: entry_bytes(name))

    return PickleReader(entry_bytes(pickles[0]), NAMES, load_storage).read()


def _stored_bytes(data: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed entry, not copied, checked against their CRC."""
    header = bytes(data[entry.header_offset : entry.header_offset + 30])
    if len(header) < 30 or not header.startswith(ZIP_MAGIC):
        raise damaged(f"its entry {printable(entry.filename)!r} is not where its zip directory says")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    content = data[start : start + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise damaged(f"its entry {printable(entry.filename)!r} fails its checksum")
    return content


def _byte_order(record: bytes) -> Literal["<", ">"]:
    if record not in (b"little", b"big"):
        raise damaged("its byteorder is neither little nor big")
    return "<" if record == b"little" else ">"


def _parse_storage(identifier: Any, *sizes: int) -> tuple[ElementType, str, int, Any]:
    """(element type, key, number of elements, view) of PyTorch's persistent id of a storage."""
    if not isinstance(identifier, tuple) or len(identifier) not in sizes or identifier[0] != "storage":
        raise damaged("its pickle refers to what is no PyTorch storage")
    _, element, key, _, length, *view = identifier
    if not isinstance(element, ElementType) or not isinstance(key, str) or type(length) is not int or length < 0:
        raise damaged("its pickle refers to a PyTorch storage without type, key or length")
    return element, key, length, view[0] if view else None


def read_torch_legacy(data: memoryview) -> Any:
    """What `torch.save` put into a file of its format before PyTorch 1.6: pickles, then the storages."""
    if bytes(data[: len(LEGACY_MAGIC)]) != LEGACY_MAGIC:
        raise damaged("it begins as PyTorch's legacy format, but not of version 1001")
    contents: dict[str, memoryview] = {}
    described: dict[str, tuple[ElementType, int]] = {}

    def load_storage(identifier: Any) -> Storage:
        element, key, length, view = _parse_storage(identifier, 5, 6)
        if view is not None:
            raise CheckpointError(
                "refused: it has views of storages, as PyTorch 0.3 wrote them; load and save it with a newer PyTorch"
            )
        if described.setdefault(key, (element, length)) != (element, length):
            raise damaged(f"its storage {printable(key)!r} is described in two ways")
        # Legacy files are little-endian whatever machine wrote them; their record of its byte order tells nothing.
        return Storage(element, length, "<", lambda: contents[key])

    reader = PickleReader(data, NAMES, load_storage)
    reader.position = len(LEGACY_MAGIC)
    reader.read()  # sizes of types on the machine that wrote it
    tree = reader.read()
    keys = reader.read()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(described):
        raise damaged("its list of storages is not that of its tensors")
    for key in keys:
        element, length = described[key]
        (announced,) = struct.unpack("<q", reader.take(8))
        if announced != length:
            raise damaged(f"its storage {printable(key)!r} has {announced} elements, where its tensors need {length}")
        contents[key] = reader.take(length * element.dtype.itemsize)
    return tree
