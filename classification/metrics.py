"""Top-1, top-5 and the loss over a list of images, exact for any number of processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from .augment import EvalTransform
from .config import Config
from .data import BrokenImages, EvalDataset, Samples, eval_loader
from .distributed import World
from .losses import cross_entropy

logger = logging.getLogger(__name__)

FIRST_IMAGES = 8


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent and the mean cross entropy over `images`, the readable ones; `broken` are left out.
    With fewer than five classes top-5 counts the label among all of them."""

    top1: float
    top5: float
    loss: float
    images: int
    broken: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "broken": len(self.broken)}


def correct_counts(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many of the labels [N] are first, and among the first five, of the logits [N, K]."""
    ranked = paddle.topk(logits, k=min(5, logits.shape[1]), axis=1)[1]
    hits = (ranked == labels.unsqueeze(1)).astype("int64")
    return int(hits[:, 0].sum()), int(hits.sum())


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    world: World,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Evaluation:
    """Evaluates this process' share and sums up over all. `batches` are (images, labels, indices, broken)."""
    was_training = model.training
    model.eval()
    sums, broken = np.zeros(4), []
    for images, labels, indices, unreadable in batches:
        bad = unreadable.numpy().astype(bool)
        broken += indices.numpy()[bad].tolist()
        if bad.all():
            continue
        with autocast():
            logits = model(images)
        kept = paddle.to_tensor(np.flatnonzero(~bad))
        logits, labels = logits.astype("float32").index_select(kept), labels.index_select(kept)
        sums[:2] += correct_counts(logits, labels)
        sums[2:] += float(cross_entropy(logits, labels).sum()), len(kept)
    if was_training:
        model.train()
    top1, top5, loss, images_seen = world.sum(sums)
    broken = sorted(index for share in world.gather(broken) for index in share)
    count = max(1, int(images_seen))
    return Evaluation(100 * top1 / count, 100 * top5 / count, loss / count, int(images_seen), tuple(broken))


def eval_batches(samples: Samples, config: Config, world: World) -> paddle.io.DataLoader:
    """This process' share of a list, by the configuration's pictures and batches."""
    dataset, data = EvalDataset(samples, EvalTransform(config.data, crop_pct=config.crop_pct)), config.data
    size = data.eval_batch_size or data.batch_size
    return eval_loader(dataset, batch_size=size, workers=data.workers, rank=world.rank, processes=world.size)


def check_first_images(samples: Samples, config: Config) -> None:
    """Reads some images, so that the wrong folder is noticed before an epoch is trained; ValueError as `check_broken`,
    and where none of them can be read."""
    dataset = EvalDataset(samples, EvalTransform(config.data, crop_pct=config.crop_pct))
    chosen = range(0, len(samples), max(1, len(samples) // FIRST_IMAGES))
    broken = BrokenImages(samples, config.data.max_broken)
    names = broken.add(index for index in chosen if dataset[index][3])
    if len(names) == len(chosen):
        raise ValueError(f"{names[0]} cannot be read, nor can others of the list; is data.val_images the right folder?")
    broken.check()


def check_broken(samples: Samples, result: Evaluation, config: Config) -> None:
    """Names the unreadable images of an evaluation; ValueError where they are more than `data.max_broken` allows."""
    broken = BrokenImages(samples, config.data.max_broken)
    for path in broken.add(result.broken):
        logger.warning("unreadable image, left out of the evaluation: %s", path)
    broken.check()
