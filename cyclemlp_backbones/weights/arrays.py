"""Arrays that still lie in a file, and what the pickles of NumPy, Paddle and PyTorch name to describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from cyclemlp_backbones.weights.pickles import Inert, Known, LongText, damaged, printable, refused

_NUMBERS = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def check_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of sizes, if it is one."""
    short = isinstance(shape, tuple) and len(shape) <= 16
    if not short or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise damaged("an array's shape, strides or position are not a short tuple of natural numbers")
    return shape


@dataclass(slots=True, eq=False)
class StoredArray:
    """An array that lies in the file; `load` copies it. `offset` and `strides` are in bytes; None are those of `order`.

    No weights are unsigned 16-bit integers: Paddle, PyTorch and safetensors store bfloat16 as such.
    """

    content: Callable[[], Any] | None = None
    dtype: np.dtype = field(default=np.dtype("u1"))
    shape: tuple[int, ...] = ()
    offset: int = 0
    strides: tuple[int, ...] | None = None
    order: Literal["C", "F"] = "C"

    def build(self, state: Any) -> None:
        """What a pickle tells of a `numpy.ndarray` after its construction."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise damaged("a NumPy array in its pickle has no shape, dtype and bytes")
        self.describe(state[1], state[2], "F" if state[3] else "C", state[4])

    def describe(self, shape: Any, dtype: Any, order: Any, content: Any) -> StoredArray:
        if not isinstance(dtype, NumpyDtype) or order not in ("C", "F"):
            raise damaged("a NumPy array in its pickle has no dtype or order")
        if isinstance(content, (bytes, memoryview)):
            self.content = lambda: content
        elif isinstance(content, (str, LongText)):  # bytes of Python 2, or as protocol 2 writes them
            self.content = partial(content.encode, "latin-1")
        else:
            raise damaged("a NumPy array in its pickle has no bytes")
        self.shape, self.dtype, self.order = check_shape(shape), dtype.dtype, order
        self.offset, self.strides = 0, None
        return self

    @property
    def is_bfloat16(self) -> bool:
        return self.dtype.kind == "u" and self.dtype.itemsize == 2

    @property
    def nbytes(self) -> int:
        """The size of the array that `load` returns, in bytes."""
        return math.prod(self.shape) * (4 if self.is_bfloat16 else self.dtype.itemsize)

    def load(self) -> np.ndarray:
        """A copy in this machine's byte order, C order; bfloat16 as float32."""
        array = np.empty(self.shape, np.float32 if self.is_bfloat16 else self.dtype.newbyteorder("="))
        if not array.size:
            return array
        content = self.content() if self.content else b""
        if self.strides is None and len(content) != array.size * self.dtype.itemsize:
            found = f"{len(content)} bytes" if self.content else "no content"
            raise damaged(f"an array of shape {list(self.shape)} and dtype {self.dtype} has {found}")
        stored: np.ndarray = np.ndarray(self.shape, self.dtype, content, self.offset, self.strides, self.order)
        if self.is_bfloat16:
            bits = array.view(np.uint32)
            bits[...] = stored
            bits <<= 16
        else:
            array[...] = stored
        return array


def join(parts: Sequence[StoredArray], shape: Any) -> StoredArray:
    """An array that lies in flat parts, as Paddle's pickle protocols 2 and 3 cut large ones up."""
    contents = [part.content for part in parts if part.content]
    return StoredArray(lambda: b"".join(content() for content in contents), parts[0].dtype, check_shape(shape))


class NumpyDtype:
    """A `numpy.dtype` in a pickle; its byte order follows in BUILD."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code not in _NUMBERS:
            shown = repr(printable(code)) if isinstance(code, str) else type(code).__name__
            what = "object" if isinstance(code, str) and code.strip("|")[:1] == "O" else shown
            raise refused(f"an array of dtype {what}", f"arrays are of numbers: {', '.join(_NUMBERS)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise damaged("a NumPy dtype in its pickle has no byte order")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Storage:
    """A PyTorch storage of `length` elements, whose bytes `content` gives when they are needed."""

    dtype: np.dtype
    length: int
    byte_order: Literal["<", ">"]
    content: Callable[[], memoryview]


def _reconstruct(kind: Any, *_: Any) -> StoredArray:
    if kind is not _NDARRAY:
        raise damaged("its pickle reconstructs what is no NumPy array")
    return StoredArray()


def _encode(text: Any, encoding: Any = "latin1") -> Any:
    """The text itself: an array decodes it when it is loaded."""
    if not isinstance(text, (str, LongText)) or encoding not in ("latin1", "latin-1"):
        raise damaged("its pickle encodes something other than text, or other than as latin1")
    return text


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredArray:
    """A strided tensor; version 3 gives its dtype after two entries that are not needed, else it is the storage's."""
    if not isinstance(storage, Storage):
        raise damaged("its pickle rebuilds a tensor from what is no storage")
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], np.dtype) else storage.dtype
    shape, (offset, *strides) = check_shape(shape), check_shape((offset, *check_shape(strides)))
    length = storage.length * storage.dtype.itemsize // dtype.itemsize
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1
    if len(shape) != len(strides) or (0 not in shape and end > length):
        described = f"a tensor of shape {list(shape)}, strides {strides} and offset {offset}"
        raise damaged(f"{described} needs {end} elements; its storage has {length}")
    in_bytes = tuple(stride * dtype.itemsize for stride in strides)
    order = dtype.newbyteorder(storage.byte_order)
    return StoredArray(storage.content, order, shape, offset * dtype.itemsize, in_bytes)


_NDARRAY = Known("numpy.ndarray")

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},  # pickle sets its items one by one
    "argparse.Namespace": lambda *_: Inert("argparse.Namespace"),
    "_codecs.encode": _encode,
    "numpy.dtype": NumpyDtype,
    "torch.Size": lambda items=(): items if isinstance(items, tuple) else (),
    "torch.device": lambda *_: Inert("torch.device"),
    **{f"torch._utils._rebuild_tensor{version}": _rebuild_tensor for version in ("", "_v2", "_v3")},
    **{f"torch._utils._rebuild_parameter{with_state}": lambda tensor, *_: tensor for with_state in ("", "_with_state")},
}
for _module in ("builtins", "__builtin__"):  # Python 3's name and Python 2's, which protocol 2 writes
    _FUNCTIONS[f"{_module}.tuple"] = _FUNCTIONS["torch.Size"]  # (name, array): how Paddle writes a tensor
    _FUNCTIONS[f"{_module}.bytes"] = lambda: b""
    _FUNCTIONS[f"{_module}.set"] = lambda *_: Inert("set")
for _core in ("numpy.core", "numpy._core"):  # NumPy 1's name and NumPy 2's
    _FUNCTIONS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _FUNCTIONS[f"{_core}.multiarray.scalar"] = lambda dtype, data: StoredArray().describe((), dtype, "C", data)
    _FUNCTIONS[f"{_core}.numeric._frombuffer"] = lambda data, dtype, *how: StoredArray().describe(
        how[0], dtype, how[1], data
    )

_CODES = ("f4", "f8", "f2", "u2", "i8", "i4", "i2", "i1", "u1", "b1", "u1")
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

NAMES: dict[str, Any] = {
    "numpy.ndarray": _NDARRAY,
    "torch.storage.UntypedStorage": np.dtype("u1"),
    **{name: Known(name, call) for name, call in _FUNCTIONS.items()},
    **{f"torch.{name}Storage": np.dtype(f"<{code}") for name, code in zip(_STORAGES, _CODES)},
    **{f"torch.{name}": np.dtype(f"<{code}") for name, code in zip(_TYPES, _CODES)},
}
"""All that a weights file's pickle may name: "module.name" -> what it stands for."""
