"""The reader of pickles gives what Python's own gives for plain data, and charges what it builds."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclemlp_backbones.weights.arrays import NAMES, Storage
from cyclemlp_backbones.weights.pickles import (
    BUDGET,
    LONG_TEXT,
    CheckpointError,
    Inert,
    PickleReader,
    listed,
    printable,
)
from tests.properties import examples
from tests.weights.pickles import integer, name, numbers, text

F4 = np.dtype("<f4")
KEYS = st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans() | st.none()
LEAVES = KEYS | st.integers(-(2**100), 2**100) | st.binary(max_size=300) | st.sampled_from(["a" * 300, "ü" * 200])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
)


def read(content: bytes) -> Any:
    return PickleReader(memoryview(content), NAMES).read()


def plain(value: Any) -> Any:
    """The same with bytes for the views of the file."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


@examples
@given(tree=TREES, protocol=st.integers(3, 5))
def test_plain_data_reads_as_python_reads_it(tree, protocol):
    """Values, their types and their order; protocol 2 has no bytes."""
    content = pickle.dumps([tree, tree], protocol)  # twice the same object: memos
    assert repr(plain(read(content))) == repr(pickle.loads(content))


@pytest.mark.parametrize(
    "tree", [{"a": 1}, "\ud800", [1.5, None, True, False, -1, 255, 256, 65535, 65536, -(2**31)], (1, (2, (3,)))]
)
def test_protocol_2_reads_as_python_reads_it(tree):
    assert repr(read(pickle.dumps(tree, 2))) == repr(tree)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02](K\x01K\x020e.", "[1]"),  # POP
        (b"\x80\x02]((K\x01K\x021K\x03e.", "[3]"),  # POP_MARK
        (b"\x80\x02(K\x01K\x02d.", "{1: 2}"),  # DICT
        (b"\x80\x02(K\x01K\x02l.", "[1, 2]"),  # LIST
        (b"\x80\x02]K\x07a.", "[7]"),  # APPEND
        (b"\x80\x02}K\x07K\x08s.", "{7: 8}"),  # SETITEM
        (b"\x80\x02J\xfe\xff\xff\xff.", "-2"),  # BININT
        (b"\x80\x02M\xff\xff.", "65535"),  # BININT2
        (b"\x80\x02\x8b\x02\x00\x00\x00\xfe\xff.", "-2"),  # LONG4
        (b"\x80\x02K\x05r\x01\x01\x00\x000j\x01\x01\x00\x00.", "5"),  # LONG_BINPUT, LONG_BINGET
        (b"\x80\x04K\x05\x940K\x06\x940h\x00h\x01\x86.", "(5, 6)"),  # MEMOIZE counts
        (b"\x80\x02U\x02\xe9a.", "'éa'"),  # SHORT_BINSTRING
        (b"\x80\x04\x8d\x03" + bytes(7) + b"\xc3\xa9a.", "'éa'"),  # BINUNICODE8
        (b"\x80\x05G?\xf8\x00\x00\x00\x00\x00\x00.", "1.5"),  # BINFLOAT
    ],
)
def test_opcodes_do_what_pythons_do(content, expected):
    assert repr(read(content)) == expected


@pytest.mark.parametrize("start", [b"B\x02" + bytes(3), b"C\x02", b"\x8e\x02" + bytes(7), b"\x96\x02" + bytes(7)])
def test_bytes_of_every_kind_stay_in_the_file(start):
    value = read(b"\x80\x05" + start + b"\x00\xff.")
    assert isinstance(value, memoryview)
    assert bytes(value) == b"\x00\xff"


@pytest.mark.parametrize(("content", "name"), [(b"\x8f(K\x01\x90", "set"), (b"(K\x01\x91", "frozenset")])
def test_sets_are_dropped(content, name):
    assert isinstance(read(b"\x80\x04" + content + b"."), Inert)
    with pytest.raises(CheckpointError, match=f"its pickle calls {name};"):
        read(b"\x80\x04" + content + b")R.")


def test_a_class_is_not_called():
    with pytest.raises(CheckpointError, match=r"its pickle calls numpy\.ndarray; save the weights alone"):
        read(b"\x80\x02" + name("numpy", "ndarray") + b")R.")


def test_an_unknown_name_is_told_with_what_to_do():
    with pytest.raises(CheckpointError, match=r"its pickle names os\.system, .*from names to arrays or tensors$"):
        read(b"\x80\x02" + name("os", "system") + b"(X\x02\x00\x00\x00lstR.")


@pytest.mark.parametrize("pair", [b"\x8c\x05numpyK\x01", b"K\x01\x8c\x05dtype"])
def test_a_name_is_two_texts(pair):
    with pytest.raises(CheckpointError, match="names something by what is no text; the file is damaged"):
        read(b"\x80\x04" + pair + b"\x93.")


def test_several_pickles_lie_behind_each_other():
    reader = PickleReader(memoryview(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest"), {})
    assert [reader.read(), reader.read(), bytes(reader.take(4))] == [[1], {"a": 2}, b"rest"]
    with pytest.raises(CheckpointError, match=r"it ends at byte \d+, where 1 more from \d+ on are announced"):
        reader.take(1)


@pytest.mark.parametrize("protocol", [1, 6])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(
        CheckpointError, match=f"refused: pickle protocol {protocol}; .*alone, with pickle protocol 2 to 5$"
    ):
        read(bytes([0x80, protocol]) + b"N.")
    for known in (2, 5):
        assert read(bytes([0x80, known]) + b"N.") is None


def test_only_long_texts_stay_in_the_file():
    for start in (b"X", b"T"):
        for length, kind in ((LONG_TEXT, str), (LONG_TEXT + 1, memoryview)):
            value = read(b"\x80\x02" + start + struct.pack("<i", length) + b"a" * length + b".")
            assert (type(value), len(value)) == (kind, length)


def test_keys_are_numbers_of_64_bits_at_most():
    for key in (2**64 - 1, -(2**64 - 1)):
        assert read(b"\x80\x02}" + integer(key) + b"Ns.") == {key: None}
    for key in (2**64, -(2**64)):
        with pytest.raises(CheckpointError, match="a dictionary key of type int; keys are strings and 64-bit numbers"):
            read(b"\x80\x02}" + integer(key) + b"Ns.")


EMPTY = name("collections", "OrderedDict") + b")R"
REBUILD = name("torch._utils", "_rebuild_tensor_v2") + b"q\0(NQ" + integer(7) + numbers([0, 2, 2, 2])
REBUILD += numbers([2**50, 2**49, 2**48, 1]) + b"tq\1"
CHARGED = {
    "nothing": (b"]", b"N"),
    "numbers": (b"]", b"M\xff\x01"),
    "large numbers": (b"]", integer(2**500)),
    "floats": (b"]", b"G?\xf8\x00\x00\x00\x00\x00\x00"),
    "texts": (b"]", text("x" * 100)),
    "Python 2's texts": (b"]", b"U\x64" + b"x" * 100),
    "bytes": (b"]", b"C\x64" + b"x" * 100),
    "lists": (b"]", b"]"),
    "lists of one": (b"]", b"](Ne"),
    "dictionaries": (b"]", b"}"),
    "dictionaries of one": (b"]", b"}NNs"),
    "tuples": (b"]", b"NNN\x87"),
    "tuples behind marks": (b"]", b"(NNNNt"),
    "calls": (b"]", EMPTY),
    "arrays": (b"]", name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"\x85R"),
    "tensors from the memo": (REBUILD + b"]", b"h\0h\1R"),
    "persistent ids": (b"]", b"NQ"),
    "names": (b"]", name("numpy", "ndarray")),
    "names on the stack": (b"]", b"\x8c\x05numpy\x8c\x07ndarray\x93"),
}


@pytest.mark.parametrize("case", CHARGED)
def test_what_is_built_is_charged_with_the_memory_that_it_takes(case):
    """And with no more than forty times as much, so that whole checkpoints have room."""
    start, unit = CHARGED[case]
    count = 3000
    data = memoryview(b"\x80\x04" + start + b"(" + unit * count + b"e.")

    def counted(entries: bytes) -> tuple[int, int]:
        reader = PickleReader(memoryview(entries), NAMES, lambda _: Storage(F4, 1, "<", lambda: memoryview(b"1234")))
        tracemalloc.start()
        reader.read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return BUDGET - reader._budget, peak

    charged, taken = counted(bytes(data))
    assert taken <= charged <= 40 * taken + 200 * count


@pytest.mark.parametrize("count", [1000, 1366])
@pytest.mark.parametrize("unit", [lambda n: integer(n) + b"N", lambda n: text(f"name{n}") + b"N"])
def test_entries_of_dictionaries_are_charged(count, unit):
    """With 1366 a dictionary has just grown."""
    reader = PickleReader(memoryview(b"\x80\x02}(" + b"".join(map(unit, range(count))) + b"u."), {})
    tracemalloc.start()
    reader.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert BUDGET - reader._budget >= peak


def test_memos_are_charged():
    reader = PickleReader(memoryview(b"\x80\x04N" + b"\x94" * 5500 + b"."), {})  # the memo has just grown
    tracemalloc.start()
    reader.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert BUDGET - reader._budget >= peak


def test_the_budget_is_spent_to_its_last_byte(monkeypatch):
    content = pickle.dumps({"a": [1, 2.5, "x"]})
    reader = PickleReader(memoryview(content), {})
    reader.read()
    need = BUDGET - reader._budget
    for budget, enough in ((need, True), (need - 1, False)):
        monkeypatch.setattr("cyclemlp_backbones.weights.pickles.BUDGET", budget)
        if enough:
            assert read(content) == {"a": [1, 2.5, "x"]}
        else:
            with pytest.raises(CheckpointError, match="builds more objects than weights need; save the weights alone"):
                read(content)


def test_texts_of_a_file_are_shortened_and_escaped():
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 200 + "…"
    assert printable("a\x1b[2J\nb") == r"'a\x1b[2J\nb'"
    assert printable(7) == "7"
    assert listed(["a", "b\x07", 3]) == r"a, 'b\x07', 3"
    assert listed(list(range(60))).endswith("58, 59")
    assert listed(list(range(62))).endswith("58, 59 and 2 more")
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"


ALLOWED = """
argparse.Namespace torch.device builtins.set __builtin__.set collections.OrderedDict builtins.bytes __builtin__.bytes
torch.Size builtins.tuple __builtin__.tuple _codecs.encode numpy.dtype numpy.ndarray
numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
numpy.core.multiarray.scalar numpy._core.multiarray.scalar
numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3
torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state
"""
DTYPES = {
    **{"float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8", "int32": "<i4"},
    **{"int16": "<i2", "int8": "i1", "bool": "?", "uint8": "u1", "FloatStorage": "<f4", "DoubleStorage": "<f8"},
    **{"HalfStorage": "<f2", "BFloat16Storage": "<u2", "LongStorage": "<i8", "IntStorage": "<i4"},
    **{"ShortStorage": "<i2", "CharStorage": "i1", "BoolStorage": "?", "ByteStorage": "u1"},
    **{"UntypedStorage": "u1", "storage.UntypedStorage": "u1"},
}


def test_these_names_and_no_others_may_stand_in_a_file():
    assert {*NAMES} == {*ALLOWED.split(), *(f"torch.{key}" for key in DTYPES)}
    for key, dtype in DTYPES.items():
        assert NAMES[f"torch.{key}"] == np.dtype(dtype)
