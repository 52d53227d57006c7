"""Repairs of PaddleSeg releases, each applied only where the installed one fails.

PaddleSeg 2.8.0 is the newest release on PyPI and predates Paddle 2.6 and 3. Each repair probes the behaviour that it
mends, so that a release without the defect is left alone. For debugging, the environment variable
CYCLEMLP_PADDLESEG_REPAIRS_OFF holds names of repairs to leave out, separated by commas.
"""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
import paddleseg.core
from paddle import Tensor
from paddleseg.deploy.infer import DeployConfig
from paddleseg.models.losses.cross_entropy_loss import CrossEntropyLoss
from paddleseg.utils import metrics

from cyclemlp_backbones.adapters.repairs import Repairs, fails

REPAIRS = Repairs("paddleseg", "CYCLEMLP_PADDLESEG_REPAIRS_OFF")


def _cross_entropy_mixes_dtypes() -> bool:
    image, label = paddle.zeros([1, 2, 1, 1]), paddle.zeros([1, 1, 1], dtype="int64")
    losses = (CrossEntropyLoss(), CrossEntropyLoss(weight=[1.0, 1.0]))
    return any(fails(functools.partial(loss, image, label), TypeError) for loss in losses)


def _mean_over_valid_pixels(
    self: CrossEntropyLoss, logit: Tensor, label: Tensor, semantic_weights: Tensor | None, loss: Tensor
) -> Tensor:
    """`CrossEntropyLoss._post_process_loss` in one floating dtype.

    `logit` [N, H, W, C], `label` [N, H, W], `loss` per pixel -> scalar: the mean of the loss, weighted by the classes'
    weights, over valid pixels or over the hardest `top_k_percent_pixels` of all.
    """
    valid = (label != self.ignore_index).astype("float32")
    counted = valid if self.avg_non_ignore else paddle.ones_like(valid)
    loss = loss.reshape(valid.shape) * counted
    if semantic_weights is not None:
        loss = loss * semantic_weights
    coefficient = paddle.ones_like(valid)
    if self.weight is not None:
        classes = label * counted.astype(label.dtype)
        coefficient = (F.one_hot(classes, logit.shape[-1]) * self.weight).sum(axis=-1)
    if self.top_k_percent_pixels == 1.0:
        return loss.mean() / ((counted * coefficient).mean() + self.EPS)
    hardest, index = loss.flatten().topk(int(self.top_k_percent_pixels * loss.size))
    return hardest.mean() / (coefficient.flatten().gather(index).detach().mean() + self.EPS)


@REPAIRS.row(
    "cross_entropy_dtype", until="PaddleSeg 2.9.1, which casts mask and coef", needed=_cross_entropy_mixes_dtypes
)
def _repair_cross_entropy() -> None:
    """CrossEntropyLoss multiplies float32 by int64, a TypeError on Paddle 3."""
    CrossEntropyLoss._post_process_loss = _mean_over_valid_pixels


def _train_module() -> Any:
    return sys.modules["paddleseg.core.train"]  # the attribute of that name is the function


def _training_log_indexes_scalars() -> bool:
    source = inspect.getsource(_train_module())
    return "l[0] / log_iters" in source and paddle.zeros([]).numpy().ndim == 0


@REPAIRS.row(
    "training_log_scalar", until="PaddleSeg 2.9.1, which logs float(loss)", needed=_training_log_indexes_scalars
)
def _repair_training_log() -> None:
    """`train` takes element 0 of losses that have no axis, an IndexError since Paddle 2.6."""
    module = _train_module()
    compute = module.loss_computation

    @functools.wraps(compute)
    def one_element_losses(*args: object, **kwargs: object) -> list[Tensor]:
        return [loss.reshape([1]) for loss in compute(*args, **kwargs)]

    module.loss_computation = one_element_losses


def _checkpoints_want_an_evaluation() -> bool:
    """Whether the state beside a checkpoint names mean_iou, a local variable, before asking for a val_dataset."""
    save = inspect.getsource(_train_module()).partition("current_save_dir =")[2]
    return "'mIoU': mean_iou" in save.partition("if val_dataset is not None")[0]


@REPAIRS.row(
    "checkpoint_without_evaluation",
    until="PaddleSeg's develop of October 2024, which writes that state only where it evaluates",
    needed=_checkpoints_want_an_evaluation,
)
def _repair_checkpoints() -> None:
    """`train` without a val_dataset ends at its first checkpoint, an UnboundLocalError.

    Local variables can be given a value in the source only; it goes into an existing line, for tracebacks.
    """
    module = _train_module()
    source = inspect.getsource(module).replace(
        "    best_mean_iou = -1.0\n", "    best_mean_iou = -1.0; mean_iou = acc = ema_mean_iou = ema_acc = None\n"
    )
    exec(compile(source, module.__file__, "exec"), vars(module))
    paddleseg.core.train = module.train


def _areas_concatenate_scalars() -> bool:
    blank = paddle.zeros([1, 1, 1], dtype="int64")
    return fails(lambda: metrics.calculate_area(blank, blank, 2), ValueError)


def _calculate_area(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """`metrics.calculate_area`: pixels per class, int64 [num_classes], of intersection, prediction and truth."""
    pred, label = (x.squeeze(1) if len(x.shape) == 4 else x for x in (pred, label))
    if list(pred.shape) != list(label.shape):
        raise ValueError(
            f"the prediction has shape {list(pred.shape)}, the label {list(label.shape)}; they have to be equal"
        )
    valid = label != ignore_index
    areas = []
    for index in range(num_classes):
        predicted, true = (pred == index) & valid, label == index
        areas.append([mask.astype("int64").sum() for mask in (predicted & true, predicted, true)])
    intersection, prediction, truth = (paddle.stack(list(column)) for column in zip(*areas))
    return intersection, prediction, truth


@REPAIRS.row("areas_of_scalars", until="PaddleSeg 2.9.1, which stacks them", needed=_areas_concatenate_scalars)
def _repair_areas() -> None:
    """`calculate_area` concatenates tensors that have no axis, a ValueError since Paddle 2.6."""
    metrics.calculate_area = _calculate_area


def _deploy_names_another_program() -> bool:
    source = inspect.getsource(DeployConfig)
    return paddle.version.major != "2" and ".json" not in source


@REPAIRS.row(
    "deploy_program", until="not mended upstream (develop of October 2024)", needed=_deploy_names_another_program
)
def _repair_deploy() -> None:
    """The deploy.yaml of tools/export.py names model.pdmodel, where Paddle 3 writes model.json."""
    named = DeployConfig.model.fget

    def existing_program(self: DeployConfig) -> str:
        """The path of the exported program, under the suffix that it has: .pdmodel of Paddle 2, .json of Paddle 3."""
        path = Path(named(self))
        json = path.with_suffix(".json")
        return str(json if json.is_file() and not path.is_file() else path)

    DeployConfig.model = property(existing_program)
