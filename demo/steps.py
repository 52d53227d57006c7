"""What the demos share: timed steps, our commands with their output in a log, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def run_command(arguments: Sequence[str], log: Path, *, show: str, cwd: Path = ROOT) -> str:
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
            cwd=cwd,
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


def versions(toolkit: str) -> dict[str, str]:
    """Of Python, Paddle, the toolkit's distribution, and what the data comes from."""
    from importlib.metadata import version

    names = ("paddlepaddle", toolkit, "numpy", "scikit-learn", "pillow", "cyclemlp-backbones")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
