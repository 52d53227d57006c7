import numpy as np
import paddle
import pytest

from classification.config import DistillationConfig
from classification.losses import hard_distillation, soft_distillation, soft_target_cross_entropy, training_losses

RNG = np.random.default_rng(1)
STUDENT, TEACHER = RNG.standard_normal((4, 7)), RNG.standard_normal((4, 7))
TARGETS = RNG.dirichlet(np.ones(7), 4)


def log_softmax(x):
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(1).mean()


def tensor(array, gradient=False):
    return paddle.to_tensor(array.astype("float32"), stop_gradient=not gradient)


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_soft_distillation_value_and_gradient(tau, direction):
    def expected(student):
        pair = log_softmax(TEACHER / tau), log_softmax(student / tau)
        return tau**2 * (kl(*pair) if direction == "forward" else kl(*pair[::-1]))

    student = tensor(STUDENT, gradient=True)
    loss = soft_distillation(student, tensor(TEACHER), tau, direction=direction)
    loss.backward()
    assert float(loss) == pytest.approx(expected(STUDENT), rel=1e-5)
    for n, k in np.ndindex(STUDENT.shape):
        step = np.zeros_like(STUDENT)
        step[n, k] = 1e-5
        numeric = (expected(STUDENT + step) - expected(STUDENT - step)) / 2e-5
        assert student.grad.numpy()[n, k] == pytest.approx(numeric, abs=2e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_soft_distillation_vanishes_only_when_student_equals_teacher(direction):
    def loss(student):
        return float(soft_distillation(tensor(student), tensor(TEACHER), 2.0, direction=direction))

    assert loss(TEACHER) == pytest.approx(0, abs=1e-6)
    assert loss(TEACHER + 5) == pytest.approx(0, abs=1e-6)  # the same distribution
    for n, k in np.ndindex(TEACHER.shape):
        changed = TEACHER.copy()
        changed[n, k] += 0.2
        assert loss(changed) > 1e-5


def test_cross_entropies():
    expected = -(TARGETS * log_softmax(STUDENT)).sum(1).mean()
    assert float(soft_target_cross_entropy(tensor(STUDENT), tensor(TARGETS))) == pytest.approx(expected, rel=1e-5)
    decided = -log_softmax(STUDENT)[np.arange(4), TEACHER.argmax(1)].mean()
    assert float(hard_distillation(tensor(STUDENT), tensor(TEACHER))) == pytest.approx(decided, rel=1e-5)


@pytest.mark.parametrize("kind", ["none", "soft", "hard"])
def test_losses_are_reported_by_name_and_weighed_by_alpha(kind):
    config = DistillationConfig(type=kind, alpha=0.3, tau=2.0)
    tensors = training_losses(tensor(STUDENT), tensor(TARGETS), tensor(TEACHER), config)
    losses = {name: float(value) for name, value in tensors.items()}
    if kind == "none":
        assert losses["loss"] == losses["task"]
        assert "distillation" not in losses
    else:
        assert losses["loss"] == pytest.approx(0.7 * losses["task"] + 0.3 * losses["distillation"])
    with pytest.raises(ValueError, match="as many classes"):
        training_losses(tensor(STUDENT), tensor(TARGETS), tensor(TEACHER[:, :3]), DistillationConfig(type="soft"))
