"""Run states, what a run resumes from: one .safetensors file each, whole or not at all, rotated, of one run only.

Random choices need no state: they follow from the seed and the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import safetensors
from paddle import Tensor
from safetensors.numpy import save_file

from cyclemlp_backbones import CheckpointError
from cyclemlp_backbones.files import write_atomically

from .config import Config
from .config_files import differing_keys

logger = logging.getLogger(__name__)

FORMAT = "cyclemlp-pretraining-1"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_ACCUMULATOR = re.compile(r"(?:fp32_master_\d+_)?(.+)_\d+")


@dataclass(frozen=True)
class RunState:
    """`arrays` by "model/…", "ema/…", "optimizer/…", "master/…"; `meta` has the step, configuration and the rest."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one part by their names in it."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """The steps of the run states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name)))


def steps_to_delete(steps: Iterable[int], *, keep: int, best: int | None) -> list[int]:
    """All but the last `keep` and the best."""
    return [step for step in sorted(steps)[:-keep] if step != best]


def write_run_state(folder: Path, state: RunState, *, keep: int, best: int | None) -> Path:
    """Writes a run state and then removes earlier ones that are no longer kept. Later ones, of a run that went on from
    an earlier step than it had come to, stay until it comes to them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = state_path(folder, state.step)
    arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
    meta = json.dumps(state.meta)
    metadata = {"format": FORMAT, "meta": meta, "sha256": json.dumps(_digests(arrays, meta))}
    try:
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata=metadata))
    except (safetensors.SafetensorError, OSError) as error:
        raise OSError(
            f"the run state {path} cannot be written ({error}); those before it are as they were: free some space, "
            "then go on with --resume auto"
        ) from error
    steps = [step for step in saved_steps(folder) if step <= state.step]
    for step in steps_to_delete(steps, keep=keep, best=best):
        state_path(folder, step).unlink(missing_ok=True)
    return path


def _digests(arrays: Mapping[str, np.ndarray], meta: str) -> dict[str, str]:
    """The SHA-256 of every part, names, types, shapes and values, and of `meta`."""
    digests = {"meta": hashlib.sha256(meta.encode())}
    for name, array in sorted(arrays.items()):
        digest = digests.setdefault(name.partition("/")[0], hashlib.sha256())
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def read_run_state(path: Path) -> RunState:
    """The run state in a file; CheckpointError for a file that is missing, damaged, by a single bit even, or something
    else."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no run state {path}; run.resume takes auto or the path of a step-….safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        recorded = json.loads(metadata.get("sha256", "{}"))
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: it is damaged, or no run state ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no run state; weights to start from go into model.pretrained")
    if lacking := {"meta", "sha256"} - metadata.keys():
        raise CheckpointError(f"{path}: it is damaged, its header lacks {', '.join(sorted(lacking))}")
    found = _digests(arrays, metadata["meta"])
    if wrong := sorted(part for part in recorded.keys() | found if recorded.get(part) != found.get(part)):
        raise CheckpointError(f"{path}: it is damaged, {', '.join(wrong)} is not what was written")
    return RunState(arrays, json.loads(metadata["meta"]))


def find_resume(resume: str | None, folder: Path) -> tuple[Path, RunState] | None:
    """The run state that `run.resume` means: None for a fresh start, which "auto" takes where there is none yet. It
    passes over damaged ones, with a warning; CheckpointError where none is whole.

    Without `resume`, CheckpointError for a folder with run states: those of two runs would be mixed up.
    """
    steps = saved_steps(folder)
    if resume not in (None, "auto"):
        return Path(resume), read_run_state(Path(resume))
    if resume is None and steps:
        raise CheckpointError(
            f"{folder} has run states up to step {steps[-1]} of an earlier run: go on with it (--resume auto), "
            "choose another run.output, or remove them"
        )
    for step in reversed(steps):
        try:
            return state_path(folder, step), read_run_state(state_path(folder, step))
        except CheckpointError as error:
            logger.warning("%s; the next older one is tried", error)
    if steps:
        raise CheckpointError(f"none of the run states in {folder} is whole: remove them to start anew")
    return None


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; ValueError that names the run which does. The system gives the lock back
    whatever way a process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = path.read_text(encoding="utf-8").strip() or "it does not say which"
            remedy = "wait for its end, end it, or choose another run.output"
            raise ValueError(f"another run writes into {folder} ({holder}): {remedy}") from error
        except (ImportError, OSError) as error:
            logger.warning("%s: no lock keeps other runs out (%s)", folder, error)
            yield
            return
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # at once: the processes that read images have the file too


def check_same_run(state: RunState, config: Config, *, processes: int, samples: str, path: Path) -> None:
    """CheckpointError with the differing keys unless `config` continues the state's run."""
    lines = differing_keys(state.meta["config"], config)
    for key, now in (("processes", processes), ("training list", samples)):
        if state.meta[key] != now:
            lines.append(f"{key}: {state.meta[key]!r} in the run state, {now!r} now")
    if lines:
        raise CheckpointError(
            f"{path} is of another run:\n  " + "\n  ".join(lines) + "\nset these as they were, or start in another "
            "run.output (weights alone to start from: model.pretrained)"
        )


def as_arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays of float32, which holds half precision exactly."""
    return {name: tensor.detach().astype("float32").numpy() for name, tensor in state.items()}


def optimizer_arrays(
    optimizer: paddle.optimizer.Optimizer, names: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The accumulators by "PARAMETER/KIND" and the master weights, where `names` are the model's names by Paddle's.

    Paddle's own names count layers within a process, and so change with what else was built before.
    """
    state = dict(optimizer.state_dict())
    master = {names[name]: array for name, array in as_arrays(state.pop("master_weights", {})).items()}
    state.pop("LR_Scheduler", None)
    accumulators = {}
    for key, array in as_arrays(state).items():
        name = max((name for name in names if key.startswith(f"{name}_")), key=len)
        match = _ACCUMULATOR.fullmatch(key.removeprefix(f"{name}_"))
        assert match is not None, key
        accumulators[f"{names[name]}/{match[1]}"] = array
    return accumulators, master


def restore_optimizer(
    optimizer: paddle.optimizer.Optimizer,
    names: Mapping[str, str],
    accumulators: Mapping[str, np.ndarray],
    master: Mapping[str, np.ndarray],
) -> None:
    """Gives a fresh optimizer the state that `optimizer_arrays` read; it is taken up at its first step."""
    paddle_names = {structured: name for name, structured in names.items()}
    state: dict[str, Any] = {}
    for key, array in accumulators.items():
        structured, _, kind = key.rpartition("/")
        middle = "_fp32_master_0" if structured in master else ""
        state[f"{paddle_names[structured]}{middle}_{kind}_0"] = paddle.to_tensor(array)
    if master:
        state["master_weights"] = {}
        for structured, array in master.items():
            tensor = paddle.to_tensor(array)
            tensor.name = f"{paddle_names[structured]}_fp32_master_0"
            state["master_weights"][paddle_names[structured]] = tensor
    optimizer.set_state_dict(state)
