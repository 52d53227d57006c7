"""`cyclemlp benchmark`: times one variant on this machine against another network, in turns."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from cyclemlp_backbones.checks import check_integer
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.complexity import parse_size
from cyclemlp_backbones.timing import (
    ROUNDS,
    Ratio,
    Timing,
    describe_machine,
    forward_call,
    measure,
    start_again_with,
    step_call,
    variables,
)
from cyclemlp_backbones.variants import VARIANTS, variant_name

PRECISIONS = ("fp32", "fp16", "bf16")
_SECONDS_A_TURN = 0.3


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser("benchmark", __doc__)
    parser.add_argument("--variant", default="b1", help="a name of `cyclemlp variants`, default b1")
    parser.add_argument("--size", default="224x224", help="HEIGHTxWIDTH of the image, default 224x224")
    parser.add_argument("--batch", type=int, default=1, help="images at a time, default 1")
    parser.add_argument(
        "--compare",
        default="resnet50",
        metavar="NETWORK",
        help="a variant, or a classifier of paddle.vision.models; default resnet50",
    )
    parser.add_argument("--train", action="store_true", help="a training step instead of a forward")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: a GPU where Paddle has one")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="fp16, bf16: autocast, GPUs only")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU, default all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each network, default %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    for name in ("batch", "threads", "rounds"):
        check_integer(f"--{name}", getattr(arguments, name), 1)
    arguments.variant = variant_name(arguments.variant)
    arguments.size = parse_size(arguments.size)
    return arguments


def _choose_device(wanted: str | None, precision: str) -> str:
    import paddle

    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = wanted or ("gpu" if has_gpu else "cpu")
    if device == "gpu" and not has_gpu:
        raise ValueError(f"--device gpu; this Paddle ({paddle.__version__}) sees no GPU: use --device cpu")
    if precision != "fp32" and device == "cpu":
        raise ValueError(f"--precision {precision}; Paddle's autocast does nothing on a CPU: use fp32, or --device gpu")
    paddle.set_device(device)
    return device


def _build(name: str) -> Any:
    import paddle

    from cyclemlp_backbones import build_classifier

    if name in VARIANTS:
        return build_classifier(name)
    models = paddle.vision.models
    build = getattr(models, name, None)
    if name not in models.__all__ or not callable(build) or isinstance(build, type):
        known = ", ".join(sorted(n for n in models.__all__ if not isinstance(getattr(models, n), type)))
        raise ValueError(f"--compare {name}; it takes a variant, or a classifier of paddle.vision.models: {known}")
    return build()


def _call(model: Any, image: Any, label: Any, *, train: bool, device: str, precision: str) -> Callable[[], None]:
    """A forward without gradients, or a training step. Ends when the GPU has."""
    import paddle

    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(precision)
    context = partial(paddle.amp.auto_cast, dtype=dtype) if dtype else nullcontext
    call = step_call(model, image, label, context=context) if train else forward_call(model, image, context=context)
    if device == "cpu":
        return call

    def whole() -> None:
        call()
        paddle.device.synchronize()

    return whole


def _show_progress(started: float) -> Callable[[int, int], object]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            left = (time.monotonic() - started) * (total - done) / done
            print(f"\r{done} of {total} turns, about {left:.0f} s left ", end="", file=sys.stderr, flush=True)
            if done == total:
                print(file=sys.stderr)

    return show


def _line(name: str, timing: Timing, batch: int) -> str:
    best, middle = 1e3 * timing.minimum, 1e3 * timing.median
    return f"  {name:<16} {best:9.2f} ms (median {middle:.2f})  {1e3 * batch / best:8.1f} images/s"


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    start_again_with(variables(arguments.threads))
    device = _choose_device(arguments.device, arguments.precision)
    import paddle

    from cyclemlp_backbones import build_classifier

    height, width = arguments.size
    ours = f"cyclemlp-{arguments.variant}"
    models = {ours: build_classifier(arguments.variant), arguments.compare: _build(arguments.compare)}
    image = paddle.randn([arguments.batch, 3, height, width])
    label = paddle.randint(0, 1000, [arguments.batch])
    calls = {
        name: _call(model, image, label, train=arguments.train, device=device, precision=arguments.precision)
        for name, model in models.items()
    }
    times = measure(
        calls, rounds=arguments.rounds, least_seconds=_SECONDS_A_TURN, progress=_show_progress(time.monotonic())
    )
    ratio = Ratio.of(times[ours], times[arguments.compare])
    machine = describe_machine()
    where = paddle.device.cuda.get_device_name() if device == "gpu" else machine["processor"]
    what = "training step" if arguments.train else "forward"
    print(f"{what}, batch {arguments.batch}, {height} x {width}, {arguments.precision}, Paddle {paddle.__version__}")
    print(f"{device}: {where}{'' if device == 'gpu' else f', {arguments.threads} threads'}")
    for name, timing in times.items():
        print(_line(name, timing, arguments.batch))
    print(f"  {ours} takes {ratio.minima:.3f} of {arguments.compare}'s time (medians {ratio.medians:.3f})")
    if arguments.json:
        data = {
            "machine": {**machine, "device": where},
            "what": what,
            "batch": arguments.batch,
            "size": [height, width],
            "precision": arguments.precision,
            "seconds": {name: timing.seconds for name, timing in times.items()},
            "ratio": {"minima": ratio.minima, "medians": ratio.medians},
        }
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0
