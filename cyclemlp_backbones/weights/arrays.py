"""Arrays that still lie in a file, and what the pickles of NumPy, Paddle and PyTorch name to describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cyclemlp_backbones.weights.pickles import Inert, Known, damaged, printable, refused

_NUMBERS = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def check_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of sizes, if it is one."""
    short = isinstance(shape, tuple) and len(shape) <= 16
    if not short or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise damaged("an array's shape, strides, length or position are not a short tuple of natural numbers")
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
        _, shape, dtype, fortran, content = state
        self.describe(shape, dtype, "F" if fortran else "C", content)

    def describe(self, shape: Any, dtype: Any, order: Any, content: Any) -> StoredArray:
        content = _encode(content) if isinstance(content, str) else content  # bytes of Python 2
        if not isinstance(dtype, NumpyDtype) or order not in ("C", "F"):
            raise damaged("a NumPy array in its pickle has no dtype or order")
        self.content = content if callable(content) else lambda: memoryview(content)
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
            what = "object" if shown.strip("'|").startswith("O") else shown
            raise refused(f"an array of dtype {what}", f"arrays are of numbers: {', '.join(_NUMBERS)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise damaged("a NumPy dtype in its pickle has no byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


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


def _encode(text: Any, encoding: Any = "latin1") -> Callable[[], bytes]:
    """What encodes the text, which may lie in the file, when an array is loaded."""
    if not isinstance(text, (str, memoryview)) or encoding not in ("latin1", "latin-1"):
        raise damaged("its pickle encodes something other than text, or other than as latin1")
    return lambda: (text if isinstance(text, str) else str(text, "utf-8")).encode("latin-1")


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


def _tuple(items: Any = ()) -> tuple:
    return items if isinstance(items, tuple) else ()


_NDARRAY = Known("numpy.ndarray")
_CALLS: dict[Callable[..., Any], str] = {
    lambda: {}: "collections.OrderedDict",  # pickle sets its items one by one
    lambda: b"": "builtins.bytes __builtin__.bytes",  # the second is Python 2's name, which protocol 2 writes
    _tuple: "torch.Size builtins.tuple __builtin__.tuple",  # (name, array): how Paddle writes a tensor
    _encode: "_codecs.encode",
    NumpyDtype: "numpy.dtype",
    # NumPy 1's name and NumPy 2's
    _reconstruct: "numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct",
    lambda dtype, data: StoredArray().describe((), dtype, "C", data): (
        "numpy.core.multiarray.scalar numpy._core.multiarray.scalar"
    ),
    lambda data, dtype, shape, order: StoredArray().describe(shape, dtype, order, data): (
        "numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer"
    ),
    _rebuild_tensor: "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3",
    lambda tensor, *_: tensor: "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state",
}
_TYPES = {
    **{"f4": "float32 FloatStorage", "f8": "float64 DoubleStorage", "f2": "float16 HalfStorage"},
    **{"u2": "bfloat16 BFloat16Storage", "i8": "int64 LongStorage", "i4": "int32 IntStorage"},
    **{"i2": "int16 ShortStorage", "i1": "int8 CharStorage", "b1": "bool BoolStorage"},
    "u1": "uint8 ByteStorage UntypedStorage storage.UntypedStorage",
}
_INERT = ("argparse.Namespace", "torch.device", "builtins.set", "__builtin__.set")

NAMES: dict[str, Any] = {
    "numpy.ndarray": _NDARRAY,
    **{name: Known(name, lambda *_, name=name: Inert(name)) for name in _INERT},
    **{name: Known(name, call) for call, names in _CALLS.items() for name in names.split()},
    **{f"torch.{name}": np.dtype(f"<{code}") for code, names in _TYPES.items() for name in names.split()},
}
"""All that a weights file's pickle may name: "module.name" -> what it stands for."""
