"""Training's input pipeline on one core, against timm's on the same JPEG files: decode, RandomResizedCrop, flip,
RandAugment (rand-m9-mstd0.5-inc1, bicubic), normalisation, erasing.

    python -m benchmarks.pipeline [--rounds 9]          (timm needs an environment of its own: make bench-timm)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.group import run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones.files import isolated_python
from cyclemlp_backbones.timing import ROUNDS, Ratio, Timing

ROOT = Path(__file__).resolve().parent.parent
TIMM_PYTHON = Path(os.environ.get("TIMM_PYTHON", ROOT / ".venv-timm" / "bin" / "python"))
MISSING = "timm not measured: `make bench-timm` sets up its environment"


class Worker:
    """A process that says what it is, and then, for every seed, how many seconds it takes for the files."""

    def __init__(self, command: Sequence[str | Path]):
        self._command = [str(part) for part in command]
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)[:80]} … has ended, see its message above")
        return line.strip()

    def seconds(self, seed: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()


def serve(paths: Sequence[str]) -> None:
    """This project's side of a `Worker`."""
    import numpy as np
    import PIL

    from classification.augment import TrainTransform
    from classification.config import AugmentConfig, DataConfig
    from cyclemlp_backbones.pictures import read_rgb

    transform = TrainTransform(AugmentConfig(), DataConfig())
    print(f"pillow {PIL.__version__}", flush=True)
    for line in sys.stdin:
        rng = np.random.default_rng(int(line))
        start = time.perf_counter()
        for path in paths:
            transform(read_rgb(path), rng)
        print(time.perf_counter() - start, flush=True)


def figures(rounds: int, progress: Progress) -> Figures:
    from benchmarks.photographs import COUNT, write_photographs

    rounds = max(rounds, ROUNDS) * 3  # other seeds draw other operations: many are needed for a mean
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder))
        code = "import sys; from benchmarks.pipeline import serve; serve(sys.argv[1:])"
        workers = {"ours": Worker(isolated_python(code, *paths))}
        if TIMM_PYTHON.exists():
            workers["timm"] = Worker([TIMM_PYTHON, ROOT / "benchmarks" / "timm_worker.py", *paths])
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        names = list(workers)
        for this_round in range(-1, rounds):  # the first one warms up
            for name in names if this_round % 2 else reversed(names):
                taken = workers[name].seconds(this_round + 1)
                if this_round >= 0:
                    seconds[name].append(taken / COUNT)
            progress((this_round + 1) / rounds)
        for worker in workers.values():
            worker.close()
    times = {name: Timing(tuple(values)) for name, values in seconds.items()}
    parts = {f"{name}, images/s": 1 / timing.median for name, timing in times.items()}
    if "timm" not in times:
        yield Figure("pipeline", float("nan"), float("nan"), parts, MISSING)
        return
    ratio = Ratio.of(times["timm"], times["ours"])
    # The quickest round is the one that drew the cheapest operations, so that only the median means anything.
    yield Figure("pipeline", ratio.medians, ratio.medians, parts, workers["timm"].versions)


if __name__ == "__main__":
    run_group(figures)
