"""The rows of the table: what is measured, and the figures that it shall have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """`must` and `aim` are the highest figures wanted, or the lowest where `more_is_better`."""

    key: str
    what: str
    must: float
    aim: float
    unit: str = "x"
    more_is_better: bool = False

    def reached(self, figure: float) -> str:
        """ "aim", "must" or "no"."""
        for name, target in (("aim", self.aim), ("must", self.must)):
            if figure >= target if self.more_is_better else figure <= target:
                return name
        return "no"


@dataclass(frozen=True)
class Figure:
    """A row's result: of the best rounds and of the median ones, with what they were made of."""

    key: str
    minima: float
    medians: float
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def measured(self) -> bool:
        """False where `note` says why there is no figure."""
        return not math.isnan(self.minima)


Progress = Callable[[float], object]
"""Is told which share of a group is done, 0 to 1."""

Figures = Iterator[Figure]

CHANNELS = (64, 128, 320, 512)

_RESNET = "resnet50 of paddle.vision"
_DEFORM = "the same network on deform_conv2d"


def _layer_rows(key: str, what: str, must: tuple[float, ...], aim: tuple[float, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(f"{key}_{channels}", f"CycleFC {what}, C = {channels}, against F.linear, the slower axis", most, best)
        for channels, most, best in zip(CHANNELS, must, aim)
    )


ROWS: tuple[Row, ...] = (
    Row("forward_1_resnet50", f"B1 forward, batch 1, 224 px, against {_RESNET}", 0.72, 0.60),
    Row("forward_8_resnet50", f"B1 forward, batch 8, 224 px, against {_RESNET}", 0.70, 0.52),
    Row("forward_512_resnet50", f"B1 forward, batch 1, 512 px, against {_RESNET}", 0.55, 0.51),
    Row("forward_1_deform", f"B1 forward, batch 1, 224 px, against {_DEFORM}", 0.60, 0.50),
    Row("forward_512_deform", f"B1 forward, batch 1, 512 px, against {_DEFORM}", 0.55, 0.45),
    *_layer_rows("cyclefc_forward", "forward", (1.9, 1.35, 1.25, 1.25), (1.4, 1.2, 1.1, 1.1)),
    *_layer_rows("cyclefc_both", "forward and backward", (1.8, 1.4, 1.25, 1.2), (1.3, 1.2, 1.15, 1.1)),
    Row("step_resnet50", f"B1 training step, batch 4, 224 px, against {_RESNET}", 0.92, 0.62),
    Row("step_deform", f"B1 training step, batch 4, 224 px, against {_DEFORM}", 0.51, 0.42),
    Row("memory_deform", f"B1 training step, batch 16: peak memory against {_DEFORM}", 0.80, 0.60),
    Row("memory_recompute", f"the same with use_recompute, against {_DEFORM}", 0.45, 0.30),
    Row("growth_time", "B1 forward, 1024 px over 512 px: time", 4.2, 4.05),
    Row("growth_memory", "B1 forward, 1024 px over 512 px: peak memory", 4.2, 4.05),
    Row("predictor", "B1 exported, Paddle's predictor, against resnet50 exported, each at its best setting", 1.0, 0.75),
    Row("onnx", "B1 in ONNX Runtime, against resnet50 in ONNX Runtime", 0.65, 0.55),
    Row("pipeline", "input pipeline, images per second and core, against timm's", 1.0, 1.3, more_is_better=True),
    Row("mixup", "Mixup of a batch 64 x 3 x 224 x 224, against a plain copy of it", 3.0, 2.0),
    Row("cutmix", "CutMix of the same batch, against a plain copy of it", 3.0, 2.0),
    Row("imports", "import of cyclemlp_backbones beyond import of paddle", 0.15, 0.10, unit="s"),
)

ROW = {row.key: row for row in ROWS}

GROUPS = ("layers", "network", "memory", "exported", "pipeline", "mixup", "imports")
"""Modules of this package that measure the rows, each in a process of its own."""
