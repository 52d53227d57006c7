"""Peak memory: how much one call adds to the resident memory of a process of its own.

    python -m benchmarks.memory [--rounds 3]
    python -m benchmarks.memory --estimate b1:224:8    # a training step beside `cyclemlp info b1 --memory --batch 8`

The peak is Linux's VmHWM, set back before the call; what was resident then is subtracted. The C library gives blocks of
64 KiB and more back as soon as they are freed: otherwise the figures are as much of its fragments as of the network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.group import run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones.files import isolated_python

BATCH = 16
MOST_ROUNDS = 3
"""Memory varies little from process to process."""

CASES = ("step b1", "step b1 recompute", "step deform", "forward 512", "forward 1024")


def status_kilobytes(status: str, name: str) -> int:
    """A figure of /proc/self/status: `VmRSS`, what is resident, or `VmHWM`, the most that was."""
    for line in status.splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0])
    raise ValueError(f"/proc/self/status has no {name}; these figures are for Linux")


def growth(call: Callable[[], object]) -> int:
    """Kilobytes that `call` adds at its peak."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = status_kilobytes(status.read_text(), "VmRSS")
    call()
    return status_kilobytes(status.read_text(), "VmHWM") - before


def training_step(variant: str, size: int, batch: int) -> Callable[[], object]:
    """A step of the plain form, which `complexity.memory` is about, after one of a small image."""
    import paddle

    from cyclemlp_backbones import build_classifier, fast_cpu

    fast_cpu.accelerate = lambda layer: layer
    model = build_classifier(variant)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())

    def step(side: int) -> None:
        labels = paddle.zeros([batch], dtype="int64")
        paddle.nn.functional.cross_entropy(model(paddle.randn([batch, 3, side, side])), labels).backward()
        optimizer.step()
        optimizer.clear_grad()

    step(32)
    return lambda: step(size)


def beside_estimate(case: str) -> str:
    """What a step adds to a process, and the estimate of it: gradients and activations."""
    from cyclemlp_backbones.complexity import memory
    from cyclemlp_backbones.variants import VARIANTS

    variant, size, batch = case.split(":")
    estimate = memory(VARIANTS[variant], int(size), int(size), int(batch))
    code = f"from benchmarks import memory as m; print(m.growth(m.training_step({variant!r}, {size}, {batch})))"
    expected = (estimate["activations"] + estimate["state"] / 4) / 2**20
    return f"{variant}, {size} px, batch of {batch}: {_megabytes(code):.0f} MB, estimated {expected:.0f}"


def prepare(case: str) -> Callable[[], object]:
    from benchmarks.network import build, forward_call, step_call
    from cyclemlp_backbones import build_classifier

    kind, _, what = case.partition(" ")
    if kind == "forward":
        return forward_call("b1", 1, int(what))
    if what == "b1 recompute":
        return step_call(build_classifier("b1", drop_path_rate=0.0, use_recompute=True), BATCH)
    return step_call(build(what), BATCH)


def megabytes_of(case: str) -> float:
    """Megabytes of a case, from a process of its own."""
    return _megabytes(f"from benchmarks import memory; print(memory.growth(memory.prepare({case!r})))")


def _megabytes(code: str) -> float:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(
        isolated_python(code), env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return int(output.split()[-1]) / 1024


def figures(rounds: int, progress: Progress) -> Figures:
    rounds = min(rounds, MOST_ROUNDS)
    grown: dict[str, list[float]] = {case: [] for case in CASES}
    for this_round in range(rounds):
        for position, case in enumerate(CASES):
            grown[case].append(megabytes_of(case))
            progress((this_round * len(CASES) + position + 1) / (rounds * len(CASES)))
    middle = {case: sorted(values)[len(values) // 2] for case, values in grown.items()}

    def figure(key: str, ours: str, other: str) -> Figure:
        parts = {f"{case}, MB": min(grown[case]) for case in (ours, other)}
        return Figure(key, min(grown[ours]) / min(grown[other]), middle[ours] / middle[other], parts)

    yield figure("memory_deform", "step b1", "step deform")
    yield figure("memory_recompute", "step b1 recompute", "step deform")
    yield figure("growth_memory", "forward 1024", "forward 512")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--estimate"]:
        for case in sys.argv[2:]:
            print(beside_estimate(case))
    else:
        run_group(figures)
