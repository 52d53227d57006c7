"""Weights files of every format and origin are read exactly, and written whole."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors import safe_open
from safetensors.numpy import save_file

from cyclemlp_backbones import read_checkpoint
from cyclemlp_backbones.weights import pickles as checkpoint_pickle
from cyclemlp_backbones.weights.formats import read_checkpoint_file, write_checkpoint
from tests.reference import GOLDEN, reference_parameter
from tests.weights import pickles
from tests.weights.reading import GOLDEN_FILES, RANGE, refused, same, some_arrays


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
