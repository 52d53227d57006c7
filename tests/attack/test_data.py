"""What training reads and writes gives way: full disks, files that change, workers that are killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from classification.run_state import saved_steps
from tests.attack.commands import Command, left_behind
from tests.attack.test_kills import PRETRAINING, PaddleDetection, PaddleSeg
from tests.classification.tiny import arguments, write_data


class Pretraining:
    """Pretraining on a folder."""

    state = 0.56

    def __init__(self, folder: Path, images: int = 40):
        self.out, self.saved = folder / "out", folder / "out" / "checkpoints"
        self.data = write_data(folder / "digits", train=images)

    def arguments(self, resume: str | None, end: int) -> list:
        changes = {**PRETRAINING, "schedule__epochs": end, "data__workers": 2, "data__max_broken": 0.1}
        return ["cls", "train", *arguments(self.data, self.out, **changes), *(["--resume", "auto"] if resume else [])]

    def newest(self) -> tuple[int, str | None]:
        steps = saved_steps(self.saved)
        return (steps[-1], "auto") if steps else (0, None)

    def steps(self, said: str) -> list[int]:
        return [int(step) for step in re.findall(r"step (\d+)/\d+ epoch", said)]


END = 100_000  # steps, or epochs


def programs(short: type) -> pytest.MarkDecorator:
    """All three, of which the gate takes `short`."""
    kinds = [Pretraining, PaddleSeg, PaddleDetection]
    return pytest.mark.parametrize(
        "program",
        [pytest.param(kind, marks=[pytest.mark.long] * (kind is not short), id=kind.__name__) for kind in kinds],
    )


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float):
    """A file system of this size at `folder`, where mounting is allowed; yields whether it is."""
    folder.mkdir(parents=True)
    size = f"size={round(1024 * megabytes)}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


@programs(short=Pretraining)
def test_full_disk(attack, program, tmp_path):
    """a full disk while {program} saves; then there is space again"""
    times, torn = attack.times(10, 1), 0
    for _ in range(times):
        training = made(program, tmp_path / "p")
        top = tmp_path / "p" / "out"
        with small_disk(top, attack.rng.uniform(1.2, 3) * program.state) as mounted:
            if not mounted:
                pytest.skip("this user may not mount a file system")
            with Command(*training.arguments(None, END), log=tmp_path / "log") as command:
                assert command.wait(120) == 1, command.said[-3000:]
                assert "No space left on device" in command.said, command.said[-3000:]
            subprocess.run(["mount", "-o", "remount,size=2g", top], check=True)
            step, checkpoint = training.newest()
            with Command(*training.arguments(checkpoint, END), log=tmp_path / "log") as command:
                went_on = command.wait_until(lambda c=command, t=training: t.steps(c.said), every=0.05)
                assert not went_on or training.steps(command.said)[0] == step + 1, command.said[-3000:]
            if not went_on:
                torn += 1
                assert "an interrupted save leaves such files" in command.said, command.said[-3000:]
                named = re.search(r"go on with (?:-r|--resume_model) (\S+)", command.said)
                with Command(*training.arguments(named and named[1], END), log=tmp_path / "log") as command:
                    assert command.wait_until(lambda c=command, t=training: t.steps(c.said), every=0.05), command.said
        shutil.rmtree(tmp_path / "p")
    attack.tell(
        f"{times} disks of 1.2 to 3 states: status 1, and the reason told; all went on afterwards, {torn} times "
        "the newest checkpoint was torn and told so"
    )


def made(program, folder: Path, **options: int):
    folder.mkdir(parents=True)
    return program(folder, **options)


def pictures(training) -> list[Path]:
    if isinstance(training, Pretraining):
        return sorted((training.data / "train").rglob("*.png"))
    if isinstance(training, PaddleSeg):
        return sorted(path for path in training.folder.glob("*.png") if "label" not in path.name)
    return sorted((training.folder / "train").iterdir())


def resize(training, picture: Path) -> None:
    """Another size, at once, as by a rename; in PaddleSeg the mask with it."""
    for path in (picture, picture.with_name(f"{picture.stem}_label.png")):
        if path.exists():
            with Image.open(path) as image:
                larger = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
            larger.save(path.with_suffix(".new.png"))
            os.replace(path.with_suffix(".new.png"), path)


@programs(short=PaddleDetection)
def test_changing_data(attack, program, tmp_path):
    """the data of {program} changes while it trains: pictures of other sizes, then pictures are deleted"""
    times, longest = attack.times(5, 1), 0.0
    for _ in range(times):
        training = made(program, tmp_path / "p")
        with Command(*training.arguments(None, END), log=tmp_path / "log") as command:
            assert command.wait_until(lambda c=command, t=training: t.steps(c.said), every=0.05), command.said[-3000:]
            found = pictures(training)
            attack.rng.shuffle(found)
            half = 1 if program is PaddleDetection else len(found) // 2
            if program is not PaddleSeg:  # whose configuration has no resizing: batches of one size only
                for picture in found[:half]:
                    resize(training, picture)
            seen = len(training.steps(command.said)) + 10
            assert command.wait_until(lambda c=command, t=training, n=seen: len(t.steps(c.said)) > n, every=0.05), (
                command.said[-3000:]
            )
            gone = found[half:]
            for picture in gone:
                picture.unlink()
            deleted = time.monotonic()
            assert command.wait(60) == 1, command.said[-3000:]
            longest = max(longest, time.monotonic() - deleted)
            error = command.said.rpartition("error: ")[2]
            assert any(str(picture) in error for picture in gone), command.said[-3000:]
        assert training.newest()[1]
        shutil.rmtree(tmp_path / "p")
    other = "" if program is PaddleSeg else "went on with pictures of twice the size; "
    attack.tell(
        f"{times} times: {other}ended within {longest:.1f} s of the deletion with status 1 and a missing file's "
        "name, checkpoints stay"
    )


def readers(command: Command) -> list[int]:
    """The processes that read data."""
    return [pid for pid in command.family() if Path(f"/dev/shm/cyclemlp_{pid}").exists()]


@programs(short=PaddleSeg)
def test_killed_worker(attack, program, tmp_path):
    """a process that reads data for {program} is killed"""
    times, longest, went_on = attack.times(15, 1), 0.0, 0
    for _ in range(times):
        training = made(program, tmp_path / "p", images=40)
        with Command(*training.arguments(None, END), log=tmp_path / "log") as command:
            assert command.wait_until(lambda c=command, t=training: t.steps(c.said), every=0.05), command.said[-3000:]
            time.sleep(attack.rng.random())
            found: list[int] = []
            assert command.wait_until(lambda c=command, found=found: found.extend(readers(c)) or found)
            victim, family = attack.rng.choice(found), command.family()
            with contextlib.suppress(ProcessLookupError):  # it had just read all
                os.kill(victim, signal.SIGKILL)
            sent, last = time.monotonic(), training.steps(command.said)[-1] + 60
            if command.wait_until(lambda c=command, t=training, n=last: t.steps(c.said)[-1] > n, every=0.05):
                went_on += 1
                command.kill(group=True)
                shutil.rmtree(tmp_path / "p")
                continue
            assert command.wait(1) == 1, command.said[-3000:]
            longest = max(longest, time.monotonic() - sent)
            assert longest < 60
            assert f"(pid {victim})" in command.said or f"pids: {victim}" in command.said, command.said[-3000:]
            assert left_behind(set(family) - {victim}) == ([], [])
        shutil.rmtree(tmp_path / "p")
    attack.tell(
        f"{times} times: {times - went_on} ended, within {longest:.1f} s with status 1 and a message that names the "
        f"process, {went_on}, whose process had read all, went on"
    )
