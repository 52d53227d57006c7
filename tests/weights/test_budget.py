"""Reading takes time linear in a file's size, and memory of three times that and 64 MB, whatever the file holds."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from cyclemlp_backbones import write_checkpoint
from tests.reference import GOLDEN
from tests.weights import pickles
from tests.weights.pickles import PROTO, dictionary, integer, name, text

MUTATIONS = int(os.environ.get("CYCLEMLP_MUTATIONS", "2000"))
"""How many changed files are read; the long form is 20,000."""

ROOT = Path(__file__).parents[2]
ENCODE = name("_codecs", "encode")
DTYPE = name("numpy", "dtype") + b"U\x02f4\x89\x88\x87R(K\x03U\x01<tb"
EMPTY_ARRAY = name("numpy.core.multiarray", "_reconstruct") + b"(" + name("numpy", "ndarray") + b"K\x00\x85U\x01btR"
DOUBLED = b"K\x01\x85q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00"
"""A tuple that has two of a tuple that has two of … : 2^60 entries."""


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def weights(content: bytes) -> bytes:
    """A .pdparams whose weights are "a", of `content`."""
    return PROTO + b"}" + text("a") + content + b"s."


def legacy(keys: bytes) -> bytes:
    return pickles.LEGACY_START + PROTO + b"}." + PROTO + keys + b"."


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def zip_directory(size: int) -> bytes:
    """A zip file of many empty entries, of about `size` bytes."""
    count = size // 60
    entries = b"".join(
        b"PK\x01\x02" + bytes(24) + struct.pack("<H", 14) + bytes(16) + b"archive/%06x" % number
        for number in range(count)
    )
    end = struct.pack("<4s4xHHIIH", b"PK\x05\x06", count & 0xFFFF, count & 0xFFFF, len(entries), 4, 0)
    return b"PK\x03\x04" + entries + end


def overlapping_entries() -> bytes:
    """A zip file whose 10,000 entries all are the same ten megabytes."""
    body = b"PK\x03\x04" + bytes(26) + bytes(10_000_000)
    names = [b"archive/data.pkl", *(b"archive/%08x" % number for number in range(10_000))]
    sizes = struct.pack("<IIH", 10_000_000, 10_000_000, 16)
    entries = b"".join(b"PK\x01\x02" + bytes(16) + sizes + bytes(16) + name for name in names)
    return body + entries + struct.pack("<4s4xHHIIH", b"PK\x05\x06", 10_001, 10_001, len(entries), len(body), 0)


def unique_keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":0' % number for number in [*range(count), count - 1]) + b"}"


def wrapped_in_itself() -> bytes:
    wrappers = (b"model", b"state_dict", b"net", b"module", b"params", b"weights", b"ema", b"model_ema", b"params_ema")
    items = b"".join(b"U" + bytes([len(key)]) + key + b"h\x00" for key in wrappers)
    others = b"".join(integer(number) + b"N" for number in range(20_000))
    return PROTO + b"}q\x00(" + items + others + b"u."


HUGE = b"B" + struct.pack("<I", 50_000_000) + bytes(50_000_000)
LONG = text("x" * 1_000_000)
WIDE = ("\N{GRINNING FACE}" + "x" * 4000).encode()

HOSTILE: dict[str, Callable[[], bytes]] = {
    "doubled tuples as a dtype": lambda: weights(name("numpy", "dtype") + DOUBLED + b"\x85R"),
    "doubled tuples as a dtype's state": lambda: weights(DTYPE + DOUBLED + b"b"),
    "doubled tuples as a byte order": lambda: weights(DTYPE + b"K\x03" + DOUBLED + b"\x86b"),
    "doubled tuples as a shape": lambda: weights(EMPTY_ARRAY + b"(K\x01" + DOUBLED + DTYPE + b"\x89U\x01xtb"),
    "doubled tuples as a key": lambda: PROTO + b"}" + DOUBLED + b"Ns.",
    "doubled tuples as an encoding": lambda: weights(ENCODE + b"U\x01x" + DOUBLED + b"\x86R"),
    "doubled tuples as a name": lambda: b"\x80\x04" + DOUBLED + b"U\x01x\x93.",
    "doubled tuples that are called": lambda: weights(DOUBLED + b")R"),
    "doubled tuples as weights": lambda: weights(DOUBLED),
    "doubled tuples in a list of storages": lambda: legacy(b"]" + DOUBLED + b"a"),
    "one text as all storages": lambda: legacy(b"](" + text("x" * 4000) + put(0) + get(0) * 500_000 + b"e"),
    "a text encoded again and again": lambda: weights(
        b"](" + LONG + put(0) + (ENCODE + get(0) + b"\x85R") * 20_000 + b"e"
    ),
    "a text as many arrays": lambda: (
        PROTO
        + b"}("
        + b"".join(
            text(f"a{number}")
            + (LONG + put(0) + b"0" if number == 0 else b"")
            + EMPTY_ARRAY
            + b"(K\x01"
            + pickles.numbers((250_000,))
            + DTYPE
            + b"\x89"
            + get(0)
            + b"tb"
            for number in range(2000)
        )
        + b"u."
    ),
    "tuples of a list": lambda: weights(
        b"]("
        + b"]("
        + b"K\x01" * 20_000
        + b"e"
        + put(0)
        + (name("builtins", "tuple") + get(0) + b"\x85R") * 20_000
        + b"e"
    ),
    "integer keys that collide": lambda: (
        PROTO + b"}(" + b"".join(integer(number * (2**61 - 1)) + b"N" for number in range(100_000)) + b"u."
    ),
    "dictionaries wrapped in themselves": wrapped_in_itself,
    "duplicate names": lambda: safetensors(unique_keys(90_000)),
    "duplicate names, 30 MB": lambda: safetensors(unique_keys(2_500_000)),
    "lists in JSON": lambda: safetensors(b'{"a":[' + b"[]," * 330_000 + b"[]]}"),
    "dictionaries in JSON": lambda: safetensors(b'{"a":[' + b'{"b":{}},' * 105_000 + b"0]}"),
    "lists in JSON, 31 MB": lambda: safetensors(b'{"a":[' + b"[]," * 10_300_000 + b"[]]}"),
    "zip entries": lambda: zip_directory(990_000),
    "zip entries, 32 MB": lambda: zip_directory(32_000_000),
    "zip entries over each other": overlapping_entries,
    "a wide text": lambda: weights(text("\N{GRINNING FACE}" + "x" * 40_000_000)),
    "wide texts": lambda: weights(b"](" + (b"X" + struct.pack("<I", len(WIDE)) + WIDE) * 10_000 + b"e"),
    "empty dictionaries": lambda: weights(b"](" + b"}" * 10_000_000 + b"e"),
    "dictionaries of one entry": lambda: weights(b"](" + b"}K\x01K\x01s" * 2_000_000 + b"e"),
    "one object, many times": lambda: weights(b"](" + b"K\x01q\x00" + b"h\x00" * 5_000_000 + b"e"),
    "memos": lambda: weights(b"K\x01" + b"\x94" * 10_000_000),
    "marks": lambda: weights(b"(" * 10_000_000),
    "bytes of nothing": lambda: weights(b"](" + b"C\x00" * 5_000_000 + b"e"),
    "arrays of nothing": lambda: weights(b"](" + EMPTY_ARRAY * 100_000 + b"e"),
    "bytes as a list of slices": lambda: (
        PROTO
        + dictionary({"UnpackBigParamInfor@@": dictionary({"a": dictionary({"slices": HUGE, "OriginShape": b")"})})})
        + b"."
    ),
    "bytes as the shape of slices": lambda: (
        PROTO
        + b"}("
        + text("a")
        + EMPTY_ARRAY
        + text("UnpackBigParamInfor@@")
        + dictionary({"b": dictionary({"slices": b"]" + text("a") + b"a", "OriginShape": HUGE})})
        + b"u."
    ),
    "bytes as a storage": lambda: pickles.LEGACY_START + PROTO + HUGE + b"Q.",
    "names": lambda: weights(b"](" + name("numpy", "ndarray") * 1_000_000 + b"e"),
    "frames and protocols": lambda: PROTO * 10_000_000,
}


def run(*arguments: str | Path) -> list[dict]:
    command = [sys.executable, "-m", "tests.weights.budget", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", HOSTILE)
def test_amplifications_are_refused_within_the_budget(tmp_path, case):
    path = tmp_path / "x.pth"
    path.write_bytes(HOSTILE[case]())
    (result,) = run("read", path)
    assert result["outcome"] == "refused", result


def test_a_name_of_many_prefixes_takes_no_time(tmp_path):
    name_of_many = b'{"' + b"module." * 140_000 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "x.safetensors").write_bytes(safetensors(name_of_many))
    assert run("read", tmp_path / "x.safetensors")[0]["outcome"] == "1 arrays"


def test_what_is_whole_is_read_within_the_budget(tmp_path):
    large = np.zeros((40_000_000,), np.float32)
    large[::7] = np.arange(len(large[::7]))
    for suffix in (".pdparams", ".safetensors"):
        write_checkpoint(tmp_path / f"large{suffix}", {"a": large, "b": large[:7]})
    (tmp_path / "protocol2.pdparams").write_bytes(pickle.dumps({"a": large[:10_000_000], "b": large[:1_000_000]}, 2))
    slices = {"big@@.0": large[:20_000_000], "big@@.1": large[20_000_000:]}
    table = {"big": {"OriginShape": (40_000_000,), "slices": list(slices)}}
    (tmp_path / "slices.pdparams").write_bytes(pickle.dumps({**slices, "UnpackBigParamInfor@@": table}, 4))
    half = large.view(np.uint16)[:40_000_000]
    (tmp_path / "bfloat16.pdparams").write_bytes(pickle.dumps({"a": half, "b": half[:5]}, 4))
    tensors = {"a": pickles.tensor("BFloat16Storage", "0", 40_000_000, (40_000_000,), (1,))}
    pickles.write_torch_zip(tmp_path / "bfloat16.pth", dictionary(tensors), {"0": half.tobytes()})
    for result in run("read", *sorted(tmp_path.iterdir())):
        assert result["outcome"].endswith(" arrays"), result


def test_a_checkpoint_with_optimizer_and_average_is_far_from_the_budget(tmp_path):
    """As many tensors as a B5's weights, their average and AdamW's two moments have, each with a storage of its own."""
    count = 4 * 700
    tensors = {
        f"network.4.{n}.mlp.fc1.weight": pickles.tensor("FloatStorage", str(n), 1, (1,), (1,)) for n in range(count)
    }
    path = pickles.write_torch_zip(tmp_path / "x.pth", dictionary(tensors), {str(n): bytes(4) for n in range(count)})
    assert run("read", path)[0]["outcome"] == f"{count} arrays"


def test_changed_files_are_read_or_refused_within_the_budget(tmp_path):
    arrays = {"a.weight": np.ones((3, 4), np.float32), "a.bias": np.ones(4, np.float16), "scalar": np.array(7)}
    for suffix in (".pdparams", ".safetensors"):
        write_checkpoint(tmp_path / f"x{suffix}", arrays)
    (tmp_path / "protocol5.pdparams").write_bytes(pickle.dumps({"model": arrays, "epoch": 1}, 5))
    paddle.save({"model": nn.Linear(3, 4).state_dict()}, str(tmp_path / "paddle.pdparams"), protocol=2)
    tensor = pickles.tensor("FloatStorage", "0", 12, (3, 4), (4, 1), view=b"N")
    pickles.write_torch_legacy(tmp_path / "legacy.pth", dictionary({"a": tensor}), {"0": (12, bytes(48))})
    originals = [*sorted(tmp_path.iterdir()), *sorted(GOLDEN.glob("tiny*.pth"))]
    outcomes: dict[str, int] = {}
    for counts in run("mutate", *originals, "--count", str(-(-MUTATIONS // len(originals)))):
        for outcome, count in counts.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    assert outcomes.keys() == {"arrays", "refused"}, outcomes
    assert min(outcomes.values()) > MUTATIONS // 20, outcomes  # both happened
    print(outcomes)
