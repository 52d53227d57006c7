"""Teachers: of paddle.vision.models, of this project, of PaddleClas, or exported ones."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import paddle
import paddle.vision.models
from paddle import Tensor, nn

from cyclemlp_backbones import CheckpointError, build_classifier, list_variants, load_weights

from .config import DistillationConfig

logger = logging.getLogger(__name__)

EXPORTED_SUFFIXES = (".json", ".pdmodel")
BATCHES_WATCHED = 10


def build_teacher(config: DistillationConfig, *, num_classes: int) -> nn.Layer:
    """The teacher that the configuration names, in eval mode, without gradients.

    Weights are loaded strictly, and needed but for an exported model, which has its own. ValueError for an unknown
    name, CheckpointError for weights that do not fit.
    """
    exported = exported_path(config.teacher)
    if exported is not None:
        if config.teacher_weights:
            raise ValueError("distillation.teacher is an exported model, with weights: leave teacher_weights out")
        teacher = paddle.jit.load(str(exported))
    else:
        teacher = _build_named(config.teacher, num_classes)
        if not config.teacher_weights:
            raise ValueError(
                f"distillation.teacher_weights is not set; give the weights file of the teacher {config.teacher}"
            )
        try:
            load_weights(teacher, config.teacher_weights)
        except CheckpointError as error:
            raise CheckpointError(f"the teacher {config.teacher}: {error}") from error
    teacher.eval()
    for parameter in teacher.parameters():
        parameter.stop_gradient = True
    return teacher


def exported_path(name: str) -> Path | None:
    """The prefix of an exported inference model's files, None if `name` is no such path."""
    path = Path(name)
    prefix = path.with_suffix("") if path.suffix in (*EXPORTED_SUFFIXES, ".pdiparams") else path
    if any(Path(f"{prefix}{suffix}").is_file() for suffix in EXPORTED_SUFFIXES):
        return prefix
    if path.suffix in EXPORTED_SUFFIXES or path.parent != Path():
        raise ValueError(
            f"there is no exported model {name}; give the path, without suffix, of the files {prefix}.json "
            f"(or .pdmodel) and {prefix}.pdiparams"
        )
    return None


def _build_named(name: str, num_classes: int) -> nn.Layer:
    short = name.lower().removeprefix("cyclemlp_")
    if short in list_variants():
        return build_classifier(short, num_classes=num_classes)
    if name in paddle.vision.models.__all__ and name == name.lower():
        return getattr(paddle.vision.models, name)(pretrained=False, num_classes=num_classes)
    architectures = _paddleclas()
    if architectures is None:
        raise ValueError(
            f"unknown teacher {name!r}: none of paddle.vision.models (resnet50, …), no CycleMLP variant, and "
            "PaddleClas is not installed: pip install --no-deps paddleclas==2.6.0"
        )
    build: Callable[..., nn.Layer] | None = getattr(architectures, name, None)
    if not callable(build) or name.startswith("_"):
        raise ValueError(
            f"unknown teacher {name!r}: none of paddle.vision.models (resnet50, …), of the CycleMLP variants, or of "
            "PaddleClas' architectures (RegNetX_4GF, ResNet50, …)"
        )
    return build(class_num=num_classes)


def _paddleclas() -> object | None:
    """PaddleClas' module of architectures, None without PaddleClas.

    Its release keeps the package `ppcls` within the folder `paddleclas`, and importing `paddleclas` itself needs much
    that a teacher does not.
    """
    spec = importlib.util.find_spec("ppcls") or importlib.util.find_spec("paddleclas")
    if spec is None or not spec.submodule_search_locations:
        return None
    if spec.name == "paddleclas":
        sys.path.append(next(iter(spec.submodule_search_locations)))
        importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            architectures = importlib.import_module("ppcls.arch.backbone")
            # Its own start sets this; without it, architectures that log at their construction fail.
            importlib.import_module("ppcls.utils.logger")._logger = logging.getLogger("ppcls")  # type: ignore[attr-defined]
            return architectures
    except ImportError as error:
        raise ImportError(
            f"PaddleClas is installed, but not usable ({error}): pip install {error.name or ''}"
        ) from error


class Teacher:
    """A teacher and how well it does on the first batches that it sees."""

    def __init__(self, model: nn.Layer, *, num_classes: int):
        self.model, self.num_classes = model, num_classes
        self._right, self._seen, self._batches = 0, 0, 0

    @paddle.no_grad()
    def logits(self, images: Tensor, targets: Tensor) -> Tensor:
        """Logits [N, K] of the (mixed) images. `targets` are the (mixed) labels, by which its accuracy is watched."""
        logits = self.model(images)
        if isinstance(logits, (list, tuple)):
            logits = logits[0]  # GoogLeNet's auxiliary heads
        if self._batches < BATCHES_WATCHED and list(logits.shape) == list(targets.shape):
            self._watch(int((logits.argmax(1) == targets.argmax(1)).sum()), logits.shape[0])
        return logits.detach()

    def _watch(self, right: int, seen: int) -> None:
        self._right, self._seen, self._batches = self._right + right, self._seen + seen, self._batches + 1
        if self._batches == BATCHES_WATCHED and is_near_chance(self._right / self._seen, self.num_classes):
            logger.warning(
                "the teacher names only %.1f %% of the first %d images rightly, where chance is %.1f %%: are its "
                "weights, its classes and the normalisation (data.mean, data.std) the right ones?",
                100 * self._right / self._seen,
                self._seen,
                100 / self.num_classes,
            )


def is_near_chance(accuracy: float, num_classes: int) -> bool:
    """Whether an accuracy, 0 to 1, is less than a tenth of the way from chance to perfect."""
    chance = 1 / num_classes
    return accuracy < chance + (1 - chance) / 10
