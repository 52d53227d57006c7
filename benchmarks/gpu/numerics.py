"""Golden values of the reference implementation, gradients, and recompute, in one precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from benchmarks.gpu.scale import PRECISIONS, Scale, autocast
from cyclemlp_backbones import CycleFC, build_backbone, build_classifier
from tests.reference import (
    GOLDEN,
    fill_parameters,
    picked_positions,
    random_state,
    reference_input,
    reference_parameter,
    relative_error,
)

_LOSS_SCALE = 1024.0  # keeps float16 gradients from vanishing
FEATURES = {"features": (2, 3, 96, 160), "features_odd": (1, 3, 97, 131)}


def check(scale: Scale, name: str) -> tuple[dict[str, Any], list[str]]:
    """Errors of every check, relative as `Precision` says, and those that exceed their bound."""
    precision, context = PRECISIONS[name], autocast(scale, name)
    errors = {"layer": layer_error(context)}
    for variant in scale.golden:
        errors |= golden_errors(variant, context)
    if precision.dtype:
        cast = paddle.amp.decorate
        errors |= golden_errors(
            "b1", autocast(scale, name, "O2"), lambda model: cast(model, level="O2", dtype=precision.dtype), ", O2"
        )
    gradients, kept = gradient_errors(context, use_recompute=False)
    again, kept_again = gradient_errors(context, use_recompute=True)
    errors |= gradients | {f"{key}, recompute": error for key, error in again.items()}
    failures = []
    for key, error in errors.items():
        bound = precision.norm_bound if "norm" in key else precision.bound
        if not error <= bound:  # NaN too
            failures.append(f"{key}: error {error:.2e}, at most {bound:g}")
    figures: dict[str, Any] = {"bound": precision.bound, "norm_bound": precision.norm_bound, "errors": errors}
    if kept is not None and kept_again is not None:
        figures["megabytes"] = {"gradients": kept, "gradients, recompute": kept_again}
        if kept_again >= kept:
            failures.append(f"recompute: {kept_again:.0f} MB at the peak, {kept:.0f} without it")
    return figures, failures


def layer_error(context: Callable[[], Any]) -> float:
    """The worst of CycleFC's values and gradients over all golden shapes."""
    golden = np.load(GOLDEN / "cyclefc.npz")
    worst = 0.0
    for key in sorted({name.rpartition("/")[0] for name in golden}):
        kernel, sizes = key.split("_")[0][1:], key.split("_")[1].split("x")
        (kh, kw), (batch, channels, out, height, width) = map(int, kernel.split("x")), map(int, sizes)
        layer = CycleFC(channels, out, (kh, kw))
        parameters = dict(layer.named_parameters())
        for name, parameter in parameters.items():
            parameter.set_value(reference_parameter(f"{key}.{name}", parameter.shape))
        shapes = f"{key}/input/{batch}x{channels}x{height}x{width}", f"{key}g/input/{batch}x{out}x{height}x{width}"
        x, gradient = (_values(f"public{shape}", shape) for shape in shapes)
        x.stop_gradient = False
        with context():
            y = layer(x.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])  # (N, C, H, W) -> (N, H, W, C), and back
        (y.astype("float32") * gradient).sum().backward()
        gradients = {f"d{name[0]}": parameter.grad for name, parameter in parameters.items()}
        found = {"y": y.astype("float32"), "dx": x.grad, **gradients}
        worst = max(worst, *(relative_error(value.numpy(), golden[f"{key}/{part}"]) for part, value in found.items()))
    return worst


def _values(key: str, shape: str) -> Any:
    sizes = [int(size) for size in shape.rpartition("/")[2].split("x")]
    return paddle.to_tensor(random_state(key).standard_normal(sizes).astype(np.float32))


def golden_errors(
    variant: str, context: Callable[[], Any], cast: Callable[[Any], Any] = lambda model: model, note: str = ""
) -> dict[str, float]:
    """Errors of a variant's logits, and the worst of its pyramid's levels for each golden size of image."""
    errors = {}
    with paddle.no_grad():
        model = _filled(build_classifier(variant), cast)
        with context():
            logits = model(paddle.to_tensor(reference_input((2, 3, 224, 224))))
        golden = np.load(GOLDEN / f"{variant.upper()}.logits.npz")["logits"]
        errors[f"logits {variant}{note}"] = relative_error(logits.astype("float32").numpy(), golden)
        model = _filled(build_backbone(variant), cast)
        for file, shape in FEATURES.items():
            path = GOLDEN / f"{variant.upper()}.{file}.npz"
            if not path.exists():
                continue
            with context():
                maps = model(paddle.to_tensor(reference_input(shape)))
            picked = [y.astype("float32").numpy().ravel()[picked_positions(y.size)] for y in maps]
            golden = np.load(path)
            pairs = ((y, golden[f"picked{index}"]) for index, y in enumerate(picked))
            errors[f"{file} {variant}{note}"] = max(relative_error(*pair) for pair in pairs)
    return errors


def _filled(model: Any, cast: Callable[[Any], Any]) -> Any:
    fill_parameters(model)
    model.eval()
    return cast(model)


def gradient_errors(context: Callable[[], Any], *, use_recompute: bool) -> tuple[dict[str, float], float | None]:
    """Errors of B1's gradients, and `peak_megabytes` of computing them."""
    golden = np.load(GOLDEN / "B1.grads.npz")
    model = build_backbone("b1", drop_path_rate=0.0, use_recompute=use_recompute)
    fill_parameters(model)
    image = paddle.to_tensor(reference_input((1, 3, 64, 96)), stop_gradient=False)

    def backward() -> None:
        with context():
            maps = model(image)
        loss = paddle.zeros([])
        for index, y in enumerate(maps):
            cotangent = random_state(f"public/cotangent{index}").standard_normal(y.shape).astype(np.float32)
            loss = loss + (y.astype("float32") * paddle.to_tensor(cotangent)).sum() / y.size**0.5
        (loss * _LOSS_SCALE).backward()

    megabytes = peak_megabytes(backward)
    gradient = image.grad.numpy().ravel()[picked_positions(image.size)] / _LOSS_SCALE
    norms = {key: float(np.linalg.norm(p.grad.astype("float32").numpy())) for key, p in model.named_parameters()}
    pairs = ((norms[str(key)] / _LOSS_SCALE, norm) for key, norm in zip(golden["names"], golden["norms"]))
    worst = max(abs(found - norm) / norm for found, norm in pairs)
    return {"gradient of the image": relative_error(gradient, golden["dx"]), "norms of gradients": worst}, megabytes


def peak_megabytes(call: Callable[[], object]) -> float | None:
    """What `call` adds to the GPU's memory at its peak; None on a CPU, and with Paddle 2.6, which cannot tell."""
    memory = paddle.device.cuda
    if paddle.get_device() == "cpu" or not hasattr(memory, "reset_max_memory_allocated"):
        call()
        return None
    memory.synchronize()
    memory.reset_max_memory_allocated()
    before = memory.memory_allocated()
    call()
    memory.synchronize()
    return (memory.max_memory_allocated() - before) / 2**20
