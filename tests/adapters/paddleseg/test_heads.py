"""PaddleSeg's own heads, and ours, train on our backbone; a resumed run ends where an uninterrupted one does."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from cyclemlp_backbones.cli import main
from tests.adapters.tiny_seg import SEMANTIC_FPN, write_config, write_data

WIDTHS = [32, 64, 160, 256]
HEADS = {
    "SemanticFPN": SEMANTIC_FPN,
    "PFPNNet": {"type": "PFPNNet", "backbone_indices": [0, 1, 2, 3], "channels": 32, "fpn_inplanes": WIDTHS},
    "UPerNet": {"type": "UPerNet", "backbone_indices": [0, 1, 2, 3], "channels": 32},
    "SegFormer": {"type": "SegFormer", "embedding_dim": 32},
}


class OrderedBatchSampler(paddle.io.DistributedBatchSampler):
    """Never shuffles: PaddleSeg's resumed runs begin with the first epoch's order again, whatever the iteration."""

    def __init__(self, dataset, batch_size, shuffle=False, **arguments):
        super().__init__(dataset, batch_size, shuffle=False, **arguments)


class NoDropout(paddle.nn.Layer):
    def __init__(self, p=0.5):
        super().__init__()

    def forward(self, x):
        return x


def train(config, save_dir, *flags):
    with paddle.utils.unique_name.guard():  # names as in a fresh process; the optimizer's state is stored by them
        assert main(["seg", "train", "--config", str(config), "--save_dir", str(save_dir), *map(str, flags)]) == 0


@pytest.mark.parametrize("head", HEADS)
def test_two_steps_and_two_resumed_equal_four(tmp_path, monkeypatch, head):
    monkeypatch.setattr(paddle.io, "DistributedBatchSampler", OrderedBatchSampler)
    monkeypatch.setattr(paddle.nn, "Dropout2D", NoDropout)
    write_data(tmp_path)
    config = write_config(tmp_path, HEADS[head])
    train(config, tmp_path / "whole", "--save_interval", 2, "--seed", 1)
    train(config, tmp_path / "resumed", "--resume_model", tmp_path / "whole" / "iter_2", "--seed", 2)
    states = {
        name: paddle.load(str(tmp_path / name / "model.pdparams"))
        for name in ("whole/iter_2", "whole/iter_4", "resumed/iter_4")
    }
    halfway, whole, resumed = states.values()
    for name in whole:
        np.testing.assert_array_equal(resumed[name].numpy(), whole[name].numpy(), err_msg=name)
    moved = [name for name in whole if not np.array_equal(halfway[name].numpy(), whole[name].numpy())]
    assert any(name.startswith("backbone.") for name in moved)
    assert any(not name.startswith("backbone.") for name in moved)
