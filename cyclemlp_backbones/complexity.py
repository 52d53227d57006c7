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


def multiply_adds(
    variant: Variant, height: int = 224, width: int = 224, *, in_channels: int = 3, num_classes: int | None = 1000
) -> int:
    """Multiply-adds of one image: convolutions and matrix products, without norms and activations, as usual.

    `num_classes` is None for a pyramid, which has no classifier head.
    """
    total = 0
    previous = in_channels
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
