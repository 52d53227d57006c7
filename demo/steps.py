"""What the demos share: timed steps, the scenes, the toolkits' options for them, our commands with their output in a
log, the results and the end. Imported before Paddle, whose matrix library reads the environment once."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cyclemlp_backbones.digits import DemoSettings, is_complete, write_demo_data
from cyclemlp_backbones.files import installed_versions

# One thread and a slow path on AMD processors are the defaults.
os.environ.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")

ROOT = Path(__file__).resolve().parent.parent


class DemoFailure(Exception):
    """The run went wrong, or what was learnt is no better than nothing."""


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        print(f"\n== {name}: {what}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def run_command(arguments: Sequence[str], log: Path, *, show: str) -> str:
    """Runs `cyclemlp arguments`; its output goes to the end of `log` and is returned; lines matching `show` are shown.

    Raises DemoFailure with the end of the output if the command fails.
    """
    command = [sys.executable, "-m", "cyclemlp_backbones", *arguments]
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    print("$ " + shlex.join(["cyclemlp", *arguments]), flush=True)
    lines = []
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": search_path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        file.write("$ " + shlex.join(command) + "\n")
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            lines.append(line)
            if re.search(show, line):
                print("  " + line.rstrip().split("\t")[-1], flush=True)
    if process.returncode:
        called = " ".join(arguments[:2])
        raise DemoFailure(
            f"`cyclemlp {called}` ended with status {process.returncode}; see {log}\n{''.join(lines[-15:])}"
        )
    return "".join(lines)


def write_scenes(folder: Path, settings: DemoSettings) -> None:
    """The demo's data, unless `folder` holds exactly that already."""
    if is_complete(folder, settings):
        print("  already there")
        return
    progress = partial(tqdm, total=settings.train + settings.val, unit=" scenes", mininterval=2)
    write_demo_data(folder, settings, force=True, progress=progress)


def seg_data(folder: Path) -> list[str]:
    """PaddleSeg's options for the scenes in `folder`."""
    return [
        f"{split}_dataset.{key}={value}"
        for split in ("train", "val")
        for key, value in (("dataset_root", folder), (f"{split}_path", folder / f"{split}.txt"))
    ]


def det_data(folder: Path) -> list[str]:
    """PaddleDetection's options for the scenes in `folder`."""
    return [f"{name}Dataset.dataset_dir={folder}" for name in ("Train", "Eval", "Test")]


def det_schedule(epochs: int, warm_up: int) -> list[str]:
    """PaddleDetection's options for so many epochs, with so many steps to the full learning rate."""
    decay = [
        {"name": "CosineDecay", "max_epochs": epochs},
        {"name": "LinearWarmup", "start_factor": 0.1, "steps": warm_up},
    ]
    return [f"epoch={epochs}", f"LearningRate.schedulers={json.dumps(decay)}"]


def versions(*toolkits: str) -> dict[str, str]:
    """Of Python, Paddle, the toolkits' distributions, and what the data comes from."""
    names = ("paddlepaddle", *toolkits, "numpy", "scikit-learn", "pillow", "cyclemlp-backbones")
    return {"python": platform.python_version(), **installed_versions(names)}


def write_result(out: Path, result: Mapping[str, Any], clock: Clock, toolkit: str) -> None:
    """result.json: what was reached, in how many seconds, with what."""
    seconds = {**clock.seconds, "total": round(clock.total, 1)}
    write_json(out / "result.json", {**result, "seconds": seconds, "versions": versions(toolkit)})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def parser(description: str, out: str | None, help_text: str = "folder of the results (%(default)s)") -> Any:
    """The command line that all have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=out and Path(out), help=help_text)
    parser.add_argument("--smoke", action="store_true", help="all steps, much shortened")
    return parser


def run_demo(run: Callable[[], object]) -> int:
    """The exit status: 1 for what went wrong, which is named."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run()
    except (DemoFailure, OSError, ValueError, ImportError) as error:
        print(f"\ndemo: error: {error}", file=sys.stderr)
        return 1
    return 0
