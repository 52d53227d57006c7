"""Puts the stored figures into docs/performance.md and the READMEs, and draws latency over accuracy. Measures nothing.

python -m benchmarks.report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import documents
from benchmarks.documents import ROOT, Part, read_json
from benchmarks.latency import LATENCIES, OURS
from benchmarks.results import STORED, Results
from benchmarks.rows import ROWS, Figure, Row

DOCUMENT = ROOT / "docs" / "performance.md"
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README_zh.md"}
PICTURE = STORED.with_name("latency.png")
PART = Part("speed", "make bench")

SUMMARY = {
    "forward_1_resnet50": ("B1 forward, batch 1, 224 px", "B1 前向，batch 1，224 px"),
    "forward_8_resnet50": ("B1 forward, batch 8, 224 px", "B1 前向，batch 8，224 px"),
    "forward_512_resnet50": ("B1 forward, batch 1, 512 px", "B1 前向，batch 1，512 px"),
    "step_resnet50": ("B1 training step, batch 4, 224 px", "B1 训练一步，batch 4，224 px"),
}
"""The rows that the READMEs show, in their two languages; each is a ratio to ResNet-50."""

_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "onnxruntime")


def describe(machine: dict[str, str], rounds: int) -> str:
    return documents.describe(machine, _PACKAGES, rounds=f"{rounds} rounds in turns")


def _number(value: float, row: Row) -> str:
    return f"{value:.2f}{' s' if row.unit == 's' else ''}"


def _line(row: Row, figure: Figure) -> str:
    aim = "" if row.aim is None else _number(row.aim, row)
    cells = [row.what, _number(row.must, row), aim]
    if not figure.measured:
        return f"| {' | '.join(cells)} | not measured | | {figure.note} |"
    reached = {"aim": "aim", "must": "must", "no": "missed"}[row.reached(figure.minima)]
    cells += [f"**{_number(figure.minima, row)}**", _number(figure.medians, row), reached]
    return f"| {' | '.join(cells)} |"


def table(results: Results) -> str:
    """Every row with its targets and its figure, and what they were measured on."""
    lines = ["| ratio of times, less is better but for the pipeline | must | aim | best rounds | medians | reached |"]
    lines.append("|---" * 6 + "|")
    lines += [_line(row, results[row.key]) for row in ROWS]
    lines += ["", f"{describe(results.machine, results.rounds)}.", "GPU: not measured, none was at hand."]
    return "\n".join(lines)


def summary(results: Results, language: str) -> str:
    """The four rows of a README."""
    head = ("time against ResNet-50 (paddle.vision), on a CPU", "相对 ResNet-50（paddle.vision）的耗时，CPU")
    number = 0 if language == "en" else 1
    rows = [f"| {names[number]} | {results[key].minima:.2f} |" for key, names in SUMMARY.items()]
    return "\n".join([f"| {head[number]} | |", "|---|---|", *rows, "", f"{describe(results.machine, results.rounds)}."])


def draw(latencies: dict[str, Any], path: Path) -> None:
    """Accuracy over latency, one line a series, the papers' accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(8, 4.8), dpi=120)
    points = latencies["points"]
    for number, series in enumerate(dict.fromkeys(point["series"] for point in points)):
        own = [point for point in points if point["series"] == series]
        x, y = [point["ms"] for point in own], [point["top1"] for point in own]
        width = 2.5 if series == OURS else 1.2
        label = f"{series} (top-1: {own[0]['paper']})"
        axes.plot(x, y, marker="o", linewidth=width, markersize=2.5 * width, color=f"C{number}", label=label)
        below = series != OURS
        for point in own:
            offset = (5, -13) if below else (-5, 7)
            axes.annotate(
                point["name"],
                (point["ms"], point["top1"]),
                offset,
                textcoords="offset points",
                ha="left" if below else "right",
                fontsize=8,
                color=f"C{number}",
            )
    axes.set_xscale("log")
    ticks = [tick for tick in (20, 50, 100, 200, 500, 1000, 2000) if tick < 1.5 * max(point["ms"] for point in points)]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    machine = latencies["machine"]
    axes.set_xlabel(f"ms a forward, batch 1, 224 px, fp32, dygraph, {machine['threads']} CPU threads; less is better")
    axes.set_ylabel("ImageNet-1k top-1, percent, by the papers")
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    stored = Results.read(STORED)
    PART.write(DOCUMENT, table(stored))
    for language, readme in READMES.items():
        PART.write(readme, summary(stored, language))
    draw(read_json(LATENCIES), PICTURE)
    print(f"{DOCUMENT}, the READMEs and {PICTURE} show {STORED.name} and {LATENCIES.name}")


if __name__ == "__main__":
    main()
