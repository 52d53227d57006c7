import numpy as np
import paddle
import pytest

from classification.config import DistillationConfig
from classification.losses import (
    cross_entropy,
    hard_distillation,
    soft_distillation,
    soft_target_cross_entropy,
    training_losses,
)

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
    loss = soft_distillation(student, tensor(TEACHER), tau, direction=direction, reduction="batchmean")
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
        return float(
            soft_distillation(tensor(student), tensor(TEACHER), 2.0, direction=direction, reduction="batchmean")
        )

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


@pytest.mark.parametrize("spread", [1, 30, 300, 1e4])
def test_losses_of_large_logits_are_those_of_float64(spread):
    """Paddle's log_softmax ends at -64; the losses of untrained or diverging networks do not."""
    rng = np.random.default_rng(2)
    logits, teacher = (rng.standard_normal((16, 1000)).astype("float32") * np.float32(spread) for _ in range(2))
    targets, labels = rng.dirichlet(np.full(1000, 0.1), 16), rng.integers(1000, size=16)
    own, others = log_softmax(logits.astype(np.float64)), log_softmax(teacher.astype(np.float64))
    student = tensor(logits, gradient=True)
    loss = soft_target_cross_entropy(student, tensor(targets))
    loss.backward()
    assert float(loss) == pytest.approx(-(targets * own).sum(1).mean(), rel=1e-5)
    assert student.grad.numpy() == pytest.approx((np.exp(own) - targets) / 16, abs=1e-6)
    losses = cross_entropy(tensor(logits), paddle.to_tensor(labels)).numpy()
    assert losses == pytest.approx(-own[np.arange(16), labels], rel=1e-5, abs=1e-5)
    decided = -own[np.arange(16), teacher.argmax(1)].mean()
    assert float(hard_distillation(tensor(logits), tensor(teacher))) == pytest.approx(decided, rel=1e-5)
    for direction, expected in (("forward", kl(others, own)), ("reverse", kl(own, others))):
        soft = soft_distillation(tensor(logits), tensor(teacher), 1.0, direction=direction, reduction="batchmean")
        assert float(soft) == pytest.approx(expected, rel=1e-5)


def test_what_all_logits_of_a_sample_have_in_common_costs_no_digits():
    """A softmax does not see it; float32 does, where it is not taken away first."""
    offsets = np.array([4096, -4096, 65536, 0]).reshape(4, 1)
    logits = np.round(STUDENT * 64) / 64  # float32 holds these with each of the offsets
    expected = -(TARGETS * log_softmax(logits)).sum(1).mean()
    assert float(soft_target_cross_entropy(tensor(logits + offsets), tensor(TARGETS))) == pytest.approx(expected, 1e-6)


def test_the_authors_reduction_divides_by_the_classes_too():
    config = DistillationConfig(type="soft", tau=3.0, reduction="mean")
    losses = training_losses(tensor(STUDENT), tensor(TARGETS), tensor(TEACHER), config)
    expected = 9 * kl(log_softmax(TEACHER / 3), log_softmax(STUDENT / 3)) / 7
    assert float(losses["distillation"]) == pytest.approx(expected, rel=1e-5)
