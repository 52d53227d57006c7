"""Weights files that are hostile, damaged or of another kind are refused with a reason; nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from cyclemlp_backbones import CheckpointError, read_checkpoint
from cyclemlp_backbones.weights import formats
from cyclemlp_backbones.weights import pickles as checkpoint_pickle
from cyclemlp_backbones.weights.formats import write_checkpoint
from tests.reference import GOLDEN
from tests.weights import pickles
from tests.weights.reading import GOLDEN_FILES, RANGE, refused, same, some_arrays

CALLS = {
    "os.system": b"U\x01x\x85R",
    "posix.system": b"U\x01x\x85R",
    "nt.system": b"U\x01x\x85R",
    "builtins.eval": b"U\x01x\x85R",
    "__builtin__.eval": b"U\x01x\x85R",
    "builtins.getattr": b"U\x01xU\x01y\x86R",
    "builtins.bytearray": pickles.integer(10**12) + b"\x85R",
    "functools.partial": b")R",
    "importlib.import_module": b"U\x01x\x85R",
    "subprocess.Popen": b"U\x01x\x85\x81",
    "torch.load": b"U\x01x\x85R",
    "torch.storage._load_from_bytes": b"U\x01x\x85R",
    "numpy.load": b"U\x01x\x85R",
    "numpy.core.multiarray.fromfile": b"U\x01x\x85R",
    "paddle.base.core.DenseTensor": b")R",
}


@pytest.mark.parametrize("named", CALLS)
@pytest.mark.parametrize("container", ["pdparams", "zip", "legacy"])
def test_a_callable_outside_the_short_list_is_refused_by_name(tmp_path, named, container):
    module, _, attribute = named.rpartition(".")
    content = pickles.dictionary({"a": pickles.name(module, attribute) + CALLS[named]})
    path = tmp_path / "evil.pth"
    if container == "pdparams":
        path = tmp_path / "evil.pdparams"
        path.write_bytes(pickles.PROTO + content + b".")
    elif container == "zip":
        pickles.write_torch_zip(path, content, {})
    else:
        pickles.write_torch_legacy(path, content, {})
    with pytest.raises(CheckpointError, match=f"names {named},") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


class Evil:
    """Its pickle creates a file when Python's own unpickler reads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_code_that_pickle_would_run_does_not_run(tmp_path, protocol):
    marker = tmp_path / "was_here"
    content = pickle.dumps({"model": {"a": RANGE}, "args": [Evil(marker)]}, protocol)
    refused(tmp_path / "x.pdparams", content, "system")
    assert not marker.exists()
    pickle.loads(content)  # the same bytes are a real attack
    assert marker.exists()


STACK_EVAL = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R."
RECONSTRUCT = pickles.name("numpy.core.multiarray", "_reconstruct")
NDARRAY = pickles.name("numpy", "ndarray")
NAMESPACE = pickles.name("argparse", "Namespace")

CRAFTED = {
    "name on the stack": (STACK_EVAL, "builtins.eval"),
    "INST": (pickles.PROTO + b"(U\x01xios\nsystem\n.", "INST"),
    "OBJ": (pickles.PROTO + b"(" + NAMESPACE + b"o.", "OBJ"),
    "NEWOBJ_EX": (b"\x80\x04" + NAMESPACE + b")}\x92.", "NEWOBJ_EX"),
    "NEWOBJ_EX of another class": (b"\x80\x04" + pickles.name("os", "system") + b")}\x92.", "os.system"),
    "extension 1": (pickles.PROTO + b"\x82\x01.", "EXT1"),
    "extension 2": (pickles.PROTO + b"\x83\x01\x00.", "EXT2"),
    "extension 4": (pickles.PROTO + b"\x84\x01\x00\x00\x00.", "EXT4"),
    "text persistent id": (pickles.PROTO + b"Pstorage\n.", "PERSID"),
    "binary persistent id": (pickles.PROTO + b"U\x01xQ.", "outside the file"),
    "out of band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "protocol 0 integer": (pickles.PROTO + b"I1\n.", "INT"),
    "protocol 1": (b"\x80\x01}.", "protocol 1"),
    "unknown opcode": (pickles.PROTO + b"\xff.", "0xff"),
    "reconstruct another class": (pickles.PROTO + RECONSTRUCT + NAMESPACE + b"K\x00\x85U\x01b\x87R.", "no NumPy array"),
    "reconstruct without content": (
        pickles.PROTO + b"}U\x01a" + RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87Rs.",
        "no content",
    ),
    "call of a number": (pickles.PROTO + b"K\x01)R.", "calls a value of type int"),
    "call of an array class": (pickles.PROTO + NDARRAY + b")R.", "calls numpy.ndarray"),
    "call of a result": (pickles.PROTO + NAMESPACE + b")R)R.", "calls argparse.Namespace"),
    "state of a list": (pickles.PROTO + b"]}b.", "state of a value of type list"),
    "state of a string": (pickles.PROTO + b"U\x01xU\x0c__setstate__b.", "state of a value of type str"),
    "state of a name": (pickles.PROTO + pickles.name("numpy", "dtype") + b"}b.", "state of numpy.dtype"),
    "wrong arguments": (pickles.PROTO + pickles.name("_codecs", "encode") + b"K\x01\x85R.", "."),
    "another encoding": (pickles.PROTO + pickles.name("_codecs", "encode") + b"U\x01xU\x03rot\x86R.", "latin1"),
    "key of an unhashable kind": (pickles.PROTO + b"}]K\x01s.", "key of type list"),
    "key of a tuple": (pickles.PROTO + b"}K\x01K\x01\x86K\x01s.", "key of type tuple"),
    "key twice": (pickles.PROTO + b"}U\x01aK\x01sU\x01aK\x02s.", "'a' stands twice"),
    "no key": (pickles.PROTO + b"}(U\x01au.", "no dictionary"),
    "items of a list": (pickles.PROTO + b"]U\x01aK\x01s.", "no dictionary"),
    "append to a dictionary": (pickles.PROTO + b"}K\x01a.", "no list"),
    "empty stack": (pickles.PROTO + b".", "makes no sense"),
    "no mark": (pickles.PROTO + b"t.", "makes no sense"),
    "memo that was never filled": (pickles.PROTO + b"h\x07.", "makes no sense"),
    "name without end": (pickles.PROTO + b"c" + b"a" * 5000, "unended name"),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", "no text"),
    "text that is no UTF-8": (pickles.PROTO + b"X\x01\x00\x00\x00\xff.", "makes no sense"),
    "no dictionary": (pickles.PROTO + b"K\x01.", "no weights"),
    "empty dictionary": (pickles.PROTO + b"}.", "no weights"),
    "values that are no arrays": (pickle.dumps({"a": RANGE, "lr": 0.1, "names": ["x"]}), "no arrays: lr, names"),
    "objects": (pickle.dumps({"a": np.array([object()])}, 2), "copy_reg|object"),
    "array of None": (pickle.dumps({"a": np.array([None])}, 2), "dtype object"),
    "array of strings": (pickle.dumps({"a": np.array(["x"])}, 2), "dtype 'U1'"),
    "structured array": (pickle.dumps({"a": np.zeros(1, "f4,f4")}, 2), "dtype 'V8'"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_pickles_are_refused(tmp_path, case):
    content, message = CRAFTED[case]
    refused(tmp_path / "x.pdparams", content, message)


def test_a_namespace_and_other_harmless_objects_are_dropped(tmp_path):
    state = NAMESPACE + b")\x81" + pickles.dictionary({"lr": b"K\x01", "__class__": b"K\x02"}) + b"b"
    device = pickles.name("torch", "device") + pickles.text("cuda") + b"\x85R"
    tensor = pickles.tensor("FloatStorage", "0", 12, (12,), (1,))
    size = pickles.name("torch", "Size") + pickles.numbers((1, 2)) + b"\x85R"
    content = pickles.dictionary(
        {
            "args": state,
            "device": device,
            "size": size,
            "dtype": pickles.name("torch", "float32"),
            "model": pickles.dictionary({"a": tensor}),
        }
    )
    path = pickles.write_torch_zip(tmp_path / "x.pth", content, {"0": RANGE.tobytes()})
    assert same(read_checkpoint(path), {"a": RANGE})


def numpy_array(shape: tuple[int, ...], data: bytes) -> bytes:
    dtype = pickles.name("numpy", "dtype") + b"U\x02f4\x89\x88\x87R(K\x03U\x01<tb"
    state = b"(K\x01" + pickles.numbers(shape) + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    return RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R" + state


SIZES = {
    "array larger than its bytes": numpy_array((10**12,), b"1234"),
    "array smaller than its bytes": numpy_array((1,), b"12345678"),
    "negative size": numpy_array((-1,), b"1234"),
    "many dimensions": numpy_array((1,) * 40, b"1234"),
    "bytes beyond the end": b"\x8e" + struct.pack("<Q", 10**12),
    "bytearray beyond the end": b"\x96" + struct.pack("<Q", 2**63),
    "text beyond the end": b"\x8d" + struct.pack("<Q", 10**12),
    "negative length": b"T\xff\xff\xff\xff",
    "huge integer": b"\x8b\x00\x00\x01\x00" + bytes(65536),
    "memo at a huge index, never read": b"K\x01r\xff\xff\xff\xff",
    "doubling": b"".join(b"K\x01\x85q\x00" if i == 0 else b"h\x00h\x00\x86q\x00" for i in range(100)),
    "depth": b"(" * 30_000 + b"l" * 30_000,
    "tuples in tuples": b")" + b"\x85" * 30_000,
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_the_file_does_not_hold_cost_no_memory(tmp_path, case):
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickles.PROTO + b"}" + pickles.text("a") + SIZES[case] + b"s.")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"x\.pdparams"):
        read_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_a_pickle_of_endless_opcodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_pickle, "BUDGET", 100_000)
    refused(tmp_path / "x.pdparams", pickles.PROTO + b"}" * 2000 + b".", "more objects than weights need")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; the file is damaged"),
        (b"x", "not known"),
        (b"<!DOCTYPE html><html>", "web page, not a weights file: the download went wrong;"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull;"),
        (b"\n<HTML>", "web page"),
        (b"<?xml version", "web page"),
        *(
            (start + bytes(300), "unpack it first;")
            for start in (b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c")
        ),
        (b"name".ljust(257, b"\x00") + b"ustar\x0000", "unpack it"),
        (b"\x80", "damaged"),
        (b"PK\x03\x04", "zip directory"),
    ],
)
def test_files_of_other_kinds_are_refused_with_a_remedy(tmp_path, content, message):
    refused(tmp_path / "x.pth", content, message)


def test_a_missing_file_is_an_error_of_both_kinds(tmp_path):
    for kind in (CheckpointError, FileNotFoundError):
        with pytest.raises(kind, match=r"no weights file .*missing\.pth; .*pretrained=True for the published weights$"):
            read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(tmp_path)


def test_a_lack_of_memory_is_told(tmp_path, monkeypatch):
    def without_memory(*_):
        raise MemoryError

    monkeypatch.setattr(formats, "_read", without_memory)
    refused(tmp_path / "x.pth", b"x", "reading it takes more memory than there is")


def test_an_error_of_the_system_is_none_of_the_file(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    (tmp_path / "x.pth").write_bytes(b"x")
    monkeypatch.setattr(formats.mmap, "mmap", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert not isinstance(caught.value, CheckpointError)


@pytest.fixture(scope="module")
def every_format(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("formats")
    for suffix in (".pdparams", ".safetensors"):
        write_checkpoint(folder / f"x{suffix}", some_arrays())
    paddle.save({"model": nn.Linear(3, 4).state_dict()}, str(folder / "paddle.pdparams"), protocol=2)
    return [*(GOLDEN / file for file in GOLDEN_FILES), *sorted(folder.iterdir())]


def test_a_truncated_file_is_refused_wherever_it_ends(every_format, tmp_path):
    for original in every_format:
        data = original.read_bytes()
        path = tmp_path / original.name
        steps = [*range(1, min(len(data), 40)), *range(40, len(data), len(data) // 40), len(data) - 1]
        for length in steps:
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=re.escape(str(path))):
                read_checkpoint(path)


def test_changed_bytes_give_arrays_or_a_checkpoint_error_and_nothing_else(every_format, tmp_path):
    generator = random.Random(0)
    outcomes = {"arrays": 0, "refused": 0}
    for original in every_format:
        data = original.read_bytes()
        path = tmp_path / original.name
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(generator.choice((1, 1, 2, 8))):
                # Most of a file is numbers; its structure is at both ends.
                start = generator.choice((0, 0, max(0, len(data) - 2000), generator.randrange(len(data))))
                changed[min(len(data) - 1, start + generator.randrange(400))] = generator.randrange(256)
            path.write_bytes(changed)
            try:
                arrays = read_checkpoint(path)
            except CheckpointError:
                outcomes["refused"] += 1
            else:
                outcomes["arrays"] += 1
                assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert min(outcomes.values()) > 50  # both happened
