"""What holds wherever a toolkit runs, its wheel or a checkout: no file runs code, and a bad sample ends the run.

Each guard is a row of every toolkit's repairs: a probe, and the function that mends Paddle or PyYAML in this process.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml
from paddle.io.dataloader import dataloader_iter

from cyclemlp_backbones.datasets.samples import SampleError, checked_sample
from cyclemlp_backbones.interrupts import end_with_trainer, starting_workers
from cyclemlp_backbones.weights.arrays import NAMES
from cyclemlp_backbones.weights.pickles import CheckpointError, PickleReader

_LOG = logging.getLogger(__name__)
_PYTHON = "tag:yaml.org,2002:python/"


def yaml_runs_code() -> bool:
    return yaml.Loader.yaml_multi_constructors[f"{_PYTHON}object/apply:"] is not _refuse_tag


def refuse_yaml_code() -> None:
    """The toolkits read configurations, and all that these are based on, by loaders that call what a file names."""
    for name in ("Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader"):
        if loader := getattr(yaml, name, None):
            loader.yaml_multi_constructors = {
                tag: _refuse_tag if (tag or "").startswith(_PYTHON) else construct
                for tag, construct in loader.yaml_multi_constructors.items()
            }


def _refuse_tag(loader: yaml.Loader, suffix: str, node: yaml.Node) -> None:
    tag = node.tag.removeprefix(_PYTHON)
    message = f"refused: !!python/{tag} runs code, which no configuration needs; nothing was run"
    raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def load_runs_code() -> bool:
    return paddle.load is paddle.framework.io.load


def check_before_load() -> None:
    """`paddle.load` unpickles: weights, optimizer states and averages that the toolkits load could run code."""
    load = paddle.load

    @functools.wraps(load)
    def check_and_load(path: Any, **configs: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and os.path.isfile(path) and not configs.get("safetensors"):
            check_pickle(path)
        return load(path, **configs)

    paddle.load = check_and_load


def check_pickle(path: str | os.PathLike) -> None:
    """CheckpointError that names the file, unless it is a whole pickle of plain data; nothing in it is run."""
    try:
        with open(path, "rb") as file:
            PickleReader(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), NAMES).read()
    except OSError:
        raise
    except Exception as error:  # bytes that make no sense fail in many ways; ValueError of a file that is empty too
        raise CheckpointError(f"{path}: {error}") from error


def check_checkpoint(flag: str, parts: Sequence[Path], go_on: Callable[[], str]) -> None:
    """ValueError that says why `parts`, given by `flag`, are no whole checkpoint, and how to go on."""
    try:
        for part in parts:
            check_pickle(part)
    except (OSError, CheckpointError) as error:
        raise ValueError(f"{flag}: {error}; an interrupted save leaves such files{go_on()}") from error


def how_to_go_on(flag: str, checkpoints: Mapping[Path, Sequence[Path]], save_dir: Path) -> str:
    """Behind a message: the first of `checkpoints`, newest first, whose parts are whole; a warning of those before."""
    for checkpoint, parts in checkpoints.items():
        try:
            check_checkpoint("left out", parts, lambda: "")
            return f"; go on with {flag} {checkpoint}"
        except ValueError as error:
            _LOG.warning("%s", error)
    return f"; {save_dir} has no whole checkpoint"


def check_save_dir(save_dir: str | Path) -> None:
    """OSError if nothing can be saved there, before a toolkit trains until it tries, or replaces a file by a folder."""
    there = next(path for path in (Path(save_dir), *Path(save_dir).parents) if path.exists())
    problem = "not writable" if there.is_dir() else "no folder"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(f"save_dir {save_dir} takes no checkpoints: {there} is {problem}; give a folder to write into")


class _Samples:
    """A data set whose errors are SampleErrors."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return checked_sample(self.dataset, index)


def loader_waits_for_ever() -> bool:
    return not hasattr(dataloader_iter._DataLoaderIterSingleProcess, "end_on_error")


def end_on_error() -> None:
    """The thread that reads samples ends by an exception without a word to who waits for the batch, which never comes.

    Its error comes out where the next batch is asked for: what was being saved then is saved.
    """
    init = dataloader_iter._DataLoaderIterBase.__init__

    def init_with_names(self: Any, loader: Any) -> None:
        init(self, loader)
        if self._dataset_kind == dataloader_iter._DatasetKind.MAP:
            self._dataset = _Samples(self._dataset)

    dataloader_iter._DataLoaderIterBase.__init__ = init_with_names
    for iterator in (dataloader_iter._DataLoaderIterSingleProcess, dataloader_iter._DataLoaderIterMultiProcess):
        iterator.end_on_error = None
        _hand_error_over(iterator, iterator._thread_loop, iterator.__next__)


def _hand_error_over(iterator: Any, thread_loop: Any, following: Any) -> None:
    def loop(self: Any, place: Any) -> None:
        try:
            thread_loop(self, place)
        except Exception as error:
            self.end_on_error = error
            self._exit_thread_unexpectedly()

    def next_batch(self: Any) -> Any:
        try:
            return following(self)
        except Exception as error:
            if self.end_on_error is None:
                raise
            # A worker's exception arrives as its printed traceback.
            message = str(self.end_on_error).rpartition(f"{SampleError.__name__}: ")[2].strip()
            raise SampleError(f"{message}; `cyclemlp data check --config FILE` lists all such samples") from error

    iterator._thread_loop, iterator.__next__ = loop, next_batch


def workers_stay() -> bool:
    return not hasattr(dataloader_iter._DataLoaderIterMultiProcess._init_workers, "__wrapped__")


def end_workers() -> None:
    """Workers of a trainer that was killed wait for it for ever, and keep their shared memory."""
    start = dataloader_iter._DataLoaderIterMultiProcess._init_workers

    @functools.wraps(start)
    def start_workers(self: Any) -> None:
        self._worker_init_fn = functools.partial(end_with_trainer, os.getpid(), self._worker_init_fn)
        with starting_workers():
            start(self)

    dataloader_iter._DataLoaderIterMultiProcess._init_workers = start_workers
