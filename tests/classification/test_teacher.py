import sys
import types

import numpy as np
import paddle
import pytest
from paddle import nn

from classification.config import DistillationConfig
from classification.metrics import correct_counts
from classification.teacher import BATCHES_WATCHED, Teacher, build_teacher, is_near_chance
from classification.trainer import Trainer
from cyclemlp_backbones import CheckpointError
from tests.classification.tiny import tiny_config


def config(**settings):
    return DistillationConfig(type="soft", **settings)


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory):
    """The weights file of a small network of paddle.vision.models."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pdparams"
    paddle.seed(0)
    paddle.save(paddle.vision.models.shufflenet_v2_x0_25(num_classes=10).state_dict(), str(path))
    return str(path)


def test_a_teacher_of_paddle_vision_is_loaded_strictly_frozen_and_in_eval_mode(shufflenet):
    teacher = build_teacher(config(teacher="shufflenet_v2_x0_25", teacher_weights=shufflenet), num_classes=10)
    assert not teacher.training
    assert all(parameter.stop_gradient for parameter in teacher.parameters())
    saved = paddle.load(shufflenet)
    assert all(np.array_equal(tensor.numpy(), saved[name].numpy()) for name, tensor in teacher.state_dict().items())
    with pytest.raises(CheckpointError, match=r"(?s)the teacher shufflenet_v2_x0_33.*misshapen"):
        build_teacher(config(teacher="shufflenet_v2_x0_33", teacher_weights=shufflenet), num_classes=10)
    with pytest.raises(ValueError, match="teacher_weights is not set"):
        build_teacher(config(teacher="shufflenet_v2_x0_25"), num_classes=10)


def test_an_unknown_teacher_and_a_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"unknown teacher 'RegNetX_4GF'.*pip install --no-deps paddleclas==2.6.0"):
        build_teacher(config(teacher_weights="x"), num_classes=10)
    with pytest.raises(ValueError, match="there is no exported model"):
        build_teacher(config(teacher=str(tmp_path / "model.json")), num_classes=10)


def test_paddleclas_keeps_ppcls_within_its_own_folder(monkeypatch, tmp_path):
    """A stand-in with the release's layout; the real one is tested in an environment of its own."""
    package = tmp_path / "paddleclas" / "ppcls" / "arch" / "backbone"
    package.mkdir(parents=True)
    (tmp_path / "paddleclas" / "__init__.py").write_text("raise ImportError('needs faiss and more')\n")
    (package / "__init__.py").write_text(
        "from paddle import nn\n"
        "from ppcls.utils import logger\n"
        "def RegNetX_4GF(class_num):\n"
        "    logger._logger.warning('logs at its construction')\n"
        "    return nn.Linear(3, class_num)\n"
    )
    (tmp_path / "paddleclas" / "ppcls" / "utils").mkdir()
    (tmp_path / "paddleclas" / "ppcls" / "utils" / "logger.py").write_text("_logger = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = {name for name in sys.modules if name.split(".")[0] in ("ppcls", "paddleclas")}
    assert not kept
    try:
        paddle.save(nn.Linear(3, 10).state_dict(), str(tmp_path / "teacher.pdparams"))
        teacher = build_teacher(config(teacher_weights=str(tmp_path / "teacher.pdparams")), num_classes=10)
        assert teacher.weight.shape == [3, 10]
        with pytest.raises(ValueError, match="PaddleClas' architectures"):
            build_teacher(config(teacher="ResNet_9000", teacher_weights="x"), num_classes=10)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "ppcls"]:
            del sys.modules[name]


def test_an_exported_model_teaches(tmp_path):
    paddle.seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10), nn.Dropout(0.5))
    network.eval()
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32")]
    paddle.jit.save(network, str(tmp_path / "exported"), input_spec=spec)
    teacher = build_teacher(config(teacher=str(tmp_path / "exported")), num_classes=10)
    images = paddle.randn([4, 3, 32, 32])
    targets = paddle.ones([4, 10])
    logits = Teacher(teacher, num_classes=10).logits(images, targets)
    assert logits.stop_gradient
    assert np.abs(logits.numpy() - network(images).numpy()).max() < 1e-5
    with pytest.raises(ValueError, match="leave teacher_weights out"):
        build_teacher(config(teacher=str(tmp_path / "exported"), teacher_weights="x"), num_classes=10)


@pytest.mark.parametrize("good", [True, False])
def test_a_teacher_near_chance_draws_a_warning(good, caplog):
    targets = paddle.nn.functional.one_hot(paddle.arange(40) % 10, 10)
    answer = targets if good else targets.roll(1, 1)
    teacher = Teacher(lambda images: answer, num_classes=10)
    for _ in range(BATCHES_WATCHED + 3):
        teacher.logits(paddle.zeros([40, 3, 32, 32]), targets)
    assert ("chance is 10.0 %" in caplog.text) == (not good)
    assert caplog.text.count("the teacher names") == (0 if good else 1)
    assert [is_near_chance(accuracy, 1000) for accuracy in (0.001, 0.09, 0.11)] == [True, True, False]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_teacher_sees_the_students_mixed_batch(kind, digits, tmp_path, shufflenet):
    changes = {
        "distillation__type": kind,
        "distillation__teacher": "shufflenet_v2_x0_25",
        "distillation__teacher_weights": shufflenet,
    }
    trainer = Trainer(tiny_config(digits, tmp_path, **changes))
    seen = types.SimpleNamespace(teacher=[], student=[])
    trainer.teacher.model.register_forward_pre_hook(lambda _, inputs: seen.teacher.append(inputs[0].numpy()))
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.student.append(inputs[0].numpy()))
    before = {name: tensor.numpy() for name, tensor in trainer.teacher.model.state_dict().items()}
    trainer.parallel.train()
    values = trainer._train_step([next(trainer._micro_batches())], 1e-3)
    assert np.array_equal(seen.teacher[0], seen.student[0])
    assert values["loss"] == pytest.approx((values["task"] + values["distillation"]) / 2, rel=1e-5)
    after = trainer.teacher.model.state_dict()
    assert all(np.array_equal(before[name], tensor.numpy()) for name, tensor in after.items())  # no running statistics
    assert not trainer.teacher.model.training


def test_top_1_and_top_5_count_labels_among_the_first():
    logits = paddle.to_tensor(np.tile(np.arange(8, 0, -1, dtype=np.float32), (4, 1)))  # ranked 0, 1, 2, …
    assert correct_counts(logits, paddle.to_tensor([0, 4, 5, 1])) == (1, 3)
    assert correct_counts(logits[:, :3], paddle.to_tensor([0, 2, 1, 1])) == (1, 4)
