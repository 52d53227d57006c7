"""CycleFC against `F.linear` of the same shape, at the stages' sizes of a batch of 8 images of 224 px.

python -m benchmarks.layers [--rounds 9]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.group import run_group
from benchmarks.rows import CHANNELS, Figure, Figures, Progress
from cyclemlp_backbones.timing import Ratio, measure

BATCH = 8
SIDES = dict(zip(CHANNELS, (56, 28, 14, 7)))
KERNELS = {"width": (1, 3), "height": (3, 1)}


def layer_calls(channels: int, *, backward: bool) -> dict[str, Callable[[], object]]:
    """Calls of a Linear and of CycleFC along both axes; `backward` adds the gradients of input, weight and bias."""
    import paddle
    import paddle.nn.functional as F
    from paddle import nn

    from cyclemlp_backbones import CycleFC
    from cyclemlp_backbones.fast_cpu import accelerate

    side = SIDES[channels]
    x = paddle.randn([BATCH, side, side, channels])
    gradient = paddle.randn([BATCH, side, side, channels])
    x.stop_gradient = not backward
    linear = nn.Linear(channels, channels)
    layers = {"linear": lambda x: F.linear(x, linear.weight, linear.bias)}
    parameters = {"linear": list(linear.parameters())}
    for axis, kernel_size in KERNELS.items():
        layer = accelerate(CycleFC(channels, channels, kernel_size))  # as it is in a network
        layers[axis], parameters[axis] = layer, list(layer.parameters())

    def forward(name: str) -> None:
        with paddle.no_grad():
            layers[name](x)

    def both(name: str) -> None:
        layers[name](x).backward(gradient)
        for tensor in (x, *parameters[name]):
            tensor.clear_gradient(False)

    return {name: partial(both if backward else forward, name) for name in layers}


def figures(rounds: int, progress: Progress) -> Figures:
    done, total = 0, 2 * len(CHANNELS)
    for key, backward in (("cyclefc_forward", False), ("cyclefc_both", True)):
        for channels in CHANNELS:
            # A turn of a layer is short and noisy, so that each gets three times as many.
            times = measure(layer_calls(channels, backward=backward), rounds=3 * rounds, warm_up=5)
            ratios = {axis: Ratio.of(times[axis], times["linear"]) for axis in KERNELS}
            parts = {f"along the {axis}": ratio.minima for axis, ratio in ratios.items()}
            parts["F.linear, ms"] = 1e3 * times["linear"].minimum
            yield Figure(
                f"{key}_{channels}",
                max(ratio.minima for ratio in ratios.values()),
                max(ratio.medians for ratio in ratios.values()),
                parts,
            )
            done += 1
            progress(done / total)


if __name__ == "__main__":
    run_group(figures, keep_memory=True)
