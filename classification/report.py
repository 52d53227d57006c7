"""What a run tells: configuration, environment, log, progress, curves."""

from __future__ import annotations

import csv
import datetime
import gc
import importlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle

from cyclemlp_backbones.files import commit, installed_versions, write_atomically

from .config import Config, RunConfig
from .config_files import dump_yaml
from .distributed import World

logger = logging.getLogger(__name__)

_DISTRIBUTIONS = (
    "cyclemlp-backbones", "paddlepaddle", "paddlepaddle-gpu", "numpy", "pillow", "paddleclas", "visualdl", "wandb"
)  # fmt: skip
_WRITERS = {
    "visualdl": ("visualdl", "LogWriter"),
    "tensorboard": ("tensorboardX", "SummaryWriter"),
    "wandb": ("wandb", "init"),
}


class RunLog:
    """`log.jsonl`, one JSON object a line with its `event`, and the same numbers in VisualDL, TensorBoard and Weights
    & Biases where `run` asks for them. Processes other than the first write nothing."""

    def __init__(self, folder: Path, *, enabled: bool, run: RunConfig = RunConfig()):  # noqa: B008  it is frozen
        self.path = folder / "log.jsonl"
        self.enabled = enabled
        if enabled and self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")  # a line that a kill cut short ends, so that the next one stands by itself
        self._add: list[Callable[[str, float, int], object]] = []
        for key, (package, kind) in _WRITERS.items():
            if enabled and getattr(run, key):
                try:
                    start = getattr(importlib.import_module(package), kind)
                except ImportError as error:
                    raise ImportError(f"run.{key} is true: pip install {package}, or set it to false") from error
                if key == "wandb":  # a resumed run is another one of the same group
                    self._wandb = start(dir=str(folder), group=folder.name)
                    self._add.append(lambda name, value, step: self._wandb.log({name: value}, step=step))
                else:
                    self._add.append(start(logdir=str(folder / key)).add_scalar)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        for name, value in values.items() if "step" in values else ():
            for add in self._add:
                if isinstance(value, (int, float)) and name != "step":
                    add(f"{event}/{name}", value, int(values["step"]))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def write_description(folder: Path, config: Config, world: World, argv: Sequence[str]) -> None:
    """`config.yml`, all of it, and `environment.json`."""
    (folder / "config.yml").write_text(dump_yaml(config), encoding="utf-8")
    write_json(folder / "environment.json", environment(argv, world))


def environment(argv: Sequence[str], world: World) -> dict[str, Any]:
    """The command, and what ran it where and when."""
    return {
        "command": list(argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": paddle.get_device(),
        "processes": world.size,
        "commit": commit(),
        "versions": installed_versions(_DISTRIBUTIONS),
    }


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Meter:
    """Averages of some steps, with speed, share of waiting for data, and time to the end; `summary` starts anew."""

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
    return str(datetime.timedelta(seconds=round(seconds)))


def write_progress(log: Path) -> None:
    """Beside a log, `summary.csv`, a line for each evaluation with the training loss before it, and `curves.png`."""
    # The last line of a step counts: a resumed run writes some steps again.
    rows = {(row["event"], row["step"]): row for row in read_log(log) if "step" in row}
    lines: list[dict[str, Any]] = []
    trained: dict[str, Any] = {}
    for (event, _), row in sorted(rows.items(), key=lambda item: item[0][1]):  # training comes first within a step
        if event == "train":
            trained = {f"train_{name}": row[name] for name in ("loss", "lr") if name in row}
        elif event == "evaluation":
            lines.append({**row, **trained})
    if lines:
        with (log.parent / "summary.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [name for name in lines[-1] if name != "event"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)
    try:
        from matplotlib.figure import Figure  # without pyplot, which keeps what it draws
    except ImportError:
        logger.info("no curves: pip install matplotlib")
        return
    figure = Figure(figsize=(15, 4))
    panels = figure.subplots(1, 3)
    for axes, title, event, names in zip(
        panels,
        ("training loss", "held-out accuracy, %", "learning rate"),
        ("train", "evaluation", "train"),
        (("loss", "task", "distillation"), ("top1", "ema_top1"), ("lr",)),
    ):
        for name in names:
            points = [(step, row[name]) for (kind, step), row in sorted(rows.items()) if kind == event and name in row]
            if points:
                axes.plot(*zip(*points), marker="." if event == "evaluation" else None, label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend()
    figure.tight_layout()
    figure.savefig(log.with_name("curves.png"), dpi=80)
    del figure, panels, axes
    gc.collect()  # half a megabyte of cycles, which Python would leave for long


def configure_logging(world_rank: int = 0) -> None:
    """Messages of the first process on stderr; of the others, warnings only."""
    level = logging.INFO if world_rank == 0 else logging.WARNING
    form = "%(asctime)s %(message)s" if world_rank == 0 else f"%(asctime)s [process {world_rank}] %(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    logging.getLogger("cyclemlp_backbones").setLevel(level)  # which `cyclemlp` has set to INFO
