"""Where random choices come from: the run's seed and the numbers of what is chosen, so that no state is ever kept."""

from __future__ import annotations

import numpy as np

ORDER, SAMPLE, MIX, FORWARD = range(1, 5)
"""What a choice is for: the order of an epoch, one sample's augmentation, mixup, a forward pass (drop path)."""


def generator(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """A fresh generator for the choice that `purpose` and `numbers` (epoch, index, step, rank …) name."""
    return np.random.default_rng([seed, purpose, *numbers])


def integer_seed(seed: int, purpose: int, *numbers: int) -> int:
    """A 32-bit seed for a library's own generator."""
    return int(np.random.SeedSequence([seed, purpose, *numbers]).generate_state(1)[0])
