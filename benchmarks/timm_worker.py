"""timm's training transform on given files, for an environment of its own. Reads a seed a line, answers with seconds.

.venv-timm/bin/python benchmarks/timm_worker.py FILES…
"""

from __future__ import annotations

import random
import sys
import time
import types

import numpy as np
import PIL
import torch
from PIL import Image

# Declarations of torchvision's compiled part fail where that was built for another torch; transforms need neither.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import timm  # noqa: E402
from timm.data import create_transform  # noqa: E402


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)
    transform = create_transform(
        224,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        color_jitter=None,
        re_prob=0.25,
        re_mode="pixel",
    )
    print(f"timm {timm.__version__}, torch {torch.__version__}, pillow {PIL.__version__}", flush=True)
    for line in sys.stdin:
        random.seed(int(line))
        np.random.seed(int(line))
        torch.manual_seed(int(line))
        start = time.perf_counter()
        for path in paths:
            transform(Image.open(path).convert("RGB"))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
