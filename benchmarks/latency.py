"""Latency of classifiers on this machine, for the picture of latency over accuracy.

    python -m benchmarks.latency [--rounds 9] [--store]

Forward in dygraph, fp32, batch 1, 224 px. The accuracies are the papers': nothing was trained here. Swin-T is
PaddleSeg's, a backbone without a classifier's head, which costs next to nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.documents import write_json
from benchmarks.group import THREADS, show_progress
from benchmarks.results import folder
from cyclemlp_backbones.timing import ROUNDS, describe_machine, measure, start_again_with, variables

SIZE = 224
VARIANTS = ("b1", "b2", "b3", "b4", "b5")
OURS, DEFORM, RESNET, SWIN = (
    "CycleMLP, this library",
    "CycleMLP on deform_conv2d",
    "ResNet, paddle.vision",
    "Swin-T, PaddleSeg",
)
PAPERS = {
    OURS: "Chen et al., 2022",
    DEFORM: "Chen et al., 2022",
    RESNET: "He et al., 2016, ten crops",
    SWIN: "Liu et al., 2021",
}


def _cyclemlp(variant: str, deform: bool) -> Any:
    from benchmarks.oracle import deform_classifier
    from cyclemlp_backbones import build_classifier

    return deform_classifier(variant) if deform else build_classifier(variant)


def _resnet(depth: int) -> Any:
    import paddle

    return getattr(paddle.vision.models, f"resnet{depth}")()


def _swin() -> Any:
    from paddleseg.models.backbones import SwinTransformer_tiny_patch4_window7_224

    return SwinTransformer_tiny_patch4_window7_224()


Network = tuple[str, str, float, Callable[[], Any]]


def networks() -> list[Network]:
    """Series, name, the paper's top-1 in percent, and what builds it."""
    from cyclemlp_backbones.variants import VARIANTS as SIZES

    found: list[Network] = []
    for series in (OURS, DEFORM):
        for variant in VARIANTS:
            top1 = SIZES[variant].paper_top1
            assert top1 is not None  # b0 has none
            found.append((series, variant.upper(), top1, partial(_cyclemlp, variant, series is DEFORM)))
    for depth, top1 in ((50, 77.15), (101, 78.25)):
        found.append((RESNET, f"ResNet-{depth}", top1, partial(_resnet, depth)))
    return [*found, (SWIN, "Swin-T", 81.3, _swin)]


def latencies(rounds: int) -> list[dict[str, Any]]:
    import paddle

    image = paddle.randn([1, 3, SIZE, SIZE])
    calls = {}
    for series, name, _, build in networks():
        model = build()
        model.eval()
        calls[f"{series}: {name}"] = partial(model, image)
    progress = show_progress(time.monotonic())
    with paddle.no_grad():
        times = measure(calls, rounds=rounds, progress=lambda done, total: progress(done / total))
    return [
        {
            "series": series,
            "name": name,
            "top1": top1,
            "paper": PAPERS[series],
            "ms": round(1e3 * times[f"{series}: {name}"].minimum, 2),
            "median_ms": round(1e3 * times[f"{series}: {name}"].median, 2),
        }
        for series, name, top1, _ in networks()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each network (%(default)s)")
    parser.add_argument("--store", action="store_true", help="into docs/results, as those of this processor")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS))
    points = latencies(arguments.rounds)
    for point in points:
        print(f"{point['series']:<28} {point['name']:<11} top-1 {point['top1']:.1f} %  {point['ms']:.1f} ms")
    if arguments.store:
        machine = describe_machine()
        data = {"machine": machine, "rounds": arguments.rounds, "points": points}
        write_json(folder(machine) / "latency.json", data)


if __name__ == "__main__":
    main()
