"""How an interrupted training is known, and how the processes that read its data end with it. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_SHARED = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1


def is_interrupt(error: BaseException) -> bool:
    """Also of an interrupt that came within the backward of a PyLayer: Paddle makes an error of its own of that."""
    return isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Around the start of processes that call `end_with_trainer`: frees the shared memory of those that were killed,
    and holds back SIGTERM, which would end one that has not come to the call."""
    if not _is_told():
        yield
        return
    import fcntl

    for lock in _SHARED.glob("cyclemlp_*"):
        with contextlib.suppress(OSError), lock.open() as file:  # another user's, or its process lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _free(lock)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_trainer(trainer: int, init: Callable[[int], object] | None, worker: int) -> None:
    """Has this process, after `init(worker)`, end and free its shared memory when the process `trainer` is gone,
    however it ended.

    Paddle's own watch over that does not run while a worker waits for the next indices. A SIGTERM that does not come
    from the trainer, as when Slurm sends it to all processes, is left to the trainer, which finishes its step first.
    """
    if _is_told():
        import fcntl

        # The lock tells that this process lives; its number does not to those in another container.
        lock = _SHARED / f"cyclemlp_{os.getpid()}"
        with contextlib.suppress(OSError):
            fcntl.flock(os.open(lock, os.O_CREAT | os.O_NOFOLLOW, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)
        multiprocessing.util.Finalize(None, _free, (lock,), exitpriority=0)  # what a trainer that fails has not read
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        def watch() -> None:
            while os.getppid() == trainer and signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
                pass
            _free(lock)
            os._exit(0)

        threading.Thread(target=watch, daemon=True).start()
    if init:
        init(worker)


def end_workers(seconds: float, status: int) -> None:
    """Ends this process's workers: asks them for `seconds`, kills them then, and if one outlives that too, stuck in a
    file system, ends this process with `status`.

    The interpreter's own end asks each worker once, and then waits for ever. A worker that has just started, and for
    which another SIGTERM is still pending (Slurm sends it to all processes), misses the second one.
    """
    if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Paddle's raises an error where a worker was killed
    end = time.monotonic() + seconds
    while workers := multiprocessing.active_children():
        late = time.monotonic() - end
        if late > 1:
            os._exit(status)
        for worker in workers:
            (worker.kill if late > 0 else worker.terminate)()
        workers[0].join(0.1)


def _is_told() -> bool:
    """Whether the system tells a worker of its trainer's end: Linux, where a fork server is not between the two."""
    return sys.platform == "linux" and multiprocessing.get_start_method() != "forkserver"


def _free(lock: Path) -> None:
    """Removes, of our own, the shared memory of the process whose lock this is, and the lock."""
    for file in (*_SHARED.glob(f"{lock.name.replace('cyclemlp', 'paddle')}_*"), lock):
        with contextlib.suppress(FileNotFoundError):  # the trainer removes what it reads
            if file.lstat().st_uid == os.getuid():
                file.unlink()
