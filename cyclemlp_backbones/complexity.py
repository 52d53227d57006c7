"""What a network costs, by arithmetic. Standard library only."""

from __future__ import annotations

import re

from cyclemlp_backbones.variants import MIN_SIZE, Variant


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" -> (512, 1024), height first; "224" -> (224, 224). Anything else is a ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:[xX×]\s*(\d+))?\s*", text)
    if not match or min(int(match[1]), int(match[2] or match[1])) < MIN_SIZE:
        raise ValueError(
            f"size {text!r}; it takes HEIGHTxWIDTH in pixels, both {MIN_SIZE} or more, for example 512x1024"
        )
    return int(match[1]), int(match[2] or match[1])


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the four stages' maps for an image of `height` x `width` pixels."""
    sizes = [((height + 1) // 4, (width + 1) // 4)]
    for _ in range(3):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def multiply_adds(variant: Variant, height: int = 224, width: int = 224, *, num_classes: int | None = 1000) -> int:
    """Multiply-adds of one RGB image: convolutions and matrix products, without norms and activations, as usual.

    `num_classes` is None for a pyramid, which has no classifier head.
    """
    total, previous = 0, 3
    for stage, (h, w) in enumerate(stage_sizes(height, width)):
        channels = variant.embed_dims[stage]
        kernel = 7 if stage == 0 else 2 if variant.swin_like else 3  # stem, or downsampling before the stage
        total += h * w * kernel * kernel * previous * channels
        branches_and_projection = 4 * channels * channels
        mlp = 2 * channels * int(channels * variant.mlp_ratios[stage])
        gate = 0 if variant.swin_like else channels * (channels // 4) + (channels // 4) * 3 * channels
        total += variant.depths[stage] * (h * w * (branches_and_projection + mlp) + gate)
        previous = channels
    return total + (previous * num_classes if num_classes else 0)


def memory(variant: Variant, height: int, width: int, batch: int) -> dict[str, int]:
    """Bytes, an estimate for float32: what a training step and an inference of `batch` RGB images hold at their peak.

    "state" is weights, gradients and AdamW's two moments; "activations" is what the plain form keeps for backward: of
    each block, per position and channel, inputs and outputs of norms, both shifted inputs, the branches (where they are
    weighted), the sums, what stochastic depth multiplies, and the hidden features before and after GELU. "inference" is
    the weights and the largest MLP's features. Without heads, the moving average, Paddle's own, or a GPU's context.
    """
    positions = [batch * h * w for h, w in stage_sizes(height, width)]
    kept, largest = batch * 3 * height * width, 0
    for here, channels, ratio, depth in zip(positions, variant.embed_dims, variant.mlp_ratios, variant.depths):
        per_position = (8 if variant.swin_like else 11) + 2 * ratio
        kept += here * channels * (1 + depth * per_position)  # and the stage's input or output in the other layout
        largest = max(largest, here * channels * (2 + 4 * ratio))
    weights = 4 * variant.parameters
    return {"state": 4 * weights, "activations": 4 * kept, "inference": weights + 4 * largest}
