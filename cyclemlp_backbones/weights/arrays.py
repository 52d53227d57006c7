"""What NumPy's, Paddle's and PyTorch's pickles name, as inert data: the table that `PickleReader` is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cyclemlp_backbones.weights.pickles import CheckpointError, Constructor, Inert, damaged, printable

_MAX_DIMENSIONS = 16
_NUMBER_CODES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])


@dataclass(frozen=True)
class ElementType:
    """The type of an array's elements as stored: a NumPy dtype; bfloat16 is stored as unsigned 16-bit integers."""

    dtype: np.dtype
    bfloat16: bool = False


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16, as uint16 -> the same numbers as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class StoredArray:
    """An array that still lies in the file; `load` copies it."""

    def __init__(self, view: Callable[[], np.ndarray], shape: tuple[int, ...], element: ElementType):
        self._view = view
        self.shape = shape
        self.element = element

    @classmethod
    def from_buffer(cls, content: memoryview, element: ElementType, shape: tuple[int, ...]) -> StoredArray:
        """An array of `shape`, C order, whose elements are all of `content`; CheckpointError if sizes differ."""
        if len(content) != math.prod(shape) * element.dtype.itemsize:
            raise damaged(f"an array of shape {list(shape)} and dtype {element.dtype} has {len(content)} bytes")
        return cls(lambda: np.ndarray(shape, element.dtype, buffer=content), shape, element)

    @property
    def nbytes(self) -> int:
        """The size of the array that `load` returns, in bytes."""
        return math.prod(self.shape) * (4 if self.element.bfloat16 else self.element.dtype.itemsize)

    def load(self) -> np.ndarray:
        """A copy in this machine's byte order, C order; bfloat16 as float32."""
        stored = self._view()
        native = np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C")
        return widen_bfloat16(native) if self.element.bfloat16 else native


class JoinedArray(StoredArray):
    """An array that lies in the file in flat parts."""

    def __init__(self, parts: Sequence[StoredArray], shape: Any):
        shape = check_shape(shape)
        length = sum(math.prod(part.shape) for part in parts)
        if length != math.prod(shape):
            raise damaged(
                f"the parts of a cut-up parameter of shape {list(shape)} have {length} elements, not {math.prod(shape)}"
            )
        super().__init__(
            lambda: np.concatenate([part.load() for part in parts]).reshape(shape), shape, parts[0].element
        )

    def load(self) -> np.ndarray:
        return self._view()  # its parts are copies in this machine's byte order already


def check_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of sizes, if it is one."""
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise damaged("an array's shape or strides are not a short tuple of natural numbers")
    return shape


class NumpyDtype:
    """A `numpy.dtype` in a pickle; its byte order follows in BUILD."""

    def __init__(self, code: Any, *_: Any):
        if isinstance(code, str) and code.startswith(("O", "|O")):
            raise CheckpointError("refused: an array of Python objects (dtype object); save arrays of numbers")
        if not isinstance(code, str) or code not in _NUMBER_CODES:
            raise CheckpointError(
                f"refused: an array of dtype {printable(str(code))!r}; allowed are {', '.join(sorted(_NUMBER_CODES))}"
            )
        self._code = code
        self._order = "="

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise damaged("a NumPy dtype in its pickle has no byte order")
        self._order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._order + self._code)


class NumpyArray(StoredArray):
    """A `numpy.ndarray` in a pickle; shape, dtype and bytes follow in BUILD."""

    def __init__(self) -> None:
        super().__init__(self._missing, (), ElementType(np.dtype("u1")))

    @staticmethod
    def _missing() -> np.ndarray:
        raise damaged("a NumPy array in its pickle has no content")

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise damaged("a NumPy array in its pickle has no shape, dtype and bytes")
        _, shape, dtype, fortran_order, content = state
        self.fill(shape, dtype, "F" if fortran_order else "C", content)

    def fill(self, shape: Any, dtype: Any, order: Any, content: Any) -> None:
        shape = check_shape(shape)
        if not isinstance(dtype, NumpyDtype) or (order != "C" and order != "F"):
            raise damaged("a NumPy array in its pickle has no dtype or order")
        if isinstance(content, str):
            content = content.encode("latin-1")  # bytes of Python 2
        if not isinstance(content, (bytes, memoryview)):
            raise damaged("a NumPy array in its pickle has no bytes")
        needed = math.prod(shape) * dtype.dtype.itemsize
        if len(content) != needed:
            raise damaged(
                f"an array of shape {list(shape)} and dtype {dtype.dtype} has {len(content)} bytes; it needs {needed}"
            )
        self.shape = shape
        self.element = ElementType(dtype.dtype)
        self._view = lambda: np.ndarray(shape, dtype.dtype, buffer=content, order=order)


def _reconstruct(kind: Any, *_: Any) -> NumpyArray:
    if kind is not _NDARRAY:
        raise damaged("its pickle reconstructs what is no NumPy array")
    return NumpyArray()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    array = NumpyArray()
    array.fill(shape, dtype, order, content)
    return array


def _scalar(dtype: Any, content: Any) -> NumpyArray:
    array = NumpyArray()
    array.fill((), dtype, "C", content)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise damaged("its pickle encodes text other than as latin1")
    return text.encode("latin-1")


@dataclass(frozen=True)
class Storage:
    """A PyTorch storage of `length` elements, whose bytes `open` gives when they are needed."""

    element: ElementType
    length: int
    byte_order: Literal["<", ">"]
    open: Callable[[], memoryview]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredArray:
    if not isinstance(storage, Storage):
        raise damaged("its pickle rebuilds a tensor from what is no storage")
    return _strided(storage, storage.element, storage.length, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, element: Any, *_: Any
) -> StoredArray:
    if not isinstance(storage, Storage) or not isinstance(element, ElementType):
        raise damaged("its pickle rebuilds a tensor from what is no storage")
    length = storage.length * storage.element.dtype.itemsize // element.dtype.itemsize
    return _strided(storage, element, length, offset, shape, strides)


def _strided(storage: Storage, element: ElementType, length: int, offset: Any, shape: Any, strides: Any) -> StoredArray:
    shape, strides = check_shape(shape), check_shape(strides)
    (offset,) = check_shape((offset,))
    if len(shape) != len(strides):
        raise damaged(f"a tensor has shape {list(shape)} and strides {list(strides)}")
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1
    if 0 not in shape and end > length:
        raise damaged(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} needs {end} elements; "
            f"its storage has {length}"
        )
    dtype = element.dtype.newbyteorder(storage.byte_order)

    def view() -> np.ndarray:
        if 0 in shape:
            return np.empty(shape, dtype)
        bytes_per_step = tuple(stride * dtype.itemsize for stride in strides)
        return np.ndarray(shape, dtype, buffer=storage.open(), offset=offset * dtype.itemsize, strides=bytes_per_step)

    return StoredArray(view, shape, element)


def _rebuild_parameter(tensor: Any, *_: Any) -> StoredArray:
    if not isinstance(tensor, StoredArray):
        raise damaged("its pickle rebuilds a parameter from what is no tensor")
    return tensor


def _ordered_dict(items: Any = ()) -> dict:
    if items != ():
        raise damaged("its pickle fills an OrderedDict by a call")  # pickle sets the items one by one
    return {}


def _tuple(items: Any = ()) -> tuple:
    return tuple(items) if isinstance(items, (tuple, list)) else ()


def _inert(name: str) -> Constructor:
    return Constructor(name, lambda *_: Inert(name))


def _element(code: str, *, bfloat16: bool = False) -> ElementType:
    return ElementType(np.dtype("<" + code), bfloat16)


_NDARRAY = Inert("numpy.ndarray")

_TORCH_TYPES = {
    ("FloatStorage", "float32"): _element("f4"),
    ("DoubleStorage", "float64"): _element("f8"),
    ("HalfStorage", "float16"): _element("f2"),
    ("BFloat16Storage", "bfloat16"): _element("u2", bfloat16=True),
    ("LongStorage", "int64"): _element("i8"),
    ("IntStorage", "int32"): _element("i4"),
    ("ShortStorage", "int16"): _element("i2"),
    ("CharStorage", "int8"): _element("i1"),
    ("ByteStorage", "uint8"): _element("u1"),
    ("BoolStorage", "bool"): _element("b1"),
    ("UntypedStorage",): _element("u1"),
}


def _names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): Constructor("collections.OrderedDict", _ordered_dict),
        ("argparse", "Namespace"): _inert("argparse.Namespace"),
        ("_codecs", "encode"): Constructor("_codecs.encode", _encode),
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): Constructor("numpy.dtype", NumpyDtype),
        ("torch", "Size"): Constructor("torch.Size", _tuple),
        ("torch", "device"): _inert("torch.device"),
        ("torch.storage", "UntypedStorage"): _element("u1"),
        ("torch._utils", "_rebuild_tensor"): Constructor("torch._utils._rebuild_tensor", _rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Constructor("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Constructor("torch._utils._rebuild_tensor_v3", _rebuild_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): Constructor("torch._utils._rebuild_parameter", _rebuild_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): Constructor(
            "torch._utils._rebuild_parameter_with_state", _rebuild_parameter
        ),
    }
    for module in ("builtins", "__builtin__"):  # Python 3's name and Python 2's, which protocol 2 writes
        names[module, "tuple"] = Constructor("tuple", _tuple)  # (name, array): how Paddle writes a tensor
        names[module, "bytes"] = Constructor("bytes", lambda: b"")
        names[module, "set"] = _inert("set")
    for core in ("numpy.core", "numpy._core"):  # NumPy 1's name and NumPy 2's
        names[core + ".multiarray", "_reconstruct"] = Constructor("numpy._reconstruct", _reconstruct)
        names[core + ".multiarray", "scalar"] = Constructor("numpy.scalar", _scalar)
        names[core + ".numeric", "_frombuffer"] = Constructor("numpy._frombuffer", _from_buffer)
    for aliases, element in _TORCH_TYPES.items():
        for alias in aliases:
            names["torch", alias] = element
    return names


NAMES = _names()
"""All that a weights file's pickle may name: (module, name) -> what it stands for."""
