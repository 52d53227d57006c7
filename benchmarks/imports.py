"""Import of the package, over import of Paddle, each time in a new process.

python -m benchmarks.imports [--rounds 9]
"""

from __future__ import annotations

import subprocess

from benchmarks.group import run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones.files import isolated_python
from cyclemlp_backbones.timing import measure


def figures(rounds: int, progress: Progress) -> Figures:
    def running(statement: str) -> None:
        subprocess.run(isolated_python(statement), check=True, stderr=subprocess.DEVNULL)

    times = measure(
        {
            "paddle": lambda: running("import paddle"),
            # The package's names are looked up late; this one needs the network.
            "package": lambda: running("from cyclemlp_backbones import build_backbone"),
        },
        rounds=rounds,
        warm_up=1,
        progress=lambda done, total: progress(done / total),
    )
    paddle, package = times["paddle"], times["package"]
    parts = {"paddle, s": paddle.minimum, "package, s": package.minimum}
    yield Figure("imports", package.minimum - paddle.minimum, package.median - paddle.median, parts)


if __name__ == "__main__":
    run_group(figures)
