"""Two processes under paddle.distributed.launch, of which one fails, both fail, or all are told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from classification.commands import TERMINATED
from classification.run_state import saved_steps
from tests.attack.test_data import END, Pretraining, made, programs
from tests.attack.test_kills import PaddleDetection, PaddleSeg
from tests.classification.test_launch import launch
from tests.classification.test_reliability import descendants, left_behind
from tests.classification.test_trainer import log_rows
from tests.classification.tiny import ROOT, arguments, environment, write_data

LAUNCHER = ROOT / "cyclemlp_backbones" / "__main__.py"


class Launch:
    """A launch of two ranks, with the folder of their logs."""

    def __init__(self, folder: Path, *command: object, nodes: tuple = ()):
        self.log = folder / "log"
        gloo = () if command[0] == "cls" else ("--backend", "gloo")  # Paddle then takes its older launcher
        self.said = (folder / "launch.log").open("w+")
        quiet = {"stdout": self.said, "stderr": self.said, "start_new_session": True}
        started = launch(self.log, LAUNCHER, *command, nodes=("--nproc_per_node", "2", *gloo, *nodes))
        self.process = subprocess.Popen([*map(str, started)], cwd=folder, env=environment(), **quiet)

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.family() if self.process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def family(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def ranks(self) -> list[int]:
        return list(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def logs(self) -> list[str]:
        paths = [self.log / f"workerlog.{rank}" for rank in range(2)]
        return [path.read_text(errors="replace") if path.exists() else "" for path in paths]

    def wait(self, limit: float = 60) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(limit)
        return None

    def wait_for_steps(self, training) -> None:
        deadline = time.monotonic() + 120
        while len(training.steps(self.logs()[0])) < 2:
            assert self.process.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)


@programs(short=Pretraining)
def test_killed_rank(attack, program, tmp_path):
    """one of two ranks of {program} is killed"""
    times, longest = attack.times(10, 1), 0.0
    for number in range(times):
        folder = tmp_path / str(number)
        training = made(program, folder)
        with Launch(folder, *training.arguments(None, END)) as run:
            run.wait_for_steps(training)
            family = run.family()
            os.kill(attack.rng.choice(run.ranks()), signal.SIGKILL)
            sent = time.monotonic()
            status = run.wait()
            assert status not in (0, None), run.logs()
            longest = max(longest, time.monotonic() - sent)
        assert left_behind(family, limit=10)[0] == []
    attack.tell(f"{times} times: the other one and the launcher ended within {longest:.1f} s, no process left")


@pytest.mark.parametrize("whom", [pytest.param("the launcher", marks=pytest.mark.long), "all processes"])
def test_sigterm(attack, whom, tmp_path):
    """SIGTERM to {whom} of two ranks of pretraining"""
    times, longest, statuses = attack.times(10, 1), 0.0, set()
    for number in range(times):
        folder = tmp_path / str(number)
        training = made(Pretraining, folder)
        with Launch(folder, *training.arguments(None, END)) as run:
            run.wait_for_steps(training)
            time.sleep(attack.rng.random())
            family, ranks = run.family(), run.ranks()
            for pid in family if whom == "all processes" else family[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            sent = time.monotonic()
            statuses.add(run.wait())
            longest = max(longest, time.monotonic() - sent)
            assert None not in statuses, run.logs()
        assert len(ranks) == 2
        for log in run.logs():
            assert "terminated; the same command with --resume auto goes on" in log, run.logs()
        assert left_behind(family) == ([], [])
        assert saved_steps(training.saved)[-1] == log_rows(training.out, "train")[-1]["step"]
    attack.tell(
        f"{times} times: both ranks said that they go on with --resume auto, the last step is saved, nothing left, "
        f"within {longest:.1f} s; each rank ends with {TERMINATED}, the launcher with {statuses}"
    )


UNEVEN = {
    Pretraining: (43, 3, ("--set", "data.batch_size=4")),
    PaddleSeg: (7, 8, ("--do_eval", "--batch_size", "2")),
    PaddleDetection: (7, 3, ("TrainReader.batch_size=2",)),
}


@programs(short=Pretraining)
def test_uneven_batches(attack, program, tmp_path):
    """a data set whose last batches are uneven over two ranks of {program}, trained to the end"""
    images, end, flags = UNEVEN[program]
    training = made(program, tmp_path / "p", images=images)
    with Launch(tmp_path / "p", *training.arguments(None, end), *flags) as run:
        started = time.monotonic()
        assert run.wait(120) == 0, run.logs()
        took = time.monotonic() - started
    assert training.steps(run.logs()[0])[-1] >= end
    attack.tell(f"{images} images in batches of {flags[-1][-1]} a rank: status 0 after {took:.0f} s")


def test_port_in_use(attack, tmp_path):
    """the port of a launch is in use"""
    training = made(Pretraining, tmp_path / "p")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        nodes = ("--ips", "127.0.0.1", "--start_port", str(port))
        with Launch(tmp_path / "p", *training.arguments(None, END), nodes=nodes) as run:
            started = time.monotonic()
            status = run.wait()
            took = time.monotonic() - started
            assert status not in (0, None), run.logs()
    assert f"port {port} of this launch" in "".join(run.logs()), run.logs()
    attack.tell(f"status {status} after {took:.0f} s, and the port is told")


def test_both_ranks_fail(attack, tmp_path):
    """both ranks of pretraining fail"""
    data, times, longest = write_data(tmp_path / "digits"), attack.times(50, 1), 0.0
    options = arguments(data, tmp_path / "out", distillation__type="soft")  # without the teacher's weights
    for number in range(times):
        (tmp_path / str(number)).mkdir()
        with Launch(tmp_path / str(number), "cls", "train", *options) as run:
            started = time.monotonic()
            assert run.wait() not in (0, None), run.logs()
            longest = max(longest, time.monotonic() - started)
        assert any("error: unknown teacher 'RegNetX_4GF'" in log for log in run.logs()), run.logs()
    attack.tell(f"{times} times: ended within {longest:.1f} s of their start, with the message; none hung")
