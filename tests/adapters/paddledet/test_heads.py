"""Each detector trains on our backbone, every parameter of it moves, and the masks' loss sees run-length codes."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest

from tests.adapters.tiny_det import DETECTORS, cyclemlp, write_config, write_data

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("detector", DETECTORS)
def test_detector_trains_evaluates_and_moves_the_whole_backbone(tmp_path, detector):
    write_data(tmp_path)
    config = write_config(tmp_path, detector, RetinaHead={"prior_prob": 0.1}, snapshot_epoch=1)
    status, output = cyclemlp("det", "train", "-c", config, "--eval", "--enable_ce", cwd=tmp_path)
    assert status == 0, output
    losses = [float(loss) for loss in re.findall(r" loss: (\d+\.\d+)", output)]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    kinds = re.findall(r"Evaluate annotation type \*(\w+)\*", output)
    assert kinds == (["bbox", "segm"] if "mask" in detector else ["bbox"]) * 2
    first, last = (paddle.load(str(tmp_path / "out" / detector / f"{name}.pdparams")) for name in ("0", "model_final"))
    still = [name for name in first if np.array_equal(first[name].numpy(), last[name].numpy())]
    assert [name for name in still if name.startswith("backbone.")] == []
    assert "backbone.patch_embed.proj.weight" in first
