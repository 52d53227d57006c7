"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019): drawn on the host, mixed on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.utils.dlpack import from_dlpack

from .config import MixConfig


@dataclass(frozen=True)
class Mix:
    """How sample `n` of a batch is mixed with sample `N - 1 - n`.

    `lam` float [N] is the share of its own label. `boxes` int [N, 4] are (top, bottom, left, right) of what CutMix
    replaces; where `cut` is False, mixup weighs the whole image by `lam` instead.
    """

    lam: np.ndarray
    cut: np.ndarray
    boxes: np.ndarray


def draw_mix(count: int, height: int, width: int, config: MixConfig, rng: np.random.Generator) -> Mix | None:
    """A batch's mix, or None where nothing is mixed. CutMix's `lam` is the share of pixels that stay, also where the
    image's border clips the box. Mode "batch" draws once, "pair" once per pair of partners, "elem" once per sample."""
    cutmix = config.cutmix > 0 or config.cutmix_minmax is not None
    if config.mixup <= 0 and not cutmix:
        return None
    draws = {"batch": 1, "pair": (count + 1) // 2, "elem": count}[config.mode]
    lam, cut, boxes = np.ones(draws), np.zeros(draws, bool), np.zeros((draws, 4), np.int64)
    for n in range(draws):
        if rng.random() >= config.probability:
            continue
        cut[n] = cutmix and (config.mixup <= 0 or rng.random() < config.switch)
        if not cut[n]:
            lam[n] = rng.beta(config.mixup, config.mixup)
            continue
        if config.cutmix_minmax is not None:
            boxes[n] = minmax_box(height, width, config.cutmix_minmax, rng)
        else:
            boxes[n] = cutmix_box(height, width, rng.beta(config.cutmix, config.cutmix), rng)
        top, bottom, left, right = boxes[n]
        lam[n] = 1 - (bottom - top) * (right - left) / (height * width)
    if (lam == 1).all() and not cut.any():
        return None
    samples = np.arange(count)
    chosen = {"batch": 0 * samples, "pair": np.minimum(samples, samples[::-1]), "elem": samples}[config.mode]
    return Mix(lam[chosen], cut[chosen], boxes[chosen])


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box (top, bottom, left, right) of the share 1 - `lam`, its centre anywhere, clipped to the image."""
    side = np.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return max(0, y - half_height), min(height, y + half_height), max(0, x - half_width), min(width, x + half_width)


def minmax_box(
    height: int, width: int, minmax: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box within the image, its sides uniform between two shares of the image's."""
    h, w = (int(rng.integers(int(size * minmax[0]), int(size * minmax[1]) + 1)) for size in (height, width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return top, top + h, left, left + w


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Images [N, C, H, W] mixed with their partners."""
    on_host = images.place.is_cpu_place() and images.dtype in (paddle.float32, paddle.float64) and images.stop_gradient
    return _mix_on_host(images, mix) if on_host else _mix_on_device(images, mix)


def _mix_on_host(images: Tensor, mix: Mix) -> Tensor:
    """Plane by plane in NumPy, within the cache: on a CPU many times as fast as Paddle's operators."""
    source = np.from_dlpack(images) if hasattr(images, "__dlpack__") else images.numpy()
    mixed = np.empty_like(source)
    for own, partner, target, lam, cut, box in zip(source, source[::-1], mixed, mix.lam, mix.cut, mix.boxes):
        if cut:
            top, bottom, left, right = box
            target[...] = own
            target[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
            continue
        share = target.dtype.type(1 - lam)
        for own_plane, partner_plane, target_plane in zip(own, partner, target):
            np.subtract(partner_plane, own_plane, out=target_plane)
            target_plane *= share
            target_plane += own_plane
    return from_dlpack(mixed.__dlpack__())  # the same memory


def _mix_on_device(images: Tensor, mix: Mix) -> Tensor:
    height, width = images.shape[2:]
    sides = paddle.to_tensor(mix.boxes).unsqueeze([2, 3])  # (N, 4) -> (N, 4, 1, 1)
    rows, columns = paddle.arange(height).reshape([1, -1, 1]), paddle.arange(width).reshape([1, 1, -1])
    inside = (rows >= sides[:, 0]) & (rows < sides[:, 1]) & (columns >= sides[:, 2]) & (columns < sides[:, 3])
    pasted = 1.0 - inside.astype(images.dtype)  # (N, H, W)
    lam = paddle.to_tensor(mix.lam.astype(np.float32)).astype(images.dtype).reshape([-1, 1, 1])
    cut = paddle.to_tensor(mix.cut).reshape([-1, 1, 1])
    own = paddle.where(cut, pasted, lam + paddle.zeros_like(pasted)).unsqueeze(1)
    return images * own + images.flip(0) * (1.0 - own)


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [N] -> [N, num_classes]: 1 - smoothing at the label, plus smoothing / num_classes everywhere."""
    return F.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Targets [N, num_classes] mixed by the shares of the images."""
    own = paddle.to_tensor(mix.lam.astype(np.float32)).astype(targets.dtype).unsqueeze(1)
    return targets * own + targets.flip(0) * (1.0 - own)
