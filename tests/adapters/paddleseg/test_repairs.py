"""Each repair: switched off alone, the defect's own error; switched on, the step works; not needed, not applied."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddleseg.models.losses.cross_entropy_loss import CrossEntropyLoss

from cyclemlp_backbones.adapters.paddleseg import register_paddleseg
from cyclemlp_backbones.adapters.paddleseg.repairs import REPAIRS
from tests.adapters.tiny_seg import SEMANTIC_FPN, cyclemlp, python, write_config, write_data

register_paddleseg(repair=True)

ERRORS = {
    "cross_entropy_dtype": "TypeError: (InvalidType) Type promotion",
    "training_log_scalar": "IndexError: too many indices for array",
    "areas_of_scalars": "The axis is expected to be in range of [0, 0)",
}
PADDLE_2 = paddle.version.major == "2"


def expected_status(name: str) -> str:
    """What the only release on PyPI, 2.8.0, needs on this Paddle."""
    of_paddle = {"cross_entropy_dtype": not PADDLE_2, "deploy_program": not PADDLE_2, "zlib_order": PADDLE_2}
    needed = {**of_paddle, "checkpoint_without_evaluation": False}.get(name, True)  # a defect of 2.9.1
    return "applied" if needed else "not needed"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repairs")
    write_data(folder)
    return write_config(folder, SEMANTIC_FPN)


def train(config, **environment):
    flags = ["--config", config, "--iters", "1", "--log_iters", "1", "--do_eval", "--save_dir", config.parent / "out"]
    return cyclemlp("seg", "train", *flags, cwd=config.parent, **environment)


def test_status_says_what_this_release_needs():
    assert REPAIRS.apply() == {repair.name: expected_status(repair.name) for repair in REPAIRS.rows}
    assert all(repair.until for repair in REPAIRS.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_without_the_repair_training_meets_the_defect(config, name):
    run = train(config, CYCLEMLP_PADDLESEG_REPAIRS_OFF=name)
    if expected_status(name) == "not needed":
        assert run.returncode == 0, run.stderr
    else:
        assert run.returncode == 1
        assert ERRORS[name] in run.stderr


@pytest.mark.slow
def test_with_all_repairs_training_logs_and_evaluates(config):
    run = train(config)
    assert run.returncode == 0, run.stderr
    assert "iter: 1/1, loss:" in run.stdout
    assert "ETA 00:00:00" in run.stdout
    assert "[EVAL] #Images: 4 mIoU:" in run.stdout


@pytest.mark.slow
def test_reading_a_png_needs_zlib_before_paddle_only_where_it_is_reported(tmp_path):
    """Imports in this order, then decodes: what our package's first line prevents."""
    decode = (
        "import io, sys; from PIL import Image; stream = io.BytesIO();"
        "Image.effect_noise((200, 200), 50).save(stream, 'png'); Image.open(stream).load(); print('decoded')"
    )
    assert "decoded" in python("-c", f"import cyclemlp_backbones; {decode}", cwd=tmp_path).stdout
    late = [sys.executable, "-c", f"import paddle; {decode}"]
    try:
        survives = "decoded" in subprocess.run(late, capture_output=True, text=True, timeout=120, check=False).stdout
    except subprocess.TimeoutExpired:
        survives = False
    assert survives == (expected_status("zlib_order") == "not needed")


OPEN_DEPLOYED = """
import sys
from cyclemlp_backbones.adapters.paddleseg import register_paddleseg
register_paddleseg(repair=True)
from paddleseg.deploy.infer import DeployConfig
open(DeployConfig(sys.argv[1]).model).close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("off", ["", "deploy_program"])
def test_deployment_finds_the_program_that_export_wrote(tmp_path, off):
    """What tools/export.py of release 2.8 leaves on this Paddle; deploy/python/infer.py opens the model's path."""
    (tmp_path / "deploy.yaml").write_text("Deploy: {model: model.pdmodel, params: model.pdiparams, transforms: []}")
    (tmp_path / ("model.pdmodel" if PADDLE_2 else "model.json")).touch()
    run = python("-c", OPEN_DEPLOYED, tmp_path / "deploy.yaml", cwd=tmp_path, **{REPAIRS.switch: off})
    if off and not PADDLE_2:
        assert f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path / 'model.pdmodel'}'" in run.stderr
    else:
        assert run.returncode == 0, run.stderr


def test_unknown_repair_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(REPAIRS.switch, "areas_of_scalars, cross_entropy")
    with pytest.raises(
        ValueError,
        match=r"names 'cross_entropy'; the repairs are zlib_order, yaml_code, pickle_code",
    ):
        REPAIRS.apply()


def plain_cross_entropy(logits, label, weight, ignore_index, top):
    """numpy: weighted mean of the negative log-likelihoods of valid pixels, or of the hardest share `top` of all."""
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses, weights = [], []
    for n, y, x in np.ndindex(label.shape):
        valid = label[n, y, x] != ignore_index
        target = label[n, y, x] if valid else 0
        losses.append(-log_softmax[n, target, y, x] * weight[target] * valid)
        weights.append(weight[target] * (valid if top == 1 else 1))
    order = np.argsort(losses)[::-1][: int(top * len(losses))]
    return np.array(losses)[order].sum() / np.array(weights)[order].sum()


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("top", [1.0, 0.5])
def test_cross_entropy_is_the_mean_over_valid_pixels(weight, top):
    random = np.random.RandomState(1)
    logits = random.standard_normal((2, 3, 4, 5)).astype("float32")
    label = random.randint(0, 3, (2, 4, 5))
    label[0, :2] = 255
    loss = CrossEntropyLoss(weight=weight, top_k_percent_pixels=top)
    actual = float(loss(paddle.to_tensor(logits), paddle.to_tensor(label)))
    assert actual == pytest.approx(plain_cross_entropy(logits, label, weight or [1.0] * 3, 255, top), rel=1e-5)


def test_areas_count_pixels_and_leave_ignored_ones_out():
    metrics = importlib.import_module("paddleseg.utils.metrics")
    prediction = paddle.to_tensor([[[[0, 1, 1], [2, 2, 0]]]])
    label = paddle.to_tensor([[[[0, 1, 2], [2, 255, 255]]]])
    intersection, predicted, true = metrics.calculate_area(prediction, label, 4)
    assert intersection.tolist() == [1, 1, 1, 0]
    assert predicted.tolist() == [1, 2, 1, 0]
    assert true.tolist() == [1, 1, 2, 0]
    with pytest.raises(ValueError, match="equal"):
        metrics.calculate_area(prediction, label[..., :2], 4)
