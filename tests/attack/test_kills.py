"""Kills at random moments: what was trained goes on, and ends as if nothing had happened."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from classification.commands import TERMINATED
from classification.run_state import saved_steps
from tests.adapters import tiny_det, tiny_seg
from tests.attack.commands import Command, left_behind
from tests.classification.test_trainer import RESUMED, log_rows
from tests.classification.tiny import arguments, write_data

PRETRAINING = {**RESUMED, "run__keep": 2, "run__evaluate_every": 4}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.is_dir() else set()


def begun(out: Path) -> int:
    """How often a run into this folder began."""
    return len(log_rows(out, "start")) if (out / "log.jsonl").exists() else 0


def kill_in(command: Command, folder: Path, rng, longest: float, *, group: bool) -> bool:
    """Kills it after a random time of at most `longest` seconds, or, every second time, within the next change of the
    files in `folder`; False if it had ended."""
    if rng.random() < 0.5:
        there = names(folder)
        if not command.wait_until(lambda: names(folder) - there, every=0.0005):
            return False
        time.sleep(rng.random() * 0.03)
    else:
        time.sleep(rng.random() * longest)
    if not command.process.is_alive():
        return False
    command.kill(group=group)
    command.wait()
    return True


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "digits")


def test_pretraining(attack, digits, tmp_path):
    """pretraining, killed by SIGKILL: the trainer alone or its workers too, half of the times while it writes"""
    total, kills, torn, runs, groups = attack.times(100, 2), 0, 0, 0, 0
    settings = {**PRETRAINING, "schedule__epochs": attack.times(12, 4)}  # of five steps
    with Command("cls", "train", *arguments(digits, tmp_path / "whole", **settings), log=tmp_path / "log") as whole:
        assert whole.wait(120) == 0, whole.said
    while kills < total:
        runs += 1
        out, ended = tmp_path / f"run{runs}", False
        while not ended:
            workers, step = attack.rng.choice((0, 2)), max([0, *saved_steps(out / "checkpoints")])
            options = arguments(digits, out, **settings, data__workers=workers)
            starts = begun(out)
            with Command("cls", "train", *options, "--resume", "auto", log=tmp_path / "log") as command:
                assert command.wait_until(lambda n=starts, out=out: begun(out) > n), command.said
                assert log_rows(out, "start")[-1]["step"] == step
                if kills < total:
                    time.sleep(0.2)
                    family, group = command.family(), attack.rng.random() < 0.5
                    if kill_in(command, out / "checkpoints", attack.rng, 1.0, group=group):
                        kills, groups = kills + 1, groups + group
                        torn += any(name.endswith(".tmp") for name in names(out))
                        running, files = left_behind(family) if not group else ([], [])
                        assert (running, files) == ([], [])
                        continue
                assert command.wait() == 0, command.said
                ended = True
        for name in ("last.pdparams", "last_ema.pdparams", "best.pdparams"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert not [name for name in names(out) if name.endswith(".tmp")]
        shutil.rmtree(out)
    attack.tell(
        f"{kills} kills in {runs} runs, {groups} of all processes, {torn} within a file's writing: each went on "
        "from its newest run state, each run ended bit-equal to one that nothing killed"
    )


def test_pretraining_by_sigterm(attack, digits, tmp_path):
    """pretraining, ended by SIGTERM to all of its processes, as Slurm sends it, while it trains, evaluates or starts
    workers"""
    total, longest = attack.times(40, 2), 0.0
    out = tmp_path / "out"
    options = arguments(digits, out, **RESUMED, schedule__epochs=10000, data__workers=3, run__keep=1)
    for number in range(total):
        with Command("cls", "train", *options, "--resume", "auto", log=tmp_path / "log") as command:
            assert command.wait_until(lambda n=number: begun(out) > n), command.said
            time.sleep(attack.rng.random() * 1.2)
            family = command.family()
            command.kill(group=True, by=signal.SIGTERM)
            sent = time.monotonic()
            assert command.wait() == TERMINATED, command.said[-3000:]
            longest = max(longest, time.monotonic() - sent)
        assert left_behind(family) == ([], [])
        assert saved_steps(out / "checkpoints")[-1] == log_rows(out, "train")[-1]["step"]
    attack.tell(
        f"{total} times: status {TERMINATED} within {longest:.1f} s, the last step saved, no process and no shared "
        "memory left"
    )


class PaddleSeg:
    """PaddleSeg's training of a folder. `state`: megabytes of its largest file."""

    state = 57.7

    def __init__(self, folder: Path, images: int = 8):
        self.folder, self.saved = folder, folder / "out"
        tiny_seg.write_data(folder, images=images)
        self.config = tiny_seg.write_config(folder, tiny_seg.SEMANTIC_FPN)

    def arguments(self, resume: str | None, end: int) -> list:
        flags = ["--iters", end, "--save_interval", 2, "--log_iters", 1, "--num_workers", 2, "--keep_checkpoint_max", 3]
        return [
            "seg",
            "train",
            "--config",
            self.config,
            "--save_dir",
            self.saved,
            *flags,
            *(["--resume_model", resume] if resume else []),
        ]

    def newest(self) -> tuple[int, str | None]:
        steps = [int(path.name[5:]) for path in self.saved.glob("iter_*")]
        return (max(steps), str(self.saved / f"iter_{max(steps)}")) if steps else (0, None)

    def steps(self, said: str) -> list[int]:
        return [int(step) for step in re.findall(r"iter: (\d+)/", said)]


class PaddleDetection:
    """PaddleDetection's training of a folder; its steps are epochs."""

    state = 26.2

    def __init__(self, folder: Path, images: int = 4):
        self.folder, self.saved = folder, folder / "out" / "retinanet"
        tiny_det.write_data(folder, train=images)
        shared = {"use_shared_memory": True}
        changes = {"worker_num": 2, "snapshot_epoch": 1, "RetinaHead": {"prior_prob": 0.1}, "TrainReader": shared}
        self.config = tiny_det.write_config(folder, "retinanet", **changes)

    def arguments(self, resume: str | None, end: int) -> list:
        return ["det", "train", "-c", self.config, *(["-r", resume] if resume else []), "-o", f"epoch={end}"]

    def newest(self) -> tuple[int, str | None]:
        epochs = sorted(int(path.stem) for path in self.saved.glob("[0-9]*.pdparams"))
        for epoch in epochs[:-3]:
            for path in self.saved.glob(f"{epoch}.pd*"):
                path.unlink()
        return (epochs[-1] + 1, str(self.saved / f"{epochs[-1]}.pdparams")) if epochs else (0, None)

    def steps(self, said: str) -> list[int]:
        return [int(step) + 1 for step in re.findall(r"Epoch: \[(\d+)\]", said)]


@pytest.mark.parametrize("toolkit", [PaddleSeg, PaddleDetection])
def test_toolkits(attack, toolkit, tmp_path):
    """{toolkit}'s trainer under our launcher, killed by SIGKILL: alone or with its workers, half of the times while it
    writes"""
    training = toolkit(tmp_path)
    total, kills, refused, anew, end = attack.times(25, 1), 0, 0, 0, 100_000
    while True:
        step, checkpoint = training.newest()
        last = kills == total
        with Command(*training.arguments(checkpoint, step + 2 if last else end), log=tmp_path / "log") as command:
            if not command.wait_until(lambda c=command: training.steps(c.said)):
                # As a user: the message of a torn checkpoint names the last whole one.
                assert "an interrupted save leaves such files" in command.said, command.said[-3000:]
                refused += 1
                named = re.search(r"go on with (?:-r|--resume_model) (\S+)", command.said)
                assert named or "has no whole checkpoint" in command.said, command.said[-3000:]
                torn = Path(checkpoint or "")
                for path in torn.parent.glob(f"{torn.stem}.pd*"):
                    path.unlink()
                shutil.rmtree(torn, ignore_errors=True)
                anew += not named
                continue
            assert training.steps(command.said)[0] == step + 1, (step, command.said[-3000:])
            if last:
                assert command.wait(120) == 0, command.said[-3000:]
                assert training.steps(command.said)[-1] == step + 2
                break
            family, group = command.family(), attack.rng.random() < 0.5
            assert kill_in(command, training.saved, attack.rng, 3.0, group=group), command.said[-3000:]
            kills += 1
            assert group or left_behind(family) == ([], [])
    attack.tell(
        f"{kills} kills: each went on from its newest whole checkpoint; {refused} times the newest was torn and "
        f"told so, {anew} of these there was no other; no process left"
    )
