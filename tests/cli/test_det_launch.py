"""`cyclemlp det` under paddle.distributed.launch: two CPU processes with gloo end with the same weights."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import paddle
import pytest

from cyclemlp_backbones.cli import main
from tests.adapters.tiny_det import write_config, write_data
from tests.adapters.tiny_seg import python

pytestmark = pytest.mark.slow

# What PaddleDetection's tools/train.py does; and each rank tells what it has at the end.
SCRIPT = """
import sys
import paddle
from ppdet.core.workspace import load_config
from ppdet.engine import Trainer, init_parallel_env

if __name__ == "__main__":
    paddle.set_device("cpu")
    config = load_config(sys.argv[1])
    init_parallel_env()
    rank, save = paddle.distributed.get_rank(), paddle.save

    def announcing_save(state, path):
        print("rank", rank, "wrote", path, file=sys.stderr)
        save(state, path)

    paddle.save = announcing_save
    trainer = Trainer(config, mode="train")
    first = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    save(first, f"{sys.argv[2]}/first{rank}.pdparams")
    save(trainer.model.state_dict(), f"{sys.argv[2]}/rank{rank}.pdparams")
"""


def launch(config, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["det", "--launcher"]) == 0
    folder = config.parent
    processes = ["--nproc_per_node", 2, "--backend", "gloo", "--log_dir", folder / "log"]
    command = ["-m", "paddle.distributed.launch", *processes, printed.getvalue().strip(), "det", *arguments]
    run = python(*command, cwd=folder, OMP_NUM_THREADS="1")
    logs = [(folder / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert run.returncode == 0, run.stdout + run.stderr + logs[1]
    return logs


def weights(path):
    return {name: np.asarray(value) for name, value in paddle.load(str(path), return_numpy=True).items()}


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_two_processes_train_by_the_command(tmp_path, detector):
    write_data(tmp_path)
    config = write_config(tmp_path, detector, TrainReader={"batch_size": 1})
    logs = launch(config, "train", "-c", config)
    assert logs[0].count("Epoch: [") == 4  # two epochs of four images, two at a time
    assert "Epoch: [" not in logs[1]
    assert (tmp_path / "out" / detector / "model_final.pdparams").is_file()


# With overlaps that no box reaches, the cascade's later box heads have nothing to learn from in any batch.
@pytest.mark.parametrize(
    ("detector", "changes"),
    [
        ("retinanet", {"CycleMLP": {"frozen_stages": 1, "use_recompute": True}}),
        ("cascade_mask_rcnn", {"BBoxAssigner": {"cascade_iou": [0.5, 0.98, 0.99]}}),
    ],
)
def test_both_ranks_have_the_same_weights_and_rank_0_alone_writes(tmp_path, detector, changes):
    write_data(tmp_path)
    config = write_config(tmp_path, detector, TrainReader={"batch_size": 1}, **changes)
    script = tmp_path / "tools" / "train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    logs = launch(config, script, config, tmp_path)
    first, last = ([weights(tmp_path / f"{kind}{rank}.pdparams") for rank in range(2)] for kind in ("first", "rank"))
    for name, value in last[0].items():
        np.testing.assert_array_equal(value, last[1][name], err_msg=name)
    moved = [name for name, value in last[0].items() if not np.array_equal(value, first[0][name])]
    frozen = detector == "retinanet"
    assert ("backbone.network.0.0.mlp.fc1.weight" in moved) != frozen
    assert "backbone.network.6.0.mlp.fc1.weight" in moved
    assert f"rank 0 wrote {tmp_path / 'out' / detector / 'model_final.pdparams'}" in logs[0]
    assert "wrote" not in logs[1]
