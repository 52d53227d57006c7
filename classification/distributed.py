"""The processes of a run: started by paddle.distributed.launch, or one alone."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from cyclemlp_backbones.checks import check_launch_port


@dataclass(frozen=True)
class World:
    """This process' `rank` among `size`. Its sums and gathers take part in by all, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes, float64 (exact for counts)."""
        return np.sum(self.gather(np.asarray(values, np.float64)), axis=0)

    def gather(self, value: Any) -> list[Any]:
        """Every process' value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = []
        dist.all_gather_object(values, value)
        return values

    def mean_tensor(self, values: paddle.Tensor) -> paddle.Tensor:
        """The mean over all processes, on the device."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(device: str = "auto", *, distributed: bool = True) -> World:
    """Chooses the device, and joins the processes that paddle.distributed.launch has started."""
    processes = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    if processes > 1 and not distributed:
        raise ValueError(
            f"run.distributed is false, but paddle.distributed.launch started {processes} processes; "
            "set it to true, or start one process without launch"
        )
    if device != "auto":
        paddle.set_device(device)
    elif paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        paddle.set_device(f"gpu:{dist.ParallelEnv().device_id}")
    else:
        paddle.set_device("cpu")
    if processes == 1:
        return World()
    check_launch_port()
    dist.init_parallel_env()
    return World(dist.get_rank(), dist.get_world_size())


def leave_if_several(status: int, message: str) -> None:
    """Ends this process at once, after `message`, if it is one of several. The interpreter's own end waits for threads
    of the communication, which in turn wait for processes that have failed too."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.write(message)
        sys.stderr.flush()
        os._exit(status)
