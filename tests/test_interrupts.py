"""What killed processes that read data have left is freed; what belongs to living ones stays."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from cyclemlp_backbones import interrupts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not told of their trainer's end")

HOLD = "import fcntl, sys; fcntl.flock(file := open(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"


def test_only_the_shared_memory_of_killed_workers_is_freed(tmp_path, monkeypatch):
    """A lock tells whether a worker lives; numbers of processes do not, those of another container are not seen."""
    monkeypatch.setattr(interrupts, "_SHARED", tmp_path)
    killed, living, others = (
        ("cyclemlp_5", "paddle_5_0_77", "paddle_5_1_8"),
        ("cyclemlp_51", "paddle_51_0_7"),
        "paddle_6_0_7",
    )
    for name in (*killed, *living, others):
        (tmp_path / name).touch()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / living[0])], **pipes) as worker:
        worker.stdout.read(1)
        with interrupts.starting_workers():
            assert sorted(os.listdir(tmp_path)) == sorted((*living, others))
        worker.kill()
    with interrupts.starting_workers():
        assert os.listdir(tmp_path) == [others]


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "_SHARED", tmp_path)
    (tmp_path / f"cyclemlp_{os.getpid()}").symlink_to(tmp_path / "made")
    child = os.fork()
    if not child:
        interrupts.end_with_trainer(os.getppid(), None, 0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "made").exists()


LATE = """
import multiprocessing, os, subprocess, sys, time
from cyclemlp_backbones import interrupts

def begin_late():
    time.sleep(1)
    interrupts.end_with_trainer(os.getppid(), None, 0)
    time.sleep(100)

with interrupts.starting_workers():
    worker = multiprocessing.get_context("fork").Process(target=begin_late, daemon=True)
    worker.start()
subprocess.run(["kill", str(worker.pid)], check=True)
interrupts.end_workers(1000, 1)
sys.exit(75)
"""


def test_a_worker_that_has_yet_to_take_anothers_sigterm_ends_with_the_trainer():
    """Two of them that wait are one, which tells who sent the first."""
    run = subprocess.run([sys.executable, "-c", LATE], timeout=30, capture_output=True, text=True)
    assert run.returncode == 75, run.stderr


def read_ahead(folder):
    interrupts.end_with_trainer(os.getppid(), None, 0)
    (folder / f"paddle_{os.getpid()}_0_7").touch()
    (folder / f"cyclemlp_{os.getpid()}").unlink()  # as where none could be made: the rest is freed all the same


def test_what_the_trainer_has_not_read_is_freed_too(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "_SHARED", tmp_path)
    worker = multiprocessing.get_context("fork").Process(target=read_ahead, args=(tmp_path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert os.listdir(tmp_path) == []
