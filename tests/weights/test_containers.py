"""What lies around the pickle: storages, zip archives, headers; each is refused where it contradicts its tensors."""

from __future__ import annotations

import copy
import json
import re
import struct
import zipfile
from pathlib import Path

import pytest

from cyclemlp_backbones import CheckpointError, read_checkpoint
from tests.reference import GOLDEN, reference_parameter
from tests.weights import pickles
from tests.weights.reading import RANGE, refused, same

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
