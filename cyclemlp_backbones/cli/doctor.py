"""`cyclemlp doctor`: versions, the known conflicts between them, and the remedy for each."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
PACKAGES = (
    "cyclemlp-backbones",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "paddleseg",
    "paddledet",
    "paddle2onnx",
    "onnxruntime",
    "numpy",
    *_OPENCV,
    "protobuf",
    "pillow",
    "scikit-learn",
    "matplotlib",
    "pycocotools",
    "safetensors",
)

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


def installed_versions() -> dict[str, str]:
    """Version of each package of interest that is installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _release(version: str) -> tuple[int, ...]:
    """ "4.5.5.64" -> (4, 5, 5, 64); a part that is no number ends it."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _paddle_version(versions: Mapping[str, str]) -> str | None:
    return versions.get("paddlepaddle") or versions.get("paddlepaddle-gpu")


def check_python(version: tuple[int, ...]) -> Finding | None:
    if (3, 10) <= version[:2] <= (3, 11):
        return None
    return Finding(
        "error",
        f"Python {'.'.join(map(str, version))}: the pins of PaddleSeg 2.8.0 and PaddleDetection 2.6.0 admit 3.10 and "
        "3.11",
        "make a new environment with python3.11 -m venv",
    )


def check_paddle(versions: Mapping[str, str]) -> Finding | None:
    both = "paddlepaddle" in versions and "paddlepaddle-gpu" in versions
    if both:
        return Finding(
            "error",
            f"paddlepaddle {versions['paddlepaddle']} and paddlepaddle-gpu {versions['paddlepaddle-gpu']} are both "
            "installed: they write into the same folder, so what runs is a mixture",
            "pip uninstall -y paddlepaddle paddlepaddle-gpu, then install the one that you need",
        )
    version = _paddle_version(versions)
    if version is None:
        return Finding(
            "error",
            "PaddlePaddle is not installed",
            'pip install "cyclemlp-backbones[cpu]"; for GPUs see its installation page: its own index has '
            "the current packages",
        )
    if _release(version) < (2, 6, 2):
        return Finding("error", f"Paddle {version} is older than 2.6.2", "pip install paddlepaddle==3.3.1")
    return None


def check_opencv_packages(versions: Mapping[str, str]) -> Finding | None:
    found = [f"{name} {versions[name]}" for name in _OPENCV if name in versions]
    if len(found) < 2:
        return None
    return Finding(
        "error",
        f"{' and '.join(found)} are installed: they share the folder cv2, and the last one installed wins",
        f"pip uninstall -y {' '.join(name for name in _OPENCV if name in versions)}, then pip install one of them",
    )


def check_numpy_opencv(versions: Mapping[str, str]) -> Finding | None:
    numpy = versions.get("numpy", "1")
    for name in _OPENCV:
        if _release(numpy) >= (2,) and (0,) < _release(versions.get(name, "")) < (4, 10):
            return Finding(
                "error",
                f"numpy {numpy} with {name} {versions[name]}, which was built for numpy 1: `import cv2`, and so "
                "`import paddleseg`, fails with 'numpy.core.multiarray failed to import'",
                'pip install "numpy<2"',
            )
    return None


def check_protobuf(versions: Mapping[str, str]) -> Finding | None:
    paddle, protobuf = _paddle_version(versions), versions.get("protobuf")
    if paddle and protobuf and _release(paddle) < (3,) and _release(protobuf) >= (7,):
        return Finding(
            "error",
            f"protobuf {protobuf} with Paddle {paddle}: paddle.distributed.launch fails with "
            "\"'FieldDescriptor' object has no attribute 'label'\"",
            'pip install "protobuf<7"',
        )
    return None


def check_scikit_learn(versions: Mapping[str, str]) -> Finding | None:
    numpy, sklearn = versions.get("numpy"), versions.get("scikit-learn")
    if numpy and sklearn and _release(sklearn) >= (1, 8) and _release(numpy) < (1, 24, 1):
        return Finding(
            "error",
            f"scikit-learn {sklearn} with numpy {numpy}: it needs numpy 1.24.1 or newer (this comes of installing the "
            "extras one after the other)",
            f'pip install "scikit-learn<1.8" "numpy=={numpy}", or install all extras again in one pip call',
        )
    return None


def check_threads(environment: Mapping[str, str]) -> Finding | None:
    if environment.get("OMP_NUM_THREADS"):
        return None
    return Finding(
        "note",
        "OMP_NUM_THREADS is not set: on a CPU, Paddle computes with one thread",
        f"export OMP_NUM_THREADS={os.cpu_count() or 1}; on an AMD processor also MKL_DEBUG_CPU_TYPE=5",
    )


def _run(code: str) -> str | None:
    """None if `code` runs in a fresh interpreter, else what went wrong, in one line."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "it hangs (stopped after 120 s)"
    if done.returncode < 0:
        return f"it crashes with {signal.Signals(-done.returncode).name}"
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {done.returncode}"
    return None


def check_import(module: str, versions: Mapping[str, str]) -> Finding | None:
    package = next((name for name in _IMPORTS[module] if name in versions), None)
    if package is None:
        return None
    # zlib first, as our own commands do it: what comes of the other order is check_zlib_order's.
    problem = _run(f"import zlib, {module}")
    if problem is None:
        return None
    remedy = f"pip install --force-reinstall {package}=={versions[package]}, together with what else it needs"
    if "libGL" in problem:
        remedy = f"apt-get install libgl1, or pip uninstall -y {package} and pip install opencv-python-headless"
    return Finding("error", f"`import {module}` ({package} {versions[package]}) fails: {problem}", remedy)


def check_zlib_order(versions: Mapping[str, str]) -> Finding | None:
    if _paddle_version(versions) is None or (problem := _run(_ZLIB_AFTER_PADDLE)) is None:
        return None
    if _run("import zlib, paddle") is not None:
        return None  # Paddle does not import at all: another check says so
    return Finding(
        "note",
        f"in a program that imports paddle before zlib, zlib does not work: {problem}; reading PNG files and "
        "`import ppdet` fail by it",
        "write `import zlib` above `import paddle` in your own scripts; importing cyclemlp_backbones first does it too",
    )


def findings(versions: Mapping[str, str]) -> list[Finding]:
    """Every conflict of this interpreter's environment."""
    checks: list[Callable[[], Finding | None]] = [
        lambda: check_python(sys.version_info[:3]),
        lambda: check_paddle(versions),
        lambda: check_opencv_packages(versions),
        lambda: check_numpy_opencv(versions),
        lambda: check_protobuf(versions),
        lambda: check_scikit_learn(versions),
        *(lambda module=module: check_import(module, versions) for module in _IMPORTS),
        lambda: check_zlib_order(versions),
        lambda: check_threads(os.environ),
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [finding for finding in pool.map(lambda check: check(), checks) if finding]


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="cyclemlp doctor", description=__doc__).parse_args(argv)
    versions = installed_versions()
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for package, version in versions.items():
        print(f"  {package:<24} {version}")
    print("checking imports …", flush=True)
    found = findings(versions)
    for finding in found:
        print(f"\n{finding.level}: {finding.problem}\n  remedy: {finding.remedy}")
    errors = sum(finding.level == "error" for finding in found)
    print("\nno conflict found" if not found else f"\n{errors} errors, {len(found) - errors} notes")
    return 1 if errors else 0
