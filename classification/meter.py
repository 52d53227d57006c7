"""Averages of a stretch of steps, with speed, share of waiting for data, and time to the end."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Meter:
    """Gathers steps until `summary`, which starts anew."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._since = time.perf_counter()
        self._values: dict[str, list[float]] = {}
        self._steps, self._images, self._waited = 0, 0, 0.0

    def add(self, values: Mapping[str, float], *, images: int, waited: float) -> None:
        """One step: its losses, images (of all processes) and seconds that it waited for data. A value that a step does
        not have, as one that was skipped, does not count in its average."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
        self._steps, self._images, self._waited = self._steps + 1, self._images + images, self._waited + waited

    def pause(self, seconds: float) -> None:
        """Leaves out time that was no training, as an evaluation."""
        self._since += seconds

    def summary(self, *, steps_left: int) -> dict[str, float]:
        seconds = max(1e-9, time.perf_counter() - self._since)
        steps = max(1, self._steps)
        values = {name: sum(seen) / len(seen) for name, seen in self._values.items()}
        values["images_per_second"] = round(self._images / seconds, 2)
        values["data_wait_share"] = round(min(1.0, self._waited / seconds), 4)
        values["eta_seconds"] = round(seconds / steps * steps_left, 1)
        self._start()
        return values


def as_time(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
