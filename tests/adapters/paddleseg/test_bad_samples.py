"""One bad sample ends a training within a minute: exit status 1, the file and the reason, checkpoints as they were."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.adapters.tiny_seg import SEMANTIC_FPN, SIZE, cyclemlp, write_config, write_data

LABEL = np.zeros((SIZE, SIZE), np.uint8)


def missing_image(folder):
    (folder / "0.png").unlink()
    return "0_label.png: [Errno 2] No such file"


def undecodable_image(folder):
    (folder / "0.png").write_bytes(b"no picture")
    return "0_label.png: cannot identify image file"


def torn_mask(folder):
    path = folder / "0_label.png"
    path.write_bytes(path.read_bytes()[:-30])
    return "0_label.png: "


def smaller_mask(folder):
    Image.fromarray(LABEL[:50]).save(folder / "0_label.png")
    return "0_label.png: ValueError: the image is 64 x 64, its mask 64 x 50; make them equal"


def turned_mask(folder):
    Image.new("RGB", (32, 128)).save(folder / "0.png")
    return "the image is 32 x 128, its mask 64 x 64; make them equal"


def colours(folder):
    Image.fromarray(np.stack([LABEL] * 3, 2)).save(folder / "0_label.png")
    return "the mask has the bands R, G, B; it takes one"


def label_out_of_range(folder):
    Image.fromarray(LABEL + 3).save(folder / "0_label.png")
    return "the mask has the label 3; num_classes: 3 takes 0 to 2, and 255, the ignore_index"


BAD = [missing_image, undecodable_image, torn_mask, smaller_mask, turned_mask, colours, label_out_of_range]
BOTH = [(bad, workers) for bad in BAD for workers in ((0, 2) if bad is missing_image else (len(bad.__name__) % 2 * 2,))]


def train(folder, *, workers=0, timeout=60, **environment):
    config = write_config(folder, SEMANTIC_FPN, iters=8)
    flags = ["--config", config, "--num_workers", workers, "--save_interval", 1, "--save_dir", folder / "out"]
    return cyclemlp("seg", "train", *flags, cwd=folder, timeout=timeout, **environment)


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "workers"), BOTH)
def test_training_ends_and_names_the_file(tmp_path, bad, workers):
    write_data(tmp_path)
    message = bad(tmp_path)
    kept = tmp_path / "out" / "iter_1" / "model.pdopt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    run = train(tmp_path, workers=workers)
    assert run.returncode == 1
    assert message in run.stderr.rpartition(f"cyclemlp seg: error: {tmp_path / '0.png'} with ")[2]
    assert "`cyclemlp data check --config FILE` lists all such samples" in run.stderr
    assert kept.is_file()


@pytest.mark.slow
def test_without_the_repair_training_waits_for_ever(tmp_path):
    write_data(tmp_path)
    missing_image(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        train(tmp_path, timeout=25, CYCLEMLP_PADDLESEG_REPAIRS_OFF="lost_errors")
    assert b"AttributeError: 'NoneType' object has no attribute 'astype'" in raised.value.stderr
