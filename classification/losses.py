"""The loss of the task and of distillation (Hinton et al., 2015; Touvron et al., 2021)."""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor

from .config import DistillationConfig


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits and target probabilities [N, K] -> the mean over the batch of -sum target log softmax(logits)."""
    return -(targets * F.log_softmax(logits.astype("float32"), axis=1)).sum(axis=1).mean()


def soft_distillation(student: Tensor, teacher: Tensor, tau: float, *, direction: str = "forward") -> Tensor:
    """tau² KL between the distributions of logits / tau [N, K], summed over classes, averaged over the batch.

    "forward" is KL(teacher || student), "reverse" KL(student || teacher).
    """
    log_student = F.log_softmax(student.astype("float32") / tau, axis=1)
    log_teacher = F.log_softmax(teacher.astype("float32") / tau, axis=1)
    true, other = (log_teacher, log_student) if direction == "forward" else (log_student, log_teacher)
    return (true.exp() * (true - other)).sum(axis=1).mean() * (tau * tau)


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of student logits [N, K] with the teacher's decisions."""
    return F.cross_entropy(student.astype("float32"), teacher.argmax(axis=1))


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
        distillation = soft_distillation(logits, teacher_logits, config.tau, direction=config.direction)
    else:
        distillation = hard_distillation(logits, teacher_logits)
    return {"loss": task * (1 - config.alpha) + distillation * config.alpha, "task": task, "distillation": distillation}
