"""Every stage, by name: what runs it, and about how many seconds it takes on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.scale import PRECISIONS, Scale

FORMS = ("eager", "to_static", "CINN")


@dataclass(frozen=True)
class Stage:
    """`function` of a module of this package: the scale and `arguments` in, figures and failures out.

    `precision` is what it cannot do without; trainers in float16 train in float32 where there is none.
    """

    module: str
    function: str
    arguments: tuple[str, ...]
    seconds: float
    precision: str = "fp32"

    def run(self, scale: Scale) -> tuple[dict[str, Any], list[str]]:
        module = importlib.import_module(f"benchmarks.gpu.{self.module}")
        return getattr(module, self.function)(scale, *self.arguments)


STAGES: Mapping[str, Stage] = {
    **{f"numerics {name}": Stage("numerics", "check", (name,), 60, name) for name in PRECISIONS},
    **{
        f"training {head}": Stage("training", "toolkit", (head,), 60)
        for head in ("semantic_fpn", "retinanet", "mask_rcnn")
    },
    **{
        f"training classification {name}": Stage(
            "training", "classification", (name,), 60, "bf16" if name == "bf16" else "fp32"
        )
        for name in ("fp16", "bf16")
    },
    "two processes": Stage("training", "two_processes", (), 60),
    **{
        f"speed {name} {form}": Stage("speed", "check", (name, form), 180, name)
        for form in FORMS
        for name in PRECISIONS
    },
}
