"""CycleFC's shift as an operator in C++, which `cyclemlp build-ops` compiles: faster on a CPU, never needed.

The library lies in the cache folder, under a name made of its source, of Paddle's version and of Paddle's place, so
that one of another Paddle is not found. CYCLEMLP_OPS=0 in the environment leaves it alone. Half precision is not for
it: Paddle has no matrix product for it on a CPU.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import paddle
from paddle import Tensor

from cyclemlp_backbones.cyclenet import CycleFC
from cyclemlp_backbones.files import cache_folder, isolated_python, write_atomically

SOURCE = Path(__file__).with_name("cycle_shift.cc")
_PADDLE = Path(paddle.__file__).parent
_OPERATOR = "cyclemlp_cycle_shift"
# Paddle's products use threads of the OpenMP that it ships: those of the compiler's own would fight with them.
_BUILD = """
import sys
from pathlib import Path
from paddle.utils.cpp_extension import load
source, folder, libraries = sys.argv[1:]
threads = []
if (Path(libraries) / "libiomp5.so").exists():
    threads = ["-fopenmp", f"-L{libraries}", "-l:libiomp5.so", f"-Wl,-rpath,{libraries}"]
load("cyclemlp_ops", [source], extra_cxx_cflags=["-O3", *threads[:1]], extra_ldflags=threads[1:],
     build_directory=folder)
"""


class BuildError(OSError):
    """The operator could not be built; the message says why and what to do."""


def library() -> Path:
    """Where the operator's library lies once it is built."""
    key = SOURCE.read_bytes() + f"{paddle.__version__} {_PADDLE}".encode()
    return cache_folder() / "ops" / f"cycle_shift-{hashlib.sha256(key).hexdigest()[:16]}.so"


def build() -> Path:
    """Compiles the operator into the cache folder, and compares it with the plain form. Raises BuildError."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise BuildError(
            f"there is no C++ compiler {compiler!r}; install g++ (apt install g++), or name another in the variable CXX"
        )
    path = library()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = isolated_python(_BUILD, SOURCE, folder, _PADDLE / "libs")
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        built = list(Path(folder).rglob("cyclemlp_ops*.so"))
        if run.returncode or not built:
            raise BuildError(f"{compiler} could not compile {SOURCE}:\n{run.stdout[-2000:]}")
        write_atomically(path, lambda temporary: shutil.copyfile(built[0], temporary))
    _loaded.cache_clear()
    if not (_loaded() and _is_right()):
        path.unlink()
        raise BuildError(f"what {compiler} made of {SOURCE} computes wrong values; it was deleted. Please report it")
    return path


def _is_right() -> bool:
    """Whether the operator computes what the plain form does, forward and backward, at several sizes."""
    right = True
    for shape, kernel_size in (([2, 5, 7, 11], (1, 3)), ([1, 6, 4, 8], (4, 1)), ([1, 1, 3, 2], (5, 1))):
        layer, x = CycleFC(shape[3], 4, kernel_size), paddle.randn(shape)
        x.stop_gradient = False
        results = []
        for y in (layer(x), paddle.matmul(shift(x, layer), layer.weight.reshape([4, -1]).t()) + layer.bias):
            results.append([y, *paddle.grad((y**2).sum(), [x])])
        right &= all(bool((a - b).abs().max() < 1e-4) for a, b in zip(*results))
    return right


def available() -> bool:
    """Whether the operator was built for this Paddle, and may be used; loads it at the first call."""
    return os.environ.get("CYCLEMLP_OPS") != "0" and _loaded()


@functools.cache
def _loaded() -> bool:
    path = library()
    if path.exists():
        paddle.utils.cpp_extension.extension_utils.load_op_meta_info_and_register_op(str(path))
    return path.exists()


def shift(x: Tensor, layer: CycleFC) -> Tensor:
    """Every channel of `x` [N, H, W, C], on the CPU and in float32 or float64, read at its offset; the channels stay
    in their order."""
    return paddle.base.core.eager._run_custom_op(_OPERATOR, x, layer.length, layer.axis == 1, False)[0]
