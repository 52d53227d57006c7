"""B1 against ResNet-50 and against itself on `deform_conv2d`: forward, training step, growth with the image.

    python -m benchmarks.network [--rounds 9]

All in dygraph, fp32. A training step is forward, cross-entropy, backward and an update with momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.group import run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones import timing
from cyclemlp_backbones.timing import Ratio, Timing, measure

SECONDS_A_TURN = 0.3


def build(name: str) -> Any:
    """ "b1", "deform" or "resnet50", all with 1000 classes; the first two have the same weights."""
    import paddle

    from benchmarks.oracle import deform_classifier
    from cyclemlp_backbones import build_classifier

    if name == "resnet50":
        return paddle.vision.models.resnet50()
    paddle.seed(0)
    return deform_classifier("b1") if name == "deform" else build_classifier("b1", drop_path_rate=0.0)


def forward_call(name: str, batch: int, size: int) -> Callable[[], None]:
    import paddle

    return timing.forward_call(build(name), paddle.randn([batch, 3, size, size]))


def step_call(model: Any, batch: int, size: int = 224) -> Callable[[], None]:
    """A training step of a classifier of 1000 classes, with the network's own stochastic parts."""
    import paddle

    return timing.step_call(model, paddle.randn([batch, 3, size, size]), paddle.randint(0, 1000, [batch]))


def _figure(key: str, times: dict[str, Timing], ours: str, other: str) -> Figure:
    ratio = Ratio.of(times[ours], times[other])
    parts = {f"{name}, ms": 1e3 * times[name].minimum for name in (ours, other)}
    return Figure(key, ratio.minima, ratio.medians, parts)


def figures(rounds: int, progress: Progress) -> Figures:
    def steps_from(start: float, end: float) -> Callable[[int, int], object]:
        return lambda done, total: progress(start + (end - start) * done / total)

    run = partial(measure, rounds=rounds, least_seconds=SECONDS_A_TURN)
    times = run(
        {name: forward_call(name, 1, 224) for name in ("b1", "resnet50", "deform")}, progress=steps_from(0, 0.15)
    )
    yield _figure("forward_1_resnet50", times, "b1", "resnet50")
    yield _figure("forward_1_deform", times, "b1", "deform")
    times = run({name: forward_call(name, 8, 224) for name in ("b1", "resnet50")}, progress=steps_from(0.15, 0.25))
    yield _figure("forward_8_resnet50", times, "b1", "resnet50")
    calls = {name: forward_call(name, 1, 512) for name in ("b1", "resnet50", "deform")}
    times = run(calls | {"b1 at 1024 px": forward_call("b1", 1, 1024)}, progress=steps_from(0.25, 0.55))
    yield _figure("forward_512_resnet50", times, "b1", "resnet50")
    yield _figure("forward_512_deform", times, "b1", "deform")
    yield _figure("growth_time", times, "b1 at 1024 px", "b1")
    calls = {name: step_call(build(name), 4) for name in ("b1", "resnet50", "deform")}
    times = run(calls, progress=steps_from(0.55, 1))
    yield _figure("step_resnet50", times, "b1", "resnet50")
    yield _figure("step_deform", times, "b1", "deform")


if __name__ == "__main__":
    run_group(figures)
