"""Weights files are read exactly, or refused with a reason; nothing in them is ever run."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors import safe_open
from safetensors.numpy import save_file

from cyclemlp_backbones import CheckpointError, read_checkpoint
from cyclemlp_backbones.weights import formats
from cyclemlp_backbones.weights import pickles as checkpoint_pickle
from cyclemlp_backbones.weights.formats import read_checkpoint_file, write_checkpoint
from tests.reference import GOLDEN, reference_parameter
from tests.weights import pickles

GOLDEN_FILES = ("tiny_zip.pth", "tiny_legacy.pth", "tiny_ddp_fp16.pth")
RANGE = np.arange(12, dtype=np.float32)


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(actual) == list(expected) and all(
        actual[name].dtype == array.dtype and actual[name].shape == array.shape and np.array_equal(actual[name], array)
        for name, array in expected.items()
    )


def some_arrays() -> dict[str, np.ndarray]:
    random_state = np.random.RandomState(0)
    return {
        "a.weight": random_state.standard_normal((3, 4)).astype(np.float32),
        "a.bias": random_state.standard_normal(4).astype(np.float16),
        "fortran": np.asfortranarray(random_state.standard_normal((5, 2))),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


# Files of the wild


@pytest.mark.parametrize("file", GOLDEN_FILES)
def test_the_authors_files_give_the_reference_weights(file):
    arrays = read_checkpoint(GOLDEN / file)
    half = file == "tiny_ddp_fp16.pth"
    assert len(arrays) == 117
    for name, array in arrays.items():
        assert array.dtype == (np.float16 if half else np.float32)
        if not name.endswith(".offset"):
            expected = reference_parameter(name, array.shape)
            np.testing.assert_array_equal(array, expected.astype(np.float16) if half else expected)


def test_neither_torch_nor_paddle_is_needed():
    code = """
        import sys, types
        sys.modules["torch"] = sys.modules["paddle"] = None  # importing them is now an ImportError
        package = types.ModuleType("cyclemlp_backbones")
        package.__path__ = [sys.argv[1]]
        sys.modules["cyclemlp_backbones"] = package
        from cyclemlp_backbones.weights.formats import read_checkpoint
        print(*(len(read_checkpoint(path)) for path in sys.argv[2:]))
    """
    package = Path(checkpoint_pickle.__file__).parents[1]
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(code),
        str(package),
        *(str(GOLDEN / file) for file in GOLDEN_FILES),
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["117"] * 3


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_reads_equal(tmp_path, protocol):
    paddle.seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv2D(2, 2, 3), nn.LayerNorm(4))
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    forms = {
        "state dict": model.state_dict(),
        "wrapped": {"model": model.state_dict(), "epoch": 3},
        "twice wrapped": {"state_dict": {"model": model.state_dict()}, "lr": 0.1},
        "dictionary of tensors": dict(model.state_dict()),
    }
    for content in forms.values():
        paddle.save(content, str(tmp_path / "x.pdparams"), protocol=protocol)
        file = read_checkpoint_file(tmp_path / "x.pdparams")
        assert same(file.arrays, expected)
        assert file.layout == "paddle"


def test_paddles_bfloat16_becomes_float32(tmp_path):
    values = paddle.to_tensor(np.array([1.5, -2.0, 3e38], np.float32)).astype("bfloat16")
    for content in ({"a": values}, {"model": {"a": values}}):
        paddle.save(content, str(tmp_path / "x.pdparams"))
        array = read_checkpoint(tmp_path / "x.pdparams")["a"]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values.astype("float32").numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("numpy_name", [b"numpy.core", b"numpy._core"])
def test_pickled_arrays_read_equal_with_the_names_of_numpy_1_and_2(tmp_path, protocol, numpy_name):
    content = pickle.dumps(some_arrays(), protocol)
    for name in (
        b"numpy.core.",
        b"numpy._core.",
    ):  # lengths are part of protocols 4 and 5, so only 2 and 3 are rewritten
        if protocol < 4:
            content = content.replace(name, numpy_name + b".")
    (tmp_path / "x.pdparams").write_bytes(content)
    assert same(read_checkpoint(tmp_path / "x.pdparams"), some_arrays())


@pytest.mark.parametrize("code", ["b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8"])
@pytest.mark.parametrize("order", "<>")
def test_numbers_of_every_kind_and_byte_order_read_equal(tmp_path, code, order):
    array = np.array([[0, 1, 2], [3, 100, 127]]).astype(np.dtype(code).newbyteorder(order))
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"a": array, "b": array[0, 1]}))
    expected = {"a": array.astype(code), "b": array[0, 1].astype(code)}
    assert same(read_checkpoint(tmp_path / "x.pdparams"), expected)


def test_python_2_pickles_read_equal(tmp_path):
    dtype = (
        pickles.name("numpy", "dtype") + b"(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    start = (
        pickles.name("numpy.core.multiarray", "_reconstruct")
        + b"("
        + pickles.name("numpy", "ndarray")
        + b"K\x00\x85U\x01btR"
    )
    array = start + b"(K\x01K\x0c\x85" + dtype + b"\x89T" + struct.pack("<i", 48) + RANGE.tobytes() + b"tb"
    (tmp_path / "x.pdparams").write_bytes(pickles.PROTO + b"}U\x01a" + array + b"s.")
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pdparams")["a"], RANGE)


def test_parameters_that_paddle_cut_into_slices_are_joined(tmp_path):
    table = {"big": {"OriginShape": (3, 4), "slices": ["big@@.0", "big@@.1"]}}
    content = {"big@@.0": RANGE[:7], "big@@.1": RANGE[7:], "UnpackBigParamInfor@@": table, "b": RANGE}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content, 2))
    arrays = read_checkpoint(tmp_path / "x.pdparams")
    np.testing.assert_array_equal(arrays.pop("big"), RANGE.reshape(3, 4))
    assert list(arrays) == ["b"]

    table["big"]["OriginShape"] = [4, 3]
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content, 2))
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pdparams")["big"], RANGE.reshape(4, 3))

    table["big"]["slices"].append("big@@.2")
    refused(tmp_path / "x.pdparams", pickle.dumps(content, 2), "'big' are missing")
    senseless = "its table of cut-up parameters makes no sense at 'big'"
    refused(tmp_path / "x.pdparams", pickle.dumps({**content, "big": RANGE}, 2), senseless)
    table["big"]["slices"] = b"big@@.0"
    refused(tmp_path / "x.pdparams", pickle.dumps(content, 4), senseless)


TORCH_TENSORS = {
    "transposed": (pickles.tensor("FloatStorage", "0", 12, (4, 3), (1, 4)), RANGE.reshape(3, 4).T),
    "part": (pickles.tensor("FloatStorage", "0", 12, (2, 2), (4, 1), 5), RANGE.reshape(3, 4)[1:, 1:3]),
    "expanded": (pickles.tensor("FloatStorage", "0", 12, (3,), (0,), 2), np.full(3, 2, np.float32)),
    "scalar": (pickles.tensor("FloatStorage", "0", 12, (), (), 11), np.float32(11)),
    "empty": (pickles.tensor("FloatStorage", "0", 12, (0, 3), (3, 1)), np.zeros((0, 3), np.float32)),
    "bfloat16": (pickles.tensor("BFloat16Storage", "1", 2, (2,), (1,)), np.array([1.5, -2.0], np.float32)),
    "float16": (pickles.tensor("HalfStorage", "2", 2, (2,), (1,)), np.array([0.5, 3], np.float16)),
    "integers": (pickles.tensor("LongStorage", "3", 2, (2,), (1,)), np.array([5, -6])),
}
TORCH_STORAGES = {
    "0": (12, RANGE),
    "1": (2, np.array([0x3FC0, 0xC000], np.uint16)),
    "2": (2, np.array([0.5, 3], np.float16)),
    "3": (2, np.array([5, -6])),
}


@pytest.mark.parametrize("kind", ["little", "big", "legacy"])
def test_torch_tensors_of_every_kind_read_equal(tmp_path, kind):
    content = pickles.dictionary({key: stored for key, (stored, _) in TORCH_TENSORS.items()})
    if kind == "legacy":
        content = content.replace(b"tQ", b"NtQ")
        storages = {key: (length, array.tobytes()) for key, (length, array) in TORCH_STORAGES.items()}
        path = pickles.write_torch_legacy(tmp_path / "x.pth", content, storages)
    else:
        ordered = {
            key: array.astype(array.dtype.newbyteorder("<" if kind == "little" else ">"))
            for key, (_, array) in TORCH_STORAGES.items()
        }
        raw = {key: array.tobytes() for key, array in ordered.items()}
        path = pickles.write_torch_zip(tmp_path / "x.pth", content, raw, byte_order=kind)
    file = read_checkpoint_file(path)
    assert same(file.arrays, {key: np.asarray(expected) for key, (_, expected) in TORCH_TENSORS.items()})
    assert file.layout == "torch"


def test_torch_parameters_and_untyped_storages_read_equal(tmp_path):
    plain = pickles.tensor("FloatStorage", "0", 12, (3, 4), (4, 1))
    hooks = pickles.name("collections", "OrderedDict") + b")R"
    identifier = b"(" + pickles.text("storage") + pickles.name("torch.storage", "UntypedStorage") + pickles.text("0")
    identifier += pickles.text("cpu") + pickles.integer(48) + b"tQ"
    untyped = b"(" + identifier + b"K\x00" + pickles.numbers((12,)) + pickles.numbers((1,)) + b"\x89" + hooks
    content = {
        "parameter": pickles.name("torch._utils", "_rebuild_parameter") + b"(" + plain + b"\x88" + hooks + b"tR",
        "untyped": pickles.name("torch._utils", "_rebuild_tensor_v3")
        + untyped
        + pickles.name("torch", "float32")
        + b"tR",
    }
    path = pickles.write_torch_zip(tmp_path / "x.pth", pickles.dictionary(content), {"0": RANGE.tobytes()})
    assert same(read_checkpoint(path), {"parameter": RANGE.reshape(3, 4), "untyped": RANGE})


def test_safetensors_read_equal_and_tell_the_layout_only_if_we_wrote_them(tmp_path):
    arrays = {name: np.asarray(array, order="C") for name, array in some_arrays().items()}
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt", "layout": "torch"})
    write_checkpoint(tmp_path / "ours.safetensors", some_arrays(), layout="torch")
    for file, layout in (("theirs", "torch"), ("ours", "torch")):
        read = read_checkpoint_file(tmp_path / f"{file}.safetensors")
        assert same(dict(sorted(read.arrays.items())), dict(sorted(some_arrays().items())))
        assert read.layout == layout

    header = {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    path = pickles.write_safetensors(tmp_path / "bf16.safetensors", header, struct.pack("<HH", 0x3FC0, 0xC000))
    np.testing.assert_array_equal(read_checkpoint(path)["a"], np.array([1.5, -2.0], np.float32))


@pytest.mark.parametrize("length", [128, 640, 1152, 65536])
def test_a_header_whose_length_begins_as_a_pickle_does_is_read(tmp_path, length):
    header = {"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}}
    path = pickles.write_safetensors(tmp_path / "x.safetensors", json.dumps(header).ljust(length), RANGE.tobytes())
    assert same(read_checkpoint(path), {"a": RANGE})


WRAPPERS = (
    "model state_dict model_state_dict model_state net module params weights model_ema state_dict_ema ema params_ema"
)


@pytest.mark.parametrize("wrapper", WRAPPERS.split())
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.model."])
def test_wrappers_and_shared_prefixes_are_removed(tmp_path, wrapper, prefix):
    content = {
        "epoch": 3,
        wrapper: {prefix + "a.weight": RANGE, prefix + "b": RANGE},
        "optimizer": {"state": {0: RANGE}},
    }
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content))
    assert list(read_checkpoint(tmp_path / "x.pdparams")) == ["a.weight", "b"]


def test_a_prefix_of_some_names_only_stays(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"backbone.a": RANGE, "head.a": RANGE}))
    assert list(read_checkpoint(tmp_path / "x.pdparams")) == ["backbone.a", "head.a"]
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"X.a": RANGE, "X.b": RANGE}))
    assert list(read_checkpoint(tmp_path / "x.pdparams")) == ["X.a", "X.b"]


def test_the_wrapper_that_is_read_is_told_where_there_are_others(tmp_path, caplog):
    caplog.set_level("INFO")
    content = {"ema": {"a": RANGE}, "net": {"a": RANGE}, "state_dict": {"a": RANGE + 1}, "optimizer": {}}
    for others in ("'net', 'ema'", "'ema'"):
        (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content))
        assert (read_checkpoint(tmp_path / "x.pdparams")["a"] == RANGE + 1).all()
        assert caplog.messages[-1].endswith(f"x.pdparams: reading its 'state_dict'; it also has {others}")
        content.pop("net", None)


def test_content_tells_the_format_and_a_contrary_suffix_leaves_the_layout_open(tmp_path):
    for suffix, layout in ((".pdparams", None), (".bin", "torch"), (".pth", "torch")):
        (tmp_path / f"x{suffix}").write_bytes((GOLDEN / "tiny_legacy.pth").read_bytes())
        file = read_checkpoint_file(tmp_path / f"x{suffix}")
        assert len(file.arrays) == 117
        assert file.layout == layout
    for suffix, layout in ((".pth", None), (".bin", "paddle"), (".pdparams", "paddle")):
        (tmp_path / f"x{suffix}").write_bytes(pickle.dumps({"a": RANGE}))
        assert read_checkpoint_file(tmp_path / f"x{suffix}").layout == layout


# Refusals


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


CALLS = {
    "os.system": (b"U\x01x\x85R", "os.system"),
    "posix.system": (b"U\x01x\x85R", "posix.system"),
    "nt.system": (b"U\x01x\x85R", "nt.system"),
    "builtins.eval": (b"U\x01x\x85R", "builtins.eval"),
    "__builtin__.eval": (b"U\x01x\x85R", "__builtin__.eval"),
    "builtins.getattr": (b"U\x01xU\x01y\x86R", "builtins.getattr"),
    "builtins.bytearray": (pickles.integer(10**12) + b"\x85R", "builtins.bytearray"),
    "functools.partial": (b")R", "functools.partial"),
    "importlib.import_module": (b"U\x01x\x85R", "importlib.import_module"),
    "subprocess.Popen": (b"U\x01x\x85\x81", "subprocess.Popen"),
    "torch.load": (b"U\x01x\x85R", "torch.load"),
    "torch.storage._load_from_bytes": (b"U\x01x\x85R", "torch.storage._load_from_bytes"),
    "numpy.load": (b"U\x01x\x85R", "numpy.load"),
    "numpy.core.multiarray.fromfile": (b"U\x01x\x85R", "numpy.core.multiarray.fromfile"),
    "paddle.base.core.DenseTensor": (b")R", "paddle.base.core.DenseTensor"),
}


@pytest.mark.parametrize("named", CALLS)
@pytest.mark.parametrize("container", ["pdparams", "zip", "legacy"])
def test_a_callable_outside_the_short_list_is_refused_by_name(tmp_path, named, container):
    module, _, attribute = named.rpartition(".")
    call, expected = CALLS[named]
    content = pickles.dictionary({"a": pickles.name(module, attribute) + call})
    path = tmp_path / "evil.pth"
    if container == "pdparams":
        path = tmp_path / "evil.pdparams"
        path.write_bytes(pickles.PROTO + content + b".")
    elif container == "zip":
        pickles.write_torch_zip(path, content, {})
    else:
        pickles.write_torch_legacy(path, content, {})
    with pytest.raises(CheckpointError, match=f"names {expected},") as caught:
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


TENSORS_BEYOND_THEIR_STORAGE = {
    "shape": pickles.tensor("FloatStorage", "0", 12, (13,), (1,)),
    "stride": pickles.tensor("FloatStorage", "0", 12, (3, 4), (5, 1)),
    "offset": pickles.tensor("FloatStorage", "0", 12, (12,), (1,), 1),
    "negative offset": pickles.tensor("FloatStorage", "0", 12, (2,), (1,), -1),
    "negative stride": pickles.tensor("FloatStorage", "0", 12, (2,), (-1,), 5),
    "fewer strides": pickles.tensor("FloatStorage", "0", 12, (3, 4), (1,)),
    "huge": pickles.tensor("FloatStorage", "0", 12, (2**40, 2**40), (0, 0)),
    "length": pickles.tensor("FloatStorage", "0", 13, (12,), (1,)),
    "type": pickles.tensor("DoubleStorage", "0", 12, (12,), (1,)),
    "missing storage": pickles.tensor("FloatStorage", "7", 12, (12,), (1,)),
}


@pytest.mark.parametrize("case", TENSORS_BEYOND_THEIR_STORAGE)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path, case, legacy):
    content = pickles.dictionary({"a": TENSORS_BEYOND_THEIR_STORAGE[case]})
    path = tmp_path / "x.pth"
    if legacy:
        pickles.write_torch_legacy(path, content.replace(b"tQ", b"NtQ"), {"0": (12, RANGE.tobytes())})
    else:
        pickles.write_torch_zip(path, content, {"0": RANGE.tobytes()})
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_checkpoint(path)


def identifier(kind="storage", dtype=None, key=None, length=None, more=b""):
    """A pickle's reference to a storage."""
    dtype = pickles.name("torch", "FloatStorage") if dtype is None else dtype
    key, length = key or pickles.text("0"), length or pickles.integer(12)
    return b"(" + pickles.text(kind) + dtype + key + pickles.text("cpu") + length + more + b"tQ"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"K\x01Q", "refers to what is no PyTorch storage"),
        (b"K\x01K\x02\x86Q", "refers to what is no PyTorch storage"),
        (identifier(more=b"NN"), "refers to what is no PyTorch storage"),
        (identifier(kind="module"), "refers to what is no PyTorch storage"),
        (identifier(dtype=b"K\x01"), "refers to what is no PyTorch storage"),
        (identifier(key=b"K\x01"), "refers to what is no PyTorch storage"),
        (identifier(length=pickles.integer(-12)), "natural numbers"),
        (identifier(more=b"K\x01"), "views of storages, as PyTorch 0.3 wrote them; load and save it with a newer"),
        (identifier(key=pickles.text("7")), "it has no storage '7' of 12 elements of float32"),
        (identifier(length=pickles.integer(11)), "it has no storage '0' of 11 elements of float32"),
    ],
)
def test_what_is_no_storage_is_refused(tmp_path, stored, message):
    path = pickles.write_torch_zip(tmp_path / "x.pth", pickles.dictionary({"a": stored}), {"0": RANGE.tobytes()})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("keys", [b"](" + pickles.text("0") * 2 + b"e", b"}" + pickles.text("0") + b"Ns"])
def test_a_legacy_list_of_storages_names_each_once(tmp_path, keys):
    tree = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 12, (3,), (1,), view=b"N")})
    content = pickles.LEGACY_START + pickles.PROTO + tree + b"." + pickles.PROTO + keys + b"."
    storage = struct.pack("<q", 12) + RANGE.tobytes()
    refused(tmp_path / "x.pth", content + storage * 2, "its list of storages is not that of its tensors")


@pytest.mark.parametrize("position", [15, 18])
def test_a_legacy_file_of_another_version_is_told(tmp_path, position):
    content = bytearray((GOLDEN / "tiny_legacy.pth").read_bytes())
    content[position] ^= 1
    refused(tmp_path / "x.pth", bytes(content), "as PyTorch's legacy format, but not of version 1001")


@pytest.mark.parametrize(
    ("tensors", "storages", "message"),
    [
        ([("FloatStorage", "0", 12), ("IntStorage", "0", 12)], {"0": 12}, "'0' is described in two ways"),
        ([("FloatStorage", "0", 12), ("FloatStorage", "0", 11)], {"0": 12}, "'0' is described in two ways"),
        ([("FloatStorage", "0", 12)], {"0": 12, "1": 12}, "list of storages is not that of its tensors"),
        ([("FloatStorage", "0", 12)], {"1": 12}, "list of storages is not that of its tensors"),
        ([("FloatStorage", "0", 12)], {"0": 11}, "'0' has not the 12 elements that its tensors need"),
    ],
)
def test_legacy_storages_that_contradict_their_tensors_are_refused(tmp_path, tensors, storages, message):
    content = {f"a{n}": pickles.tensor(*tensor, (3,), (1,), view=b"N") for n, tensor in enumerate(tensors)}
    raw = {key: (length, RANGE.tobytes()) for key, length in storages.items()}
    path = pickles.write_torch_legacy(tmp_path / "x.pth", pickles.dictionary(content), raw)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_zip_bombs_are_refused(tmp_path):
    content = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 10**7, (10**7,), (1,))})
    bomb = pickles.write_torch_zip(
        tmp_path / "x.pth", content, {"0": bytes(4 * 10**7)}, compression=zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match="is compressed, which torch"):
        read_checkpoint(bomb)

    expanded = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 12, (10**6, 10**6), (0, 0))})
    with pytest.raises(CheckpointError, match="would unpack to 4,000,000,000,000"):
        read_checkpoint(pickles.write_torch_zip(tmp_path / "y.pth", expanded, {"0": RANGE.tobytes()}))


def test_a_file_may_unpack_to_twice_its_size_and_eight_megabytes(tmp_path):
    def expanded(size: int) -> Path:
        content = pickles.dictionary({"a": pickles.tensor("ByteStorage", "0", 1, (size,), (0,))})
        return pickles.write_torch_zip(tmp_path / "x.pth", content, {"0": b"7"})

    size = 8_000_000 + 2 * expanded(8_000_000).stat().st_size
    array = read_checkpoint(expanded(size))["a"]
    assert array.shape == (size,)
    assert (array == ord("7")).all()
    with pytest.raises(CheckpointError, match=f"bytes would unpack to {size + 1:,}; save plain"):
        read_checkpoint(expanded(size + 1))


def test_the_directory_of_a_file_has_a_megabyte_at_most(tmp_path):
    tensor = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 12, (12,), (1,))})
    fixed = [("archive/data.pkl", pickles.PROTO + tensor + b"."), ("archive/data/0", RANGE.tobytes())]
    for size in (1_000_000, 1_000_001):
        names = [f"archive/{number:02}".ljust(60_000, "x") for number in range(16)]
        rest = size - sum(46 + len(name) for name in [*names, *(name for name, _ in fixed)])
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            for name, content in [*fixed, *((name, b"") for name in [*names, "y" * (rest - 46)])]:
                archive.writestr(name, content)
        header = {"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}}
        text = json.dumps(header).ljust(size - 8)
        pickles.write_safetensors(tmp_path / "x.safetensors", text, RANGE.tobytes())
        for file, what in (("x.pth", f"zip directory has {size:,}"), ("x.safetensors", f"header has {size - 8:,}")):
            if size == 1_000_000:
                assert same(read_checkpoint(tmp_path / file), {"a": RANGE})
            else:
                with pytest.raises(CheckpointError, match=f"refused: its {what} bytes; save the weights alone"):
                    read_checkpoint(tmp_path / file)


def test_entries_of_a_zip_do_not_lie_over_each_other(tmp_path):
    tensor = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 12, (12,), (1,))})
    size = pickles.write_torch_zip(tmp_path / "x.pth", tensor, {"0": RANGE.tobytes()}).stat().st_size + 46 + 9
    for more in (0, 1):
        pickles.write_torch_zip(tmp_path / "x.pth", tensor, {"0": RANGE.tobytes()})
        with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
            other = copy.copy(archive.infolist()[0])
            other.filename = "archive/1"
            other.file_size = size + more - sum(entry.file_size for entry in archive.infolist())
            other.compress_size = other.file_size
            archive.filelist.append(other)
            archive._didModify = True
        assert (tmp_path / "x.pth").stat().st_size == size
        if more:
            with pytest.raises(CheckpointError, match="its entries are larger than the file; write the file again"):
                read_checkpoint(tmp_path / "x.pth")
        else:
            assert same(read_checkpoint(tmp_path / "x.pth"), {"a": RANGE})


def test_byte_orders_are_two_and_little_where_none_is_told(tmp_path):
    tensor = pickles.dictionary({"a": pickles.tensor("FloatStorage", "0", 12, (12,), (1,))})
    path = pickles.write_torch_zip(tmp_path / "x.pth", tensor, {"0": RANGE.tobytes()}, byte_order="middle")
    with pytest.raises(CheckpointError, match="its byteorder is neither little nor big"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:  # as PyTorch 1 wrote them
        archive.writestr("archive/data.pkl", pickles.PROTO + tensor + b".")
        archive.writestr("archive/data/0", RANGE.tobytes())
    assert same(read_checkpoint(path), {"a": RANGE})


def test_a_program_of_torchscript_is_told(tmp_path):
    path = pickles.write_torch_zip(tmp_path / "x.pth", b"}", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", "x")
    with pytest.raises(CheckpointError, match=r"it is a TorchScript program; save its weights: torch\.save"):
        read_checkpoint(path)


def test_an_altered_zip_is_refused(tmp_path):
    data = (GOLDEN / "tiny_zip.pth").read_bytes()
    position = data.index(reference_parameter("head.bias", (10,)).tobytes())
    refused(tmp_path / "x.pth", data[:position] + b"?" + data[position + 1 :], "checksum")

    path = pickles.write_torch_zip(tmp_path / "y.pth", b"}", {})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", "x")
    with pytest.raises(CheckpointError, match="stands twice in it, which torch"):
        read_checkpoint(path)


def test_archives_of_weights_files_and_other_zips_say_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "CycleMLP_pretrained.zip", "w") as archive:
        files = ("paddle_CycleMLP_B1.pdparams", "b.pth", "c.safetensors", "readme.txt")
        for name in (*files, "z.pth", *(f"{number}.pth" for number in range(6))):
            archive.writestr(f"CycleMLP_pretrained/{name}", "x")
    names = ", ".join(
        f"CycleMLP_pretrained/{name}" for name in (*(f"{number}.pth" for number in range(6)), *sorted(files[:3]))
    )  # nine of ten
    with pytest.raises(CheckpointError, match=re.escape(f"unpack it and give one of {names}") + "$"):
        read_checkpoint(tmp_path / "CycleMLP_pretrained.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match=r"not of weights .*: there is no data\.pkl in it$"):
        read_checkpoint(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}}, bytes(40), "is not at bytes 71 to 119"),
        (
            {"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}},
            bytes(56),
            "end at byte 119, the file at 127",
        ),
        ({"a": {"dtype": "F32", "shape": [13], "data_offsets": [0, 48]}}, bytes(48), "is not at bytes 71 to 119"),
        (
            {"a": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}},
            bytes(4),
            "F8_E5M2; allowed are BF16, F16, F32",
        ),
        (
            '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            bytes(2),
            "'a' stands twice",
        ),
        ("{" + "[" * 100_000, b"", "makes no sense"),
        ("{}x", b"", "makes no sense"),
    ],
)
def test_wrong_safetensors_are_refused(tmp_path, header, data, message):
    path = pickles.write_safetensors(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


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


# Writing


def test_what_is_written_reads_bit_for_bit_through_every_format(tmp_path):
    arrays = some_arrays()
    write_checkpoint(tmp_path / "1.pdparams", arrays)
    write_checkpoint(tmp_path / "2.safetensors", read_checkpoint(tmp_path / "1.pdparams"))
    write_checkpoint(tmp_path / "3.pdparams", read_checkpoint(tmp_path / "2.safetensors"))
    final = read_checkpoint(tmp_path / "3.pdparams")
    assert same({name: final[name] for name in arrays}, arrays)
    assert all(final[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.pdparams", "2.safetensors", "3.pdparams"]


def test_safetensors_are_the_same_bytes_each_time_and_read_by_their_own_library(tmp_path):
    for number in (1, 2):
        write_checkpoint(tmp_path / f"{number}.safetensors", some_arrays())
        write_checkpoint(tmp_path / f"{number}.pdparams", some_arrays())
    for suffix in (".safetensors", ".pdparams"):
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()
        assert (tmp_path / f"1{suffix}").stat().st_mode & 0o777 == 0o666 & ~umask()
    header = int.from_bytes((tmp_path / "1.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0  # so that arrays lie where their numbers may be read in place
    with safe_open(tmp_path / "1.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "cyclemlp", "layout": "paddle"}
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    assert same(dict(sorted(read.items())), dict(sorted(some_arrays().items())))
    with pytest.raises(ValueError, match="a has dtype uint16; safetensors files take "):
        write_checkpoint(tmp_path / "3.safetensors", {"a": np.zeros(3, np.uint16)})


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_paddle_loads_what_is_written(tmp_path):
    layer = nn.Linear(3, 4)
    arrays = {"weight": RANGE.reshape(3, 4), "bias": RANGE[:4]}
    write_checkpoint(tmp_path / "x.pdparams", arrays)
    assert (tmp_path / "x.pdparams").read_bytes()[:2] == b"\x80\x04"  # the newest protocol that Paddle writes
    layer.set_state_dict(paddle.load(str(tmp_path / "x.pdparams")))
    np.testing.assert_array_equal(layer.weight.numpy(), arrays["weight"])


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x{suffix}"
    write_checkpoint(path, {"a": RANGE})
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, {"a": RANGE + 1})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("file", "layout"), [("x.pth", "paddle"), ("x.pdparams", "torch"), ("x.safetensors", "jax")])
def test_other_suffixes_and_layouts_are_not_written(tmp_path, file, layout):
    with pytest.raises(ValueError, match=file):
        write_checkpoint(tmp_path / file, {"a": RANGE}, layout=layout)
    assert not (tmp_path / file).exists()
