"""Puts the stored figures into docs/performance.md and the READMEs, and draws latency over accuracy. Measures nothing.

python -m benchmarks.report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import documents
from benchmarks.documents import RESULTS, ROOT, Part, read_json
from benchmarks.latency import OURS
from benchmarks.results import Results, processor_name, stored
from benchmarks.rows import ROWS, Figure, Row

DOCUMENT = ROOT / "docs" / "performance.md"
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README_zh.md"}
PICTURE = RESULTS / "latency.png"
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


def _cell(row: Row, figure: Figure) -> str:
    if not figure.measured:
        return f"not measured: {figure.note}"
    reached = {"aim": "aim", "must": "must", "no": "missed"}[row.reached(figure.minima)]
    return f"**{_number(figure.minima, row)}** ({_number(figure.medians, row)}) {reached}"


def _described(runs: Sequence[Results]) -> str:
    return "; ".join(describe(run.machine, run.rounds) for run in runs) + "."


def _differing(runs: Sequence[Results]) -> str:
    figures = {row.what: [run[row.key].minima for run in runs if run[row.key].measured] for row in ROWS}
    found = [what for what, values in figures.items() if values and max(values) > 1.15 * min(values)]
    return f"By more than 15 % the processors differ in: {'; '.join(found) or 'no row'}."


def table(runs: Sequence[Results]) -> str:
    """Every row with its targets and the figures of each processor, and what they were measured on."""
    names = [processor_name(run.machine) for run in runs]
    lines = ["| " + " | ".join(["ratio of times, less is better but for the pipeline", "must", "aim", *names]) + " |"]
    lines.append("|---" * (3 + len(runs)) + "|")
    for row in ROWS:
        cells = [row.what, _number(row.must, row), _number(row.aim, row), *(_cell(row, run[row.key]) for run in runs)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Of the best rounds; in brackets of the median ones.", _described(runs)]
    return "\n".join([*lines, *([_differing(runs)] if len(runs) > 1 else []), "GPU: see [On a GPU](#on-a-gpu)."])


def summary(runs: Sequence[Results], language: str) -> str:
    """The four rows of a README."""
    number = 0 if language == "en" else 1
    head = ("time against ResNet-50 (paddle.vision), on a CPU", "相对 ResNet-50（paddle.vision）的耗时，CPU")[number]
    names = (processor_name(run.machine) for run in runs)
    lines = [f"| {' | '.join([head, *names])} |", "|---" * (1 + len(runs)) + "|"]
    for key, what in SUMMARY.items():
        lines.append(f"| {' | '.join([what[number], *(f'{run[key].minima:.2f}' for run in runs)])} |")
    return "\n".join([*lines, "", _described(runs)])


def newest_latencies() -> dict[str, Any]:
    """Of the processor that was measured last: the picture shows one."""
    found: dict[str, Any] = max(map(read_json, stored("latency.json")), key=lambda run: run["machine"]["date"])
    return found


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
    axes.set_xlabel(
        f"ms a forward, batch 1, 224 px, fp32, dygraph, {machine['threads']} CPU threads; less is better\n"
        + processor_name(machine)
    )
    axes.set_ylabel("ImageNet-1k top-1, percent, by the papers")
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    runs = [Results.read(path) for path in stored("bench.json")]
    PART.write(DOCUMENT, table(runs))
    for language, readme in READMES.items():
        PART.write(readme, summary(runs, language))
    draw(newest_latencies(), PICTURE)
    print(f"{DOCUMENT}, the READMEs and {PICTURE} show the runs of every processor measured")


if __name__ == "__main__":
    main()
