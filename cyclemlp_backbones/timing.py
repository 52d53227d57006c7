"""Times of alternatives, taken in turns within one process, so that what disturbs the machine disturbs all of them.

Standard library only, so that a program may set the environment before Paddle starts.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cyclemlp_backbones.files import commit, installed_versions

ROUNDS = 9
"""Turns that each alternative gets by default."""

_KEEP_MEMORY = str(8 * 10**9)
_PACKAGES = (
    "cyclemlp-backbones",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "paddleseg",
    "paddle2onnx",
    "onnxruntime",
    "openvino",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one figure per round."""

    seconds: tuple[float, ...]

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one alternative takes as another: of the best rounds, and of the median ones."""

    minima: float
    medians: float

    @classmethod
    def of(cls, ours: Timing, other: Timing) -> Ratio:
        return cls(ours.minimum / other.minimum, ours.median / other.median)


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    least_seconds: float = 0.05,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Timing]:
    """Times of `calls`, by name, over `rounds` rounds.

    A round gives each of them one turn, the order turning by one from round to round. A turn repeats the call until it
    takes about `least_seconds`; how often is settled once, after `warm_up` calls, by the time of one. `progress` is
    told after every turn. Raises ValueError without calls or rounds.
    """
    if not calls or rounds < 1 or warm_up < 1:
        raise ValueError(
            f"{len(calls)} calls, {rounds} rounds, {warm_up} calls to warm up; measure takes at least one each"
        )
    repeats = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        start = clock()
        call()
        repeats[name] = max(1, round(least_seconds / max(clock() - start, 1e-9)))
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds * len(names)):
        this_round, position = divmod(turn, len(names))
        name = names[(this_round + position) % len(names)]
        call = calls[name]
        start = clock()
        for _ in range(repeats[name]):
            call()
        seconds[name].append((clock() - start) / repeats[name])
        progress(turn + 1, rounds * len(names))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def forward_call(model: Any, image: Any, *, context: Callable[[], Any] = nullcontext) -> Callable[[], None]:
    """A forward of `model` as in evaluation, without gradients, in a `context` of its own (autocast)."""
    import paddle

    model.eval()

    def forward() -> None:
        with paddle.no_grad(), context():
            model(image)

    return forward


def step_call(model: Any, image: Any, label: Any, *, context: Callable[[], Any] = nullcontext) -> Callable[[], None]:
    """A training step of a classifier: forward in `context`, cross-entropy, backward, an update with momentum."""
    import paddle
    import paddle.nn.functional as F

    model.train()
    optimizer = paddle.optimizer.Momentum(1e-4, parameters=model.parameters())

    def step() -> None:
        with context():
            output = model(image)
        output = output[0] if isinstance(output, (list, tuple)) else output  # GoogLeNet has side outputs
        F.cross_entropy(output.astype("float32"), label).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def variables(threads: int, *, keep_memory: bool = False) -> dict[str, str]:
    """The environment variables that figures mean something with; libraries read them when they load.

    Paddle computes with one slow thread by default; MKL_DEBUG_CPU_TYPE is for AMD processors, others ignore it.
    `keep_memory`: freed memory stays with the process. Layers on their own need it, or page faults dominate.
    """
    result = {"OMP_NUM_THREADS": str(threads), "MKL_DEBUG_CPU_TYPE": "5"}
    if keep_memory:
        result |= {"MALLOC_TRIM_THRESHOLD_": _KEEP_MEMORY, "MALLOC_MMAP_THRESHOLD_": _KEEP_MEMORY}
    return result


def start_again_with(wanted: Mapping[str, str]) -> None:
    """Returns where the environment holds `wanted`; otherwise runs this program again with it and exits like that."""
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, *sys.orig_argv[1:]]
        sys.exit(subprocess.call(command, env={**os.environ, **wanted}))


def describe_machine() -> dict[str, str]:
    """What the figures depend on: processor, cores, threads, versions, date and commit."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **installed_versions(_PACKAGES),
    }


def _processor() -> str:
    """The model's name, with family and model number, since virtual machines often hide the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or "unknown"
    return f"{fields['model name']} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
