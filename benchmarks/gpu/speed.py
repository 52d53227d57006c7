"""Images per second and memory of our networks, ResNet, and ours on `deform_conv2d`, in one precision and form.

Forward and training step (cross-entropy, momentum), all networks in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import paddle

from benchmarks.gpu.numerics import peak_megabytes
from benchmarks.gpu.scale import NotHere, Scale, autocast, reason_of
from benchmarks.oracle import deform_classifier
from cyclemlp_backbones import build_classifier, timing
from cyclemlp_backbones.timing import measure

MODES: dict[str, Callable[..., Callable[[], None]]] = {"forward": timing.forward_call, "step": timing.step_call}


def networks(scale: Scale) -> dict[str, Callable[[], Any]]:
    """What builds each network, ours first; "resnet…" and "deform" are what they are compared with."""
    ours = {variant: partial(build_classifier, variant, drop_path_rate=0.0) for variant in scale.variants}
    resnet = f"resnet{scale.resnet}"
    others = {resnet: getattr(paddle.vision.models, resnet), "deform": partial(deform_classifier, scale.variants[0])}
    return {**ours, **others}


def in_form(model: Any, form: str) -> Any:
    if form == "eager":
        return model
    return paddle.jit.to_static(model, full_graph=True, backend="CINN" if form == "CINN" else None)


def check(scale: Scale, precision: str, form: str) -> tuple[dict[str, Any], list[str]]:
    """For both modes the milliseconds, images per second and megabytes of each network; a failure is one of ours."""
    context = autocast(scale, precision)
    if form == "CINN" and not paddle.is_compiled_with_cinn():
        raise NotHere("this build of Paddle has no CINN")
    image = paddle.randn([scale.batch, 3, scale.size, scale.size])
    label = paddle.randint(0, 1000, [scale.batch])
    figures: dict[str, Any] = {}
    failures = []
    for mode, make in MODES.items():
        cells: dict[str, dict[str, Any]] = {}
        calls = {}
        for name, build in networks(scale).items():
            try:
                model = in_form(build(), form)
                given = (image,) if mode == "forward" else (image, label)
                call = calls[name] = _whole(make(model, *given, context=context))
                call()  # makes the graph
                cells[name] = {"megabytes": peak_megabytes(call)}
            except Exception as error:  # also of memory: the others go on
                calls.pop(name, None)
                cells[name] = {"failed": reason_of(error)}
                if name in scale.variants:
                    failures.append(f"{mode}, {name}: {cells[name]['failed']}")
        times = measure(calls, rounds=scale.rounds, least_seconds=0.3) if calls else {}
        for name, timing_ in times.items():
            seconds = timing_.minimum
            cells[name] |= {"ms": 1e3 * seconds, "images_per_second": scale.batch / seconds}
        figures[mode] = cells
    return figures, failures


def _whole(call: Callable[[], None]) -> Callable[[], None]:
    """Ends when the GPU has."""

    def whole() -> None:
        call()
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()

    return whole
