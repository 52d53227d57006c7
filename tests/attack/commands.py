"""`cyclemlp …` in processes that can be killed: forked from a server that has imported Paddle, to begin at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.classification.test_reliability import descendants, left_behind
from tests.classification.tiny import ROOT

_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["classification.trainer", "paddleseg.core", "ppdet.engine", "sklearn.datasets", "matplotlib.pyplot"]


def _main(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in any process; the server's is its own
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from cyclemlp_backbones.cli import main

    sys.exit(main(arguments))


class Command:
    """`cyclemlp arguments`, a group of processes of its own, that writes what it says into `log`."""

    def __init__(self, *arguments: object, log: Path, limit: float = 120, **environment: str):
        # The checkout's modules come before those of the server's current folder.
        _PROCESSES.set_forkserver_preload(["cyclemlp_backbones", "paddle", *_PRELOADED])
        self.log, self.deadline = log, time.monotonic() + limit
        log.unlink(missing_ok=True)
        self.process: Any = _PROCESSES.Process(target=_main, args=([*map(str, arguments)], str(log), environment))
        self.process.start()
        self.pid = self.process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.process.join()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, limit: float = 60) -> int | None:
        """The exit status, negative after a signal; None where it has not ended within `limit` seconds."""
        self.process.join(limit)
        return self.process.exitcode

    def wait_until(self, condition: Any, every: float = 0.002) -> bool:
        """Whether `condition()` came true while the command ran."""
        while not condition():
            if not self.process.is_alive():
                return False
            assert time.monotonic() < self.deadline, self.said[-3000:]
            time.sleep(every)
        return True

    def family(self) -> list[int]:
        return [self.pid, *descendants(self.pid)]

    def kill(self, *, group: bool, by: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, by)


__all__ = ["ROOT", "Command", "left_behind"]
