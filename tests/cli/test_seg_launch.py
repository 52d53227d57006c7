"""`cyclemlp seg` under paddle.distributed.launch: two CPU processes with gloo, against one with the doubled batch.

All images are the same and only the labels differ. Then the batch statistics of BatchNorm, which a CPU does not
synchronise, agree whichever images a process gets, and the mean of the processes' gradients is that of the joint batch:
BatchNorm's backward is linear in the incoming gradient. What remains is rounding, which momentum SGD does not amplify.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import paddle
import pytest

from cyclemlp_backbones.cli import main
from tests.adapters.tiny_seg import NUM_CLASSES, SEMANTIC_FPN, python, write_config, write_data

pytestmark = pytest.mark.slow

TOLERANCE = 5e-5  # measured: 2e-6; without the other process's gradients 0.5
ITERS = 3

SCRIPT = """
import sys
import paddle
from paddleseg.core import train
from paddleseg.cvlibs import Config, SegBuilder

if __name__ == "__main__":
    config, save_dir = sys.argv[1:]
    config = Config(config, batch_size=1)
    builder = SegBuilder(config)
    rank, save = paddle.distributed.get_rank(), paddle.save

    def announcing_save(state, path):
        print("rank", rank, "wrote", path, file=sys.stderr)
        save(state, path)

    paddle.save = announcing_save
    train(
        model=builder.model, train_dataset=builder.train_dataset, optimizer=builder.optimizer, losses=builder.loss,
        save_dir=save_dir, iters=config.iters, batch_size=config.batch_size,
    )
    save(builder.model.state_dict(), f"{save_dir}/rank{rank}.pdparams")
"""


def weights(path):
    return {name: value.numpy() for name, value in paddle.load(str(path)).items()}


def largest_difference(some, others):
    return max(np.abs(some[name].astype("float64") - others[name]).max() for name in others)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    from cyclemlp_backbones.adapters.paddleseg import SemanticFPN, manager

    folder = tmp_path_factory.mktemp("launch")
    write_data(folder, images=6, same_image=True)
    paddle.seed(7)
    start = SemanticFPN(NUM_CLASSES, manager.BACKBONES["CycleMLP_B0"]())
    paddle.save(start.state_dict(), str(folder / "start.pdparams"))
    return write_config(
        folder,
        {**SEMANTIC_FPN, "pretrained": str(folder / "start.pdparams")},
        iters=ITERS,
        optimizer={"type": "SGD", "momentum": 0.9, "weight_decay": 0.0001},
        lr_scheduler={"type": "PolynomialDecay", "learning_rate": 0.05, "end_lr": 0, "power": 0.9},
    )


@pytest.fixture(scope="module")
def one_process(config):
    """Weights after training in one process with batches of two."""
    assert main(["seg", "train", "--config", str(config), "--save_dir", str(config.parent / "one")]) == 0
    return weights(config.parent / "one" / f"iter_{ITERS}" / "model.pdparams")


def launch(config, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["seg", "--launcher"]) == 0
    processes = ["--nproc_per_node", 2, "--backend", "gloo", "--log_dir", config.parent / "log"]
    command = ["-m", "paddle.distributed.launch", *processes, printed.getvalue().strip(), "seg", *arguments]
    run = python(*command, cwd=config.parent, OMP_NUM_THREADS="1")
    logs = [(config.parent / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert run.returncode == 0, run.stdout + run.stderr + logs[1]
    return logs


def test_two_processes_train_like_one_with_the_doubled_batch(config, one_process):
    start = weights(config.parent / "start.pdparams")
    save_dir = config.parent / "two"
    logs = launch(config, "train", "--config", config, "--batch_size", 1, "--save_dir", save_dir, "--log_iters", 1)
    two = weights(save_dir / f"iter_{ITERS}" / "model.pdparams")
    assert largest_difference(two, one_process) <= TOLERANCE
    assert largest_difference(start, one_process) > 100 * TOLERANCE
    assert f"iter: {ITERS}/{ITERS}" in logs[0]
    assert "[TRAIN]" not in logs[1]


def test_a_checkouts_script_gives_both_ranks_equal_weights_and_rank_0_alone_writes(config, one_process):
    script = config.parent / "tools" / "train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    save_dir = config.parent / "script"
    logs = launch(config, script, config, save_dir)
    ranks = [weights(save_dir / f"rank{rank}.pdparams") for rank in range(2)]
    assert largest_difference(*ranks) == 0
    assert largest_difference(ranks[1], one_process) <= TOLERANCE
    assert f"rank 0 wrote {save_dir / f'iter_{ITERS}' / 'model.pdparams'}" in logs[0]
    assert "wrote" not in logs[1]
