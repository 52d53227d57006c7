"""What docs/performance.md shows of the stored checks: one part a device, or that there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.documents import RESULTS, ROOT, Part, describe, read_json
from benchmarks.gpu.scale import PRECISIONS
from benchmarks.gpu.stages import FORMS

STORED = RESULTS / "gpu"
DOCUMENT = ROOT / "docs" / "performance.md"
PART = Part("gpu", "make gpu-check")
NOT_MEASURED = "not measured: no GPU was at hand. `make gpu-check` on one writes this part."


def stored() -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(STORED.glob("*.json"))]


def render(checks: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(map(_device, checks)) or NOT_MEASURED


def _device(check: Mapping[str, Any]) -> str:
    machine, stages = check["machine"], check["stages"]
    title = machine.get("device", f"{machine['processor']}: no GPU, nothing of this is a figure")
    packages = ("paddlepaddle-gpu", "paddlepaddle", "cuda", "cudnn")
    lines = [f"### {title}", "", f"{describe(machine, packages)}.", "", "| stage | | what it found |", "|---|---|---|"]
    lines += [f"| {name} | {stage['status']} | {_found(stage)} |" for name, stage in stages.items()]
    for mode in ("forward", "step"):
        lines += _speed(mode, check)
    return "\n".join(lines)


def _found(stage: Mapping[str, Any]) -> str:
    """A stage's figures but for times, which have tables of their own; and the reasons, where it did not pass."""
    figures, parts = stage["figures"], list(stage["reasons"])
    if errors := figures.get("errors"):
        worst = max((name for name in errors if "norm" not in name), key=errors.__getitem__)
        norm = max(error for name, error in errors.items() if "norm" in name)
        parts.append(f"{worst}: {errors[worst]:.1e} of {figures['bound']:g}; norms of gradients: {norm:.1e}")
        parts[-1] += f" of {figures['norm_bound']:g}"
    if megabytes := figures.get("megabytes"):
        parts.append(", ".join(f"{name} {value:.0f} MB" for name, value in megabytes.items()))
    if "first" in figures:
        scale = "no loss scale" if figures["scale"] is None else f"loss scale {figures['scale']:g}"
        scale = scale if figures["mixed"] else "in float32: a CPU has no mixed precision"
        parts.append(f"loss {figures['first']:g} -> {figures['last']:g} in {figures['steps']} steps, {scale}")
    if "backend" in figures:
        parts.append(f"{figures['backend']}: {figures['error']:.1e}")
    return "; ".join(part.replace("|", "/") for part in parts)


def _speed(mode: str, check: Mapping[str, Any]) -> list[str]:
    """Images per second, and megabytes at the peak, of every network in every precision and form."""
    scale, columns = check["scale"], {}
    for form in FORMS:
        for precision in PRECISIONS:
            stage = check["stages"].get(f"speed {precision} {form}", {})
            if cells := stage.get("figures", {}).get(mode):
                columns[f"{precision}, {form}"] = cells
    if not columns:
        return []
    what = f"{mode}, batch {scale['batch']}, {scale['size']} px: images/s (MB)"
    lines = ["", f"| {what} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in next(iter(columns.values())):
        shown = f"{scale['variants'][0]} on deform_conv2d" if name == "deform" else name
        lines.append(f"| {shown} | {' | '.join(_cell(cells[name]) for cells in columns.values())} |")
    ours = scale["variants"][0]
    for name in (f"resnet{scale['resnet']}", "deform"):
        ratios = [_ratio(cells[ours], cells[name]) for cells in columns.values()]
        shown = f"{ours} on deform_conv2d" if name == "deform" else name
        lines.append(f"| time of {ours} to that of {shown} | {' | '.join(ratios)} |")
    return lines


def _ratio(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return "" if "failed" in ours or "failed" in other else f"{ours['ms'] / other['ms']:.2f}"


def _cell(cell: Mapping[str, Any]) -> str:
    if "failed" in cell:
        return "fails"
    memory = "" if cell["megabytes"] is None else f" ({cell['megabytes']:.0f})"
    return f"{cell['images_per_second']:.0f}{memory}"
