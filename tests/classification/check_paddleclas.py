"""The released wheel of PaddleClas as teacher, in an environment of its own: make test-paddleclas.

Its RegNet names its parameters itself, and so can be built once in a process.
"""

from importlib.metadata import version

import numpy as np
import paddle
import pytest

from classification.trainer import Trainer
from tests.classification.tiny import arguments, run_python, tiny_config

SAVE = """
import sys, paddle
from classification.teacher import _paddleclas
paddle.seed(0)
paddle.save(_paddleclas().RegNetX_4GF(class_num=1000).state_dict(), sys.argv[1])
"""


@pytest.fixture(scope="module")
def regnet(tmp_path_factory):
    """A file of weights of the predecessor's teacher."""
    path = tmp_path_factory.mktemp("teacher") / "RegNetX_4GF_pretrained.pdparams"
    run = run_python("-c", SAVE, path)
    assert run.returncode == 0, run.stderr
    return str(path)


def distillation(weights, **changes):
    return {"distillation__type": "hard", "distillation__teacher_weights": weights, **changes}


def test_the_predecessors_teacher_teaches(digits, regnet, tmp_path):
    assert version("paddleclas") == "2.6.0"
    trainer = Trainer(tiny_config(digits, tmp_path, **distillation(regnet), model__num_classes=1000))
    teacher = trainer.teacher.model
    state, saved = teacher.state_dict(), paddle.load(regnet)
    assert state.keys() == saved.keys()
    assert all(np.array_equal(state[name].numpy(), saved[name].numpy()) for name in saved)
    # Paddle counts the running statistics of BatchNorm as parameters; only their names tell them apart here.
    counted = [value for name, value in state.items() if not name.endswith(("._mean", "._variance"))]
    assert sum(int(np.prod(value.shape)) for value in counted) == 22_118_248
    trainer.parallel.train()
    values = trainer._train_step([next(trainer._micro_batches())], 1e-3)
    assert not teacher.training
    assert values["distillation"] > 0
    assert values["loss"] == pytest.approx((values["task"] + values["distillation"]) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "the teacher RegNetX_4GF"),  # of 10 classes
        ({"distillation__teacher": "ResNet18", "model__num_classes": 1000}, "the teacher ResNet18"),
        ({"distillation__teacher": "ResNet_9000"}, "unknown teacher 'ResNet_9000'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, message, digits, regnet, tmp_path):
    options = arguments(digits, tmp_path, **distillation(regnet, **changes))
    run = run_python("-m", "classification", "train", *options)
    assert run.returncode == 1
    assert message in run.stderr
