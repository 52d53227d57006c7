"""Mixup and CutMix of a batch, against a plain copy of it: the pretraining program's own functions.

    python -m benchmarks.mixup [--rounds 9]

Drawn for each pair of images, so that many boxes and weights are averaged.
"""

from __future__ import annotations

from benchmarks.group import run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones.timing import Ratio, measure

SHAPE = (64, 3, 224, 224)


def figures(rounds: int, progress: Progress) -> Figures:
    import numpy as np
    import paddle

    from classification.config import MixConfig
    from classification.mixup import draw_mix, mix_images

    images = paddle.randn(SHAPE)
    batch, _, height, width = SHAPE
    mixes = {}
    for name, config in (("mixup", MixConfig(cutmix=0.0, mode="pair")), ("cutmix", MixConfig(mixup=0.0, mode="pair"))):
        mix = draw_mix(batch, height, width, config, np.random.default_rng(0))
        assert mix is not None  # None is for a configuration that mixes nothing
        mixes[name] = mix
    times = measure(
        {
            "copy": images.clone,
            "mixup": lambda: mix_images(images, mixes["mixup"]),
            "cutmix": lambda: mix_images(images, mixes["cutmix"]),
        },
        rounds=rounds,
        progress=lambda done, total: progress(done / total),
    )
    for name in ("mixup", "cutmix"):
        ratio = Ratio.of(times[name], times["copy"])
        parts = {f"{part}, ms": 1e3 * times[part].minimum for part in (name, "copy")}
        yield Figure(name, ratio.minima, ratio.medians, parts)


if __name__ == "__main__":
    run_group(figures, keep_memory=True)
