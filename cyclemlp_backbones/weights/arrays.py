"""Arrays that still lie in a file, and what the pickles of NumPy, Paddle and PyTorch name to describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from cyclemlp_backbones.weights.pickles import CheckpointError, Inert, Known, LongText, damaged, printable

_MAX_DIMENSIONS = 16
_NUMBER_CODES = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def check_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of sizes, if it is one."""
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape)
    ):
        raise damaged("an array's shape or strides are not a short tuple of natural numbers")
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
        if not isinstance(content, (bytes, memoryview, str, LongText)):
            raise damaged("a NumPy array in its pickle has no bytes")
        if isinstance(content, (bytes, memoryview)):
            self.content = lambda: content
        else:  # bytes of Python 2, or as protocol 2 writes them
            self.content = partial(content.encode, "latin-1")
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
        if array.size:
            self.fill(array)
        return array

    def fill(self, array: np.ndarray) -> None:
        """Copies the content into `array`, without another copy in between."""
        content = self.content() if self.content is not None else b""
        needed = math.prod(self.shape) * self.dtype.itemsize
        if self.strides is None and len(content) != needed:
            raise damaged(
                f"an array of shape {list(self.shape)} and dtype {self.dtype} has "
                + (f"{len(content)} bytes; it needs {needed}" if self.content else "no content")
            )
        stored: np.ndarray = np.ndarray(self.shape, self.dtype, content, self.offset, self.strides, self.order)
        if self.is_bfloat16:
            bits = array.view(np.uint32)
            bits[...] = stored
            bits <<= 16
        else:
            array[...] = stored


def join(parts: Sequence[StoredArray], shape: Any) -> StoredArray:
    """An array that lies in flat parts, as Paddle's pickle protocols 2 and 3 cut large ones up."""
    contents = [part.content for part in parts if part.content is not None]
    return StoredArray(lambda: b"".join(content() for content in contents), parts[0].dtype, check_shape(shape))


class NumpyDtype:
    """A `numpy.dtype` in a pickle; its byte order follows in BUILD."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code not in _NUMBER_CODES:
            what = "Python objects (dtype object)" if isinstance(code, str) and code.strip("|")[:1] == "O" else None
            shown = what or f"dtype {printable(code) if isinstance(code, str) else type(code).__name__!r}"
            raise CheckpointError(f"refused: an array of {shown}; allowed are numbers, {', '.join(_NUMBER_CODES)}")
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
    shape, strides = check_shape(shape), check_shape(strides)
    (offset,) = check_shape((offset,))
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], np.dtype) else storage.dtype
    length = storage.length * storage.dtype.itemsize // dtype.itemsize
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1
    if len(shape) != len(strides) or (0 not in shape and end > length):
        raise damaged(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} needs {end} elements; "
            f"its storage has {length}"
        )
    offset, strides = offset * dtype.itemsize, tuple(stride * dtype.itemsize for stride in strides)
    return StoredArray(storage.content, dtype.newbyteorder(storage.byte_order), shape, offset, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> StoredArray:
    if not isinstance(tensor, StoredArray):
        raise damaged("its pickle rebuilds a parameter from what is no tensor")
    return tensor


def _ordered_dict(items: Any = ()) -> dict:
    if items != ():
        raise damaged("its pickle fills an OrderedDict by a call")  # pickle sets the items one by one
    return {}


def _tuple(items: Any = ()) -> tuple:
    return items if isinstance(items, tuple) else ()


_NDARRAY = Known("numpy.ndarray")

_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _ordered_dict,
    "argparse.Namespace": lambda *_: Inert("argparse.Namespace"),
    "_codecs.encode": _encode,
    "numpy.dtype": NumpyDtype,
    "torch.Size": _tuple,
    "torch.device": lambda *_: Inert("torch.device"),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
for _module in ("builtins", "__builtin__"):  # Python 3's name and Python 2's, which protocol 2 writes
    _FUNCTIONS[f"{_module}.tuple"] = _tuple  # (name, array): how Paddle writes a tensor
    _FUNCTIONS[f"{_module}.bytes"] = lambda: b""
    _FUNCTIONS[f"{_module}.set"] = lambda *_: Inert("set")
for _core in ("numpy.core", "numpy._core"):  # NumPy 1's name and NumPy 2's
    _FUNCTIONS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _FUNCTIONS[f"{_core}.multiarray.scalar"] = lambda dtype, content: StoredArray().describe((), dtype, "C", content)
    _FUNCTIONS[f"{_core}.numeric._frombuffer"] = lambda content, dtype, shape, order: StoredArray().describe(
        shape, dtype, order, content
    )

_TORCH_TYPES = {
    "f4": ("FloatStorage", "float32"),
    "f8": ("DoubleStorage", "float64"),
    "f2": ("HalfStorage", "float16"),
    "u2": ("BFloat16Storage", "bfloat16"),
    "i8": ("LongStorage", "int64"),
    "i4": ("IntStorage", "int32"),
    "i2": ("ShortStorage", "int16"),
    "i1": ("CharStorage", "int8"),
    "u1": ("ByteStorage", "uint8", "UntypedStorage", "storage.UntypedStorage"),
    "b1": ("BoolStorage", "bool"),
}

NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    **{(name.rpartition(".")[0], name.rpartition(".")[2]): Known(name, call) for name, call in _FUNCTIONS.items()},
    **{
        (f"torch.{name}".rpartition(".")[0], name.rpartition(".")[2]): np.dtype(f"<{code}")
        for code, names in _TORCH_TYPES.items()
        for name in names
    },
}
"""All that a weights file's pickle may name: (module, name) -> what it stands for."""
