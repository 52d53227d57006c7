"""Conflicts between the packages of this interpreter's environment, each with its remedy. Standard library only."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cyclemlp_backbones.files import isolated_python

_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
PACKAGES = (
    "cyclemlp-backbones", "paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddledet", "paddle2onnx", "onnxruntime",
    "numpy", *_OPENCV, "protobuf", "pillow", "scikit-learn", "matplotlib", "pycocotools", "safetensors",
)  # fmt: skip

VERSIONS = Path(__file__).with_name("versions.json")
"""What each part of docs/support.md's table gave, by Python and Paddle; `make test-matrix` writes both."""

# What each package is imported as; tried in a process of its own, which a failing import may take with it.
_IMPORTS = {
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "cv2": _OPENCV,
    "sklearn": ("scikit-learn",),
    "paddleseg": ("paddleseg",),
    "ppdet": ("paddledet",),
}

# A PNG is read through zlib; Paddle 2.6 exports zlib's symbols, and a zlib loaded after it calls those.
_ZLIB_AFTER_PADDLE = (
    "import paddle, zlib; data = bytes(range(256)) * 64; assert zlib.decompress(zlib.compress(data)) == data"
)


@dataclass(frozen=True)
class Finding:
    """One conflict. `level` is "error" (something will not run) or "note" (slower, or only for some uses)."""

    level: str
    problem: str
    remedy: str


def _release(version: str | None) -> tuple[int, ...]:
    """ "4.5.5.64" -> (4, 5, 5, 64); a part that is no number ends it. () where nothing is installed."""
    numbers: list[int] = []
    for part in (version or "").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _paddle_version(versions: Mapping[str, str]) -> str | None:
    return versions.get("paddlepaddle") or versions.get("paddlepaddle-gpu")


def conflicts(versions: Mapping[str, str]) -> Iterator[Finding]:
    """What the versions alone tell."""
    paddle = _paddle_version(versions)
    if "paddlepaddle" in versions and "paddlepaddle-gpu" in versions:
        yield Finding(
            "error",
            f"paddlepaddle {versions['paddlepaddle']} and paddlepaddle-gpu {versions['paddlepaddle-gpu']} are both "
            "installed: they write into the same folder, so what runs is a mixture",
            "pip uninstall -y paddlepaddle paddlepaddle-gpu, then install the one that you need",
        )
    elif paddle is None:
        yield Finding(
            "error",
            "PaddlePaddle is not installed",
            'pip install "cyclemlp-backbones[cpu]"; for GPUs see its installation page: its own index has '
            "the current packages",
        )
    elif _release(paddle) < (2, 6, 2):
        yield Finding("error", f"Paddle {paddle} is older than 2.6.2", "pip install paddlepaddle==3.3.1")
    opencv = [name for name in _OPENCV if name in versions]
    if len(opencv) > 1:
        yield Finding(
            "error",
            f"{' and '.join(f'{name} {versions[name]}' for name in opencv)} are installed: they share the folder cv2, "
            "and the last one installed wins",
            f"pip uninstall -y {' '.join(opencv)}, then pip install one of them",
        )
    numpy, protobuf, sklearn = (versions.get(name) for name in ("numpy", "protobuf", "scikit-learn"))
    if paddle and _release(numpy) >= (2, 4):
        yield Finding(
            "note",
            f"numpy {numpy} with Paddle {paddle}: `int` of a tensor of one element is a TypeError, and so are "
            "`paddle.flops` and the end of PaddleSeg's training (seen with Paddle 3.3.1)",
            'pip install "numpy<2.4"',
        )
    for name in opencv:
        if _release(numpy) >= (2,) and _release(versions[name]) < (4, 10):
            yield Finding(
                "error",
                f"numpy {numpy} with {name} {versions[name]}, which was built for numpy 1: `import cv2`, and so "
                "`import paddleseg`, fails with 'numpy.core.multiarray failed to import'",
                'pip install "numpy<2"',
            )
            break
    if paddle and _release(paddle) < (3,) and _release(protobuf) >= (7,):
        yield Finding(
            "error",
            f"protobuf {protobuf} with Paddle {paddle}: paddle.distributed.launch fails with "
            "\"'FieldDescriptor' object has no attribute 'label'\"",
            'pip install "protobuf<7"',
        )
    if numpy and _release(sklearn) >= (1, 8) and _release(numpy) < (1, 24, 1):
        yield Finding(
            "error",
            f"scikit-learn {sklearn} with numpy {numpy}: it needs numpy 1.24.1 or newer (this comes of installing the "
            "extras one after the other)",
            f'pip install "scikit-learn<1.8" "numpy=={numpy}", or install all extras again in one pip call',
        )


def support(versions: Mapping[str, str]) -> dict[str, str]:
    """What is known of each part of this Python's and this Paddle's row, and of each toolkit that is installed."""
    cell = "{}.{}-{}".format(*sys.version_info[:2], versions.get("paddlepaddle"))
    row = json.loads(VERSIONS.read_text()).get(cell, {})
    row.pop("with", None)
    parts = dict.fromkeys(f"{name} {versions[name]}" for name in ("paddleseg", "paddledet") if name in versions)
    verdict = {"yes": "tested", None: "not tested"}
    return {
        part: verdict.get(said, f"known not to work: {said}")
        for part, said in {"core": None, "cls": None, "predict": None, **parts, **row}.items()
    }


def _run(code: str) -> str | None:
    """None if `code` runs in a fresh interpreter, else what went wrong, in one line."""
    try:
        done = subprocess.run(isolated_python(code), capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "it hangs (stopped after 120 s)"
    if done.returncode < 0:
        return f"it crashes with {signal.Signals(-done.returncode).name}"
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {done.returncode}"
    return None


def _import_fails(module: str, versions: Mapping[str, str]) -> Finding | None:
    package = next((name for name in _IMPORTS[module] if name in versions), None)
    # zlib first, as our own commands do it: what comes of the other order is told apart.
    if package is None or (problem := _run(f"import zlib, {module}")) is None:
        return None
    remedy = f"pip install --force-reinstall {package}=={versions[package]}, together with what else it needs"
    if "libGL" in problem:
        remedy = f"apt-get install libgl1, or pip uninstall -y {package} and pip install opencv-python-headless"
    return Finding("error", f"`import {module}` ({package} {versions[package]}) fails: {problem}", remedy)


def _zlib_fails_after_paddle(versions: Mapping[str, str]) -> Finding | None:
    if _paddle_version(versions) is None or (problem := _run(_ZLIB_AFTER_PADDLE)) is None:
        return None
    if _run("import zlib, paddle") is not None:
        return None  # Paddle does not import at all: another finding says so
    return Finding(
        "note",
        f"in a program that imports paddle before zlib, zlib does not work: {problem}; reading PNG files and "
        "`import ppdet` fail by it",
        "write `import zlib` above `import paddle` in your own scripts; importing cyclemlp_backbones first does it too",
    )


def findings(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Every conflict of this interpreter's environment, given `versions` of PACKAGES; starts interpreters."""
    yield from conflicts(versions)
    with writable_home() as replaced, ThreadPoolExecutor(max_workers=2) as pool:
        if replaced:
            yield Finding(
                "note",
                "nothing can be written into the home folder: `import paddle` fails in programs of your own",
                "export HOME=DIR, a folder that can be written into; the commands of cyclemlp do so by themselves",
            )
        imports = [pool.submit(_import_fails, module, versions) for module in _IMPORTS]
        for found in (*imports, pool.submit(_zlib_fails_after_paddle, versions)):
            if finding := found.result():
                yield finding
    if not os.environ.get("OMP_NUM_THREADS"):
        yield Finding(
            "note",
            "OMP_NUM_THREADS is not set: on a CPU, Paddle computes with one thread",
            f"export OMP_NUM_THREADS={os.cpu_count() or 1}; on an AMD processor also MKL_DEBUG_CPU_TYPE=5",
        )


@contextlib.contextmanager
def writable_home() -> Iterator[bool]:
    """Where nothing can be written into the home folder, in which Paddle makes folders, or fails: another
    home for this time, and True."""
    cache = Path("~/.cache/paddle/dataset").expanduser()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    with contextlib.suppress(OSError):
        if there != cache:
            tempfile.TemporaryFile(dir=there).close()
        there = cache
    if there == cache:
        yield False
        return
    home = os.environ.pop("HOME", None)
    try:
        with tempfile.TemporaryDirectory() as os.environ["HOME"]:
            yield True
    finally:
        os.environ.pop("HOME")
        if home is not None:
            os.environ["HOME"] = home


def import_paddle_without_home() -> None:
    """Imports Paddle where it would fail later, for want of a home folder to write into."""
    with writable_home() as replaced, contextlib.suppress(ImportError):
        if replaced:
            importlib.import_module("paddle")
