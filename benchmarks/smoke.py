"""Whether the network has become slower than the stored run says: B1 against resnet50, CycleFC against F.linear.

    python -m benchmarks.smoke

A ratio may exceed the stored one by 25 % at most, in one of three tries; each try measures in turns, in a few rounds.
Exit code 1 where a ratio exceeds that in all of them. Ratios differ between processors: without a stored run of this
one it says so, and compares nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.group import THREADS
from benchmarks.results import Results, folder
from benchmarks.rows import CHANNELS, ROW
from cyclemlp_backbones.timing import Ratio, describe_machine, measure, start_again_with, variables

MOST = 1.25
TRIES = 3
ROUNDS = 5


def network_ratio() -> float:
    from benchmarks.network import forward_call

    times = measure({name: forward_call(name, 1, 224) for name in ("b1", "resnet50")}, rounds=ROUNDS)
    return Ratio.of(times["b1"], times["resnet50"]).minima


def layer_ratio(channels: int) -> float:
    from benchmarks.layers import KERNELS, layer_calls

    times = measure(layer_calls(channels, backward=False), rounds=3 * ROUNDS, warm_up=5)
    return max(Ratio.of(times[axis], times["linear"]).minima for axis in KERNELS)


CHECKS: dict[str, Callable[[], float]] = {
    "forward_1_resnet50": network_ratio,
    **{f"cyclefc_forward_{channels}": partial(layer_ratio, channels) for channels in CHANNELS},
}


def too_slow(stored: Results, checks: Mapping[str, Callable[[], float]]) -> list[str]:
    """Keys of the rows whose ratio exceeds the stored one by more than 25 % in every try; prints all of them."""
    slow = []
    for key, check in checks.items():
        most = MOST * stored[key].minima
        ratios: list[float] = []
        while len(ratios) < TRIES and (not ratios or ratios[-1] > most):
            ratios.append(check())
        tries = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        verdict = "ok" if ratios[-1] <= most else "TOO SLOW"
        print(f"{ROW[key].what}: {tries}; stored {stored[key].minima:.3f}, at most {most:.3f}: {verdict}", flush=True)
        if verdict != "ok":
            slow.append(key)
    return slow


def main() -> int:
    start_again_with(variables(THREADS, keep_memory=True))
    machine = describe_machine()
    path = folder(machine) / "bench.json"
    if not path.exists():
        print(f"no figures of this processor, {machine['processor']}, to compare with; `make bench` stores them")
        return 0
    slow = too_slow(Results.read(path), CHECKS)
    if slow:
        print(f"slower than {path} says: {', '.join(slow)}; `make bench` measures all rows anew", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
