"""What a run survives: failed evaluations, SIGTERM, kills, damaged run states, full disks, a second run."""

import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from classification import data
from classification import trainer as training
from classification.commands import TERMINATED
from classification.run_state import RunState, only_run_in, read_run_state, saved_steps, state_path, write_run_state
from classification.trainer import Terminated, Trainer
from cyclemlp_backbones import CheckpointError
from cyclemlp_backbones import read_checkpoint as weights
from tests.classification.test_trainer import RESUMED, equal, log_rows
from tests.classification.tiny import ROOT, arguments, environment, tiny_config

AUTO = {**RESUMED, "run__resume": "auto"}


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    Trainer(tiny_config(digits, folder, **RESUMED)).run()
    return folder


def check_same_end(folder, whole):
    for name in ("last.pdparams", "last_ema.pdparams", "best.pdparams"):
        assert equal(weights(folder / name), weights(whole / name)), name
    ends = [read_run_state(state_path(run / "checkpoints", 10)) for run in (folder, whole)]
    assert equal(ends[0].arrays, ends[1].arrays)
    assert {**ends[0].meta, "config": None} == {**ends[1].meta, "config": None}


def test_an_evaluation_that_fails_loses_nothing_and_is_made_up_for(digits, whole, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("the folder is away")

    for _ in range(2):  # the retry as well
        with monkeypatch.context() as patch:
            patch.setattr(training, "evaluate", fail)
            with pytest.raises(OSError, match="the folder is away"):
                Trainer(tiny_config(digits, tmp_path, **AUTO)).run()
        assert saved_steps(tmp_path / "checkpoints")[-1] == 5
    Trainer(tiny_config(digits, tmp_path, **AUTO)).run()
    assert [row["step"] for row in log_rows(tmp_path, "evaluation")] == [5, 10]
    assert [row["step"] for row in log_rows(tmp_path, "train")] == list(range(1, 11))  # none of them twice
    check_same_end(tmp_path, whole)


def test_some_validation_images_are_read_before_the_first_step(digits, tmp_path):
    shutil.copytree(digits / "val", tmp_path / "val")
    names = [line.split()[0] for line in (digits / "val.txt").read_text().splitlines()]
    (tmp_path / "val" / names[-1]).write_bytes(b"broken")
    changes = {"data__val_images": str(tmp_path / "val")}
    with pytest.raises(ValueError, match=f"1 of 13 images cannot be read, more than data.max_broken.*{names[-1]}"):
        Trainer(tiny_config(digits, tmp_path / "run", **changes))
    for name in names:
        (tmp_path / "val" / name).unlink()
    with pytest.raises(ValueError, match=r"is data\.val_images the right folder\?"):
        Trainer(tiny_config(digits, tmp_path / "run", **changes, data__max_broken=1.0))


def test_sigterm_saves_a_run_state_wherever_it_comes(digits, whole, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    for stopped in (3, 5, 8):
        trainer = Trainer(tiny_config(digits, tmp_path, **AUTO))

        def send(layer, *_, trainer=trainer, step=stopped):
            evaluating = not layer.training and trainer.step == step == 5
            if evaluating or (layer.training and trainer.step == step - 1 and step != 5):
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.model.register_forward_pre_hook(send)
        with pytest.raises(Terminated):
            trainer.run()
        assert saved_steps(tmp_path / "checkpoints")[-1] == stopped
        assert signal.getsignal(signal.SIGTERM) == handler
    Trainer(tiny_config(digits, tmp_path, **AUTO)).run()
    check_same_end(tmp_path, whole)


def test_a_sigterm_while_the_processes_agree_is_not_forgotten(digits, tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(digits, tmp_path, **RESUMED))

    def agree(self, values):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(training.World, "mean_tensor", agree)
    with pytest.raises(Terminated):
        trainer.run()
    assert saved_steps(tmp_path / "checkpoints") == [2, 4]


def test_a_sigterm_to_another_process_ends_the_evaluation_of_all(digits, tmp_path, monkeypatch):
    """Else one leaves, and the others fail in waiting for its counts."""
    monkeypatch.setattr(training.World, "sum", lambda self, values: np.asarray(values, float) + 1)
    with pytest.raises(Terminated):
        Trainer(tiny_config(digits, tmp_path, **RESUMED)).run()
    assert saved_steps(tmp_path / "checkpoints")[-1] == 5
    assert log_rows(tmp_path, "evaluation") == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_sigterm_to_a_worker_that_begins_does_not_end_the_run(digits, whole, tmp_path, monkeypatch):
    """Slurm sends it to all processes, at any moment."""
    prepare = data.end_with_trainer

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        prepare(*arguments)

    monkeypatch.setattr(data, "end_with_trainer", signalled)
    Trainer(tiny_config(digits, tmp_path, **{**AUTO, "data__workers": 2})).run()
    check_same_end(tmp_path, whole)


def left_behind(pids, limit=10):
    """Which of the processes run, and which files of shared memory are theirs, after up to `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        running = [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid)]
        files = [file for pid in pids for file in Path("/dev/shm").glob(f"paddle_{pid}_*")]
        if not running + files or time.monotonic() > deadline:
            return running, files
        time.sleep(0.1)


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def descendants(pid):
    """The processes that `pid` has started, and those that these have."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [found for child in children.stdout.split() for found in (int(child), *descendants(int(child)))]


def wait_for_steps(folder, process, step):
    deadline = time.monotonic() + 90
    while not ((folder / "log.jsonl").exists() and [1 for row in log_rows(folder, "train") if row["step"] >= step]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_run_leaves_no_process_and_no_shared_memory(digits, tmp_path):
    """By SIGKILL, by SIGTERM, and by either to all of its processes, as Slurm sends them; after SIGKILL to all, the
    shared memory is there until the next run."""
    options = arguments(digits, tmp_path, **RESUMED, schedule__epochs=10000, data__workers=3, run__keep=1)
    command = [sys.executable, "-m", "classification", "train", *options, "--resume", "auto"]
    quiet = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "start_new_session": True}
    killed: list[int] = []
    kills = [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGTERM, 0), (signal.SIGTERM, 1)]
    for number, (sent, all_of_them) in enumerate(kills, 1):
        with (tmp_path / "err").open("w+") as errors, subprocess.Popen(command, stderr=errors, **quiet) as process:
            try:
                wait_for_steps(tmp_path, process, 20 * number)
                assert left_behind(killed) == ([], [])
                pids = [process.pid, *descendants(process.pid)]
                assert len(pids) >= 4
                (os.killpg if all_of_them else os.kill)(process.pid, sent)
                status = process.wait(timeout=60)
            finally:
                process.kill()
            errors.seek(0)
            said = errors.read()
        assert status == (TERMINATED if sent == signal.SIGTERM else -signal.SIGKILL), said
        assert ("terminated; the same command with --resume auto goes on" in said) == (sent == signal.SIGTERM)
        killed = pids if sent == signal.SIGKILL and all_of_them else []
        assert killed or left_behind(pids) == ([], [])
        if sent == signal.SIGTERM:
            assert saved_steps(tmp_path / "checkpoints")[-1] == log_rows(tmp_path, "train")[-1]["step"]


STUCK = """
import sys
from classification import commands, data
commands.LEAVE_SECONDS = 1
data.end_with_trainer = lambda *_: None  # SIGTERM stays blocked, as it has no effect on what waits for a file system
sys.exit(commands.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_worker_that_is_stuck_does_not_keep_a_terminated_run(digits, tmp_path):
    options = arguments(digits, tmp_path, **RESUMED, schedule__epochs=10000, data__workers=2, run__keep=1)
    command = [sys.executable, "-c", STUCK, *options]
    quiet = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:
        try:
            wait_for_steps(tmp_path, process, 7)  # an evaluation behind it: Paddle's own end forgets the workers before
            pids = [process.pid, *descendants(process.pid)]
            process.terminate()
            assert process.wait(timeout=30) == TERMINATED
            assert left_behind(pids)[0] == []
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert saved_steps(tmp_path / "checkpoints")[-1] == log_rows(tmp_path, "train")[-1]["step"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_launch_of_which_one_process_is_killed_ends_and_leaves_none(digits, tmp_path):
    options = arguments(digits, tmp_path / "out", schedule__epochs=10000, data__workers=2, data__batch_size=4)
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", str(tmp_path), "--nproc_per_node", "2"]
    quiet = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*launch, "classification/train.py", *options]
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:
        try:
            wait_for_steps(tmp_path / "out", process, 3)
            pids = descendants(process.pid)
            ranks = [pid for pid in pids if parent_of(pid) == process.pid]
            assert len(pids) >= 6
            os.kill(ranks[-1], signal.SIGKILL)
            assert process.wait(timeout=60) != 0
        finally:
            for pid in descendants(process.pid):  # which a launcher that is killed leaves to themselves
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
    assert left_behind(pids) == ([], [])


def parent_of(pid):
    """None of one that has ended, as workers of an evaluation do."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_resuming_passes_over_damaged_run_states(digits, whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    newest, older = (state_path(tmp_path / "checkpoints", step) for step in (10, 8))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1  # a bit of a weight: the file is read without complaint
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000010.*damaged, \w+ is not what was written"):
        Trainer(tiny_config(digits, tmp_path, **{**RESUMED, "run__resume": str(newest)}))
    older.write_bytes(older.read_bytes()[:-9])
    trainer = Trainer(tiny_config(digits, tmp_path, **AUTO))
    assert [("step-00000010" in text, "step-00000008" in text) for text in caplog.messages if "next older" in text] == [
        (True, False),
        (False, True),
    ]
    assert trainer.step < 8
    trainer.run()
    check_same_end(tmp_path, whole)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the run states in .* is whole"):
        Trainer(tiny_config(digits, tmp_path, **AUTO))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["__metadata__"].pop("meta"), "its header lacks meta"),
        (lambda header: header["__metadata__"].pop("sha256"), "its header lacks sha256"),
        (lambda header: header["__metadata__"].update(sha256="{"), "damaged"),
        (lambda header: header["__metadata__"].update(meta="{}"), "damaged, meta is not what was written"),
        (lambda header: header.pop("__metadata__"), "is no run state"),
    ],
)
def test_a_damaged_header_is_a_message(tmp_path, change, message):
    path = write_run_state(tmp_path, RunState({"model/a": np.ones(3, "float32")}, {"step": 1}), keep=1, best=None)
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    with pytest.raises(CheckpointError, match=message):
        read_run_state(path)


def test_a_full_disk_is_a_message_and_leaves_the_older_run_states(digits, tmp_path, monkeypatch, capsys):
    """A limit on the size of files stands for the disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    update = training.WeightAverage.update

    def fill(self, values):
        update(self, values)
        if saved_steps(tmp_path / "checkpoints"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    monkeypatch.setattr(training.WeightAverage, "update", fill)
    try:
        from classification.commands import main

        status = main(["train", *arguments(digits, tmp_path, run__save_every=1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert "step-00000002.safetensors cannot be written" in (said := capsys.readouterr().err)
    assert "those before it are as they were" in said
    assert saved_steps(tmp_path / "checkpoints") == [1]
    assert read_run_state(state_path(tmp_path / "checkpoints", 1)).step == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.safetensors"]


def test_run_states_have_the_permissions_of_any_new_file(whole, tmp_path):
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in (whole / "checkpoints").iterdir()} == {mode}


def test_a_second_run_into_the_same_folder_is_refused_and_told_who_is_there(digits, tmp_path):
    """Another process holds the folder; once it is killed, the folder is free."""
    hold = "import sys; from pathlib import Path; from classification.run_state import only_run_in\n"
    hold += "with only_run_in(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()\n"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(
                ValueError, match=rf"another run writes into .*\(host .*, process {other.pid}, since 20"
            ):
                Trainer(tiny_config(digits, tmp_path)).run()
            assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]  # nothing of the other run is touched
        finally:
            other.kill()
    with only_run_in(tmp_path):
        assert f"process {os.getpid()}, " in (tmp_path / "run.lock").read_text()
    assert Trainer(tiny_config(digits, tmp_path)).run()["steps"] == 10
