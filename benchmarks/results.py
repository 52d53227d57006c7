"""The file of a whole run: what was measured, on what machine, and how long that took; one of each processor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.documents import RESULTS, read_json, write_json
from benchmarks.rows import ROWS, Figure


def processor_name(machine: dict[str, str]) -> str:
    """`Intel Xeon (family 6, model 167)`: what a column of the tables is called."""
    return re.sub(r"\(R\)| Processor\b", "", machine["processor"])


def folder(machine: dict[str, str]) -> Path:
    """Where the runs of `machine`'s processor are kept: docs/results/intel-xeon-family-6-model-167."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", processor_name(machine).lower()).strip("-")


def stored(name: str) -> list[Path]:
    """The files of that name, one of each processor: what docs/performance.md and the READMEs show."""
    return sorted(RESULTS.glob(f"*/{name}"))


@dataclass(frozen=True)
class Results:
    """`seconds` is what each group took; `figures` are in the order of the rows."""

    machine: dict[str, str]
    rounds: int
    figures: tuple[Figure, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Keys of rows without a figure."""
        there = {figure.key for figure in self.figures if figure.measured}
        return [row.key for row in ROWS if row.key not in there]

    def __getitem__(self, key: str) -> Figure:
        return next(figure for figure in self.figures if figure.key == key)

    def write(self, path: Path) -> None:
        data = {
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": {group: round(seconds, 1) for group, seconds in self.seconds.items()},
            "figures": [_rounded(figure.as_json()) for figure in self.figures],
        }
        write_json(path, data)

    @classmethod
    def read(cls, path: Path) -> Results:
        data = read_json(path)
        figures = in_order(Figure(**figure) for figure in data["figures"])
        return cls(data["machine"], data["rounds"], figures, data["seconds"])


def in_order(figures: Iterable[Figure]) -> tuple[Figure, ...]:
    by_key = {figure.key: figure for figure in figures}
    return tuple(by_key[row.key] for row in ROWS if row.key in by_key)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
