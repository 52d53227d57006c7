"""The picture of `make compare-chain`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.chain_run import BACKBONES, TASKS


def draw_curves(result: Mapping[str, Any], path: Path) -> None:
    """The metric on the test scenes over seconds of CPU: a panel a task, a line a backbone, mean of the seeds, the band
    from the least to the greatest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TASKS), figsize=(12, 4.2), dpi=110)
    for axes, (name, task) in zip(panels, TASKS.items()):
        for row in result["rows"]:
            if row["task"] != name:
                continue
            points = list(zip(*row["curves"]))  # of each point the seeds' values
            seconds = [statistics.mean(value["seconds"] for value in point) for point in points]
            scores = [[value["score"] for value in point] for point in points]
            colour = f"C{list(BACKBONES).index(row['backbone'])}"
            means = [statistics.mean(values) for values in scores]
            axes.plot(seconds, means, marker="o", markersize=4, color=colour, label=BACKBONES[row["backbone"]][0])
            axes.fill_between(seconds, [min(v) for v in scores], [max(v) for v in scores], color=colour, alpha=0.2)
        axes.set_title(task.title)
        axes.set_xlabel("seconds of training, one CPU core")
        axes.set_ylabel(f"{task.metric} on test scenes")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
