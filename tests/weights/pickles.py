"""Weights files written byte by byte, as PyTorch would write them and as an attacker would."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

PROTO = b"\x80\x02"
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + b"\x80\x02}."


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(
    storage: str,
    key: str,
    length: int,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int = 0,
    *,
    view: bytes = b"",
) -> bytes:
    """A tensor; `view` is empty for a zip file, b"N" (None) for a legacy file."""
    identifier = (
        b"(" + text("storage") + name("torch", storage) + text(key) + text("cpu") + integer(length) + view + b"tQ"
    )
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = identifier + integer(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def write_torch_zip(
    path: Path,
    content: bytes,
    storages: dict[str, bytes],
    *,
    byte_order: str = "little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", PROTO + content + b".")
        archive.writestr("archive/byteorder", byte_order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_torch_legacy(path: Path, content: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    """`storages`: key -> (number of elements, bytes)."""
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    data = b"".join(struct.pack("<q", length) + raw for length, raw in storages.values())
    path.write_bytes(LEGACY_START + PROTO + content + b"." + PROTO + keys + b"." + data)
    return path


def write_safetensors(path: Path, header: dict | str, data: bytes) -> Path:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path
