"""The loss of the task and of distillation (Hinton et al., 2015; Touvron et al., 2021)."""

from __future__ import annotations

import paddle
from paddle import Tensor

from .config import DistillationConfig


def log_softmax(logits: Tensor) -> Tensor:
    """Logits [N, K] -> log probabilities, float32. Paddle's own end at -64, which makes losses too small."""
    shifted = logits.astype("float32") - logits.detach().astype("float32").max(axis=1, keepdim=True)
    return shifted - paddle.logsumexp(shifted, axis=1, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [N, K] and labels [N] -> the loss of each sample [N]."""
    return -paddle.take_along_axis(log_softmax(logits), labels.unsqueeze(1), 1).squeeze(1)


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits and target probabilities [N, K] -> the mean over the batch of -sum target log softmax(logits)."""
    return -(targets * log_softmax(logits)).sum(axis=1).mean()


def soft_distillation(student: Tensor, teacher: Tensor, tau: float, *, direction: str, reduction: str) -> Tensor:
    """tau² KL between the distributions of logits / tau [N, K], summed over classes, averaged over the batch, or, with
    the reduction "mean", also over classes.

    "forward" is KL(teacher || student), "reverse" KL(student || teacher).
    """
    log_student, log_teacher = log_softmax(student / tau), log_softmax(teacher / tau)
    true, other = (log_teacher, log_student) if direction == "forward" else (log_student, log_teacher)
    terms = true.exp() * (true - other)
    return (terms.mean() if reduction == "mean" else terms.sum(axis=1).mean()) * (tau * tau)


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of student logits [N, K] with the teacher's decisions."""
    return cross_entropy(student, teacher.argmax(axis=1)).mean()


def training_losses(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor | None, config: DistillationConfig
) -> dict[str, Tensor]:
    """`loss`, what is minimised, and its parts `task` and, with a teacher, `distillation`."""
    task = soft_target_cross_entropy(logits, targets)
    if config.type == "none" or teacher_logits is None:
        return {"loss": task, "task": task}
    if list(logits.shape) != list(teacher_logits.shape):
        raise ValueError(
            f"the teacher's logits have shape {list(teacher_logits.shape)}, the student's {list(logits.shape)}; "
            "choose a teacher of as many classes as model.num_classes"
        )
    if config.type == "soft":
        how = {"direction": config.direction, "reduction": config.reduction}
        distillation = soft_distillation(logits, teacher_logits, config.tau, **how)
    else:
        distillation = hard_distillation(logits, teacher_logits)
    return {"loss": task * (1 - config.alpha) + distillation * config.alpha, "task": task, "distillation": distillation}
