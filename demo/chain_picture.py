"""The picture of `make compare-chain`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.chain_run import BACKBONES, TASKS


def draw_curves(result: Mapping[str, Any], path: Path) -> None:
    """The training loss over seconds of CPU: a panel a task, a line a backbone, mean of the seeds, the band from the
    least to the greatest; each legend has the metric on the test scenes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TASKS), figsize=(12, 4.2), dpi=110)
    for axes, (task, (title, metric)) in zip(panels, TASKS.items()):
        for row in result["rows"]:
            if row["task"] != task:
                continue
            points = list(zip(*row["curves"]))  # of each point the seeds' values
            seconds = [statistics.mean(value["seconds"] for value in point) for point in points]
            losses = [[value["loss"] for value in point] for point in points]
            colour = f"C{list(BACKBONES).index(row['backbone'])}"
            label = f"{BACKBONES[row['backbone']][0]}: {metric} {row['mean']:.3f} ± {row['deviation']:.3f}"
            axes.plot(seconds, [statistics.mean(values) for values in losses], color=colour, label=label)
            axes.fill_between(seconds, [min(v) for v in losses], [max(v) for v in losses], color=colour, alpha=0.2)
        axes.set_title(title)
        axes.set_xlabel("seconds of training, one CPU core")
        axes.set_ylabel("training loss")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
