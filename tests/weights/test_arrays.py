"""What a pickle tells of arrays is checked before anything is taken from the file."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclemlp_backbones.weights.arrays import NAMES, NumpyDtype, Storage, StoredArray, check_shape, join
from cyclemlp_backbones.weights.pickles import CheckpointError
from tests.properties import examples

F4 = np.dtype("<f4")
RANGE = np.arange(12, dtype=np.float32)


def storage(dtype=F4, length=12, byte_order="<"):
    return Storage(np.dtype(dtype), length, byte_order, lambda: memoryview(RANGE.tobytes()))


def rebuild(*arguments, version=2):
    suffix = {1: "", 2: "_v2", 3: "_v3"}[version]
    return NAMES[f"torch._utils._rebuild_tensor{suffix}"].call(*arguments)


def test_a_shape_is_a_short_tuple_of_sizes():
    for shape in ((), (0,), (2**62 - 1, 1), (1,) * 16):
        assert check_shape(shape) == shape
    for wrong in ([1], "12", None, (1,) * 17, (-1,), (2**62,), (True,), (1.0,), ("1",)):
        with pytest.raises(CheckpointError, match="are not a short tuple of natural numbers; the file is damaged"):
            check_shape(wrong)


@pytest.mark.parametrize("code", ["u1", "u2", "i8", "f2", "f4", "f8", "b1"])
def test_the_size_of_an_array_is_told_before_it_is_loaded(code):
    dtype = np.dtype(code)
    array = StoredArray(lambda: bytes(6 * dtype.itemsize), dtype, (2, 3))
    assert array.nbytes == array.load().nbytes
    assert array.is_bfloat16 == (code == "u2")
    assert StoredArray(None, dtype, (0, 3)).nbytes == 0
    assert StoredArray(None, dtype, (0, 3)).load().shape == (0, 3)


def test_an_array_has_as_many_bytes_as_its_shape_needs():
    for content, found in ((lambda: bytes(23), "23 bytes"), (lambda: bytes(25), "25 bytes"), (None, "no content")):
        with pytest.raises(CheckpointError, match=re.escape(f"of shape [2, 3] and dtype float32 has {found};")):
            StoredArray(content, np.dtype("f4"), (2, 3)).load()


def test_an_array_needs_a_dtype_and_an_order():
    for dtype, order in (("f4", "C"), (NumpyDtype("f4"), "K"), (NumpyDtype("f4"), None)):
        with pytest.raises(CheckpointError, match="a NumPy array in its pickle has no dtype or order"):
            StoredArray().describe((1,), dtype, order, b"1234")
    assert NAMES["builtins.bytes"].call() == NAMES["__builtin__.bytes"].call() == b""  # of empty arrays in protocol 2
    with pytest.raises(CheckpointError, match="reconstructs what is no NumPy array"):
        NAMES["numpy.core.multiarray._reconstruct"].call(NAMES["numpy.dtype"], (0,), "b")
    made = StoredArray(None, F4, (3,), 8, (4,))
    made.build((1, (2, 2), NumpyDtype("i2"), True, np.arange(4, dtype="i2").tobytes()))
    assert made.load().tolist() == [[0, 2], [1, 3]]  # Fortran's order; what it was before does not count
    made.build((1, (4,), NumpyDtype("u1"), False, "aé\x00ÿ"))
    assert made.load().tolist() == [97, 233, 0, 255]  # Python 2's bytes


def test_dtypes_are_of_numbers():
    kinds = {"O8": "object", "|O": "object", "U1": "'U1'", "V8": "'V8'", 7: "int", None: "NoneType"}
    for code, shown in kinds.items():
        with pytest.raises(CheckpointError, match=re.escape(f"of dtype {shown}; arrays are of numbers: b1, f2")):
            NumpyDtype(code)
    for order, expected in (("<", "<f4"), (">", ">f4"), ("=", "=f4"), ("|", "f4")):
        dtype = NumpyDtype("f4", False, True)
        dtype.build((3, order, None))
        assert dtype.dtype == np.dtype(expected)
    with pytest.raises(CheckpointError, match="a NumPy dtype in its pickle has no byte order"):
        NumpyDtype("f4").build((3, "x"))


def test_scalars_and_flat_buffers_are_arrays():
    (one,) = {NAMES[f"numpy.{core}.multiarray.scalar"].call for core in ("core", "_core")}
    assert one(NumpyDtype("f4"), RANGE[7:8].tobytes()).load() == np.float32(7)
    (flat,) = {NAMES[f"numpy.{core}.numeric._frombuffer"].call for core in ("core", "_core")}
    assert flat(RANGE.tobytes(), NumpyDtype("f4"), (3, 4), "F").load().tolist() == RANGE.reshape(4, 3).T.tolist()


def test_texts_are_encoded_as_latin1_only():
    encode = NAMES["_codecs.encode"].call
    assert encode("é")() == encode(memoryview("é".encode()), "latin-1")() == b"\xe9"
    for arguments in ((7,), (b"x",), ("x", "rot13"), ("x", None)):
        with pytest.raises(CheckpointError, match="encodes something other than text, or other than as latin1"):
            encode(*arguments)


@examples
@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    strides=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    offset=st.integers(0, 13),
)
def test_a_tensor_lies_in_its_storage_or_is_refused(shape, strides, offset):
    """NumPy says where the last element is."""
    if len(shape) != len(strides):
        described = re.escape(f"a tensor of shape {list(shape)}, strides {list(strides)}")
        with pytest.raises(CheckpointError, match=described):
            rebuild(storage(), offset, shape, strides)
        return
    positions = offset + sum(
        np.arange(size).reshape([-1] + [1] * (len(shape) - axis - 1)) * stride
        for axis, (size, stride) in enumerate(zip(shape, strides))
    )
    positions = np.broadcast_to(positions, shape)
    if positions.size and positions.max() >= 12:
        with pytest.raises(CheckpointError, match=f"needs {positions.max() + 1} elements; its storage has 12"):
            rebuild(storage(), offset, shape, strides)
    else:
        array = rebuild(storage(), offset, shape, strides).load()
        assert array.shape == shape
        assert (array == RANGE[positions]).all()


def test_a_tensor_may_read_its_storage_as_another_type():
    for byte_order in "<>":
        content = RANGE.astype(f"{byte_order}f4").tobytes()
        bytes_of = Storage(np.dtype("u1"), 48, byte_order, lambda content=content: memoryview(content))
        tensor = rebuild(bytes_of, 3, (9,), (1,), False, {}, F4, version=3)
        assert tensor.load().tolist() == list(range(3, 12))
        assert rebuild(bytes_of, 3, (9,), (1,), False, {}).dtype == np.dtype("u1")
    with pytest.raises(CheckpointError, match="needs 13 elements; its storage has 12"):
        rebuild(bytes_of, 4, (9,), (1,), False, {}, F4, version=3)
    with pytest.raises(CheckpointError, match="rebuilds a tensor from what is no storage"):
        rebuild("storage", 0, (1,), (1,))


def test_parts_are_joined_in_their_order():
    parts = [StoredArray(lambda part=part: part.tobytes(), F4, part.shape) for part in (RANGE[:7], RANGE[7:])]
    assert join(parts, (3, 4)).load().tolist() == RANGE.reshape(3, 4).tolist()
    empty = StoredArray(None, F4, (0,))
    assert join(parts[:1], (7,)).load().tolist() == RANGE[:7].tolist()
    assert join([empty, *parts, empty], (12,)).load().tolist() == RANGE.tolist()
    with pytest.raises(CheckpointError, match="short tuple"):
        join(parts, [12])
