"""What every group of rows shares: its command line, its environment, its lines and its file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import ROW, Figure, Figures, Progress
from cyclemlp_backbones.timing import ROUNDS, start_again_with, variables

THREADS = 2
"""Of every figure, on both sides: the targets were set with two."""


def format_line(figure: Figure) -> str:
    """One row for the terminal: targets, figure of the best rounds, figure of the median ones, and its parts."""
    row = ROW[figure.key]
    result = (
        f"{figure.minima:.3f} {row.unit} (median {figure.medians:.3f})  [{row.reached(figure.minima)}]"
        if figure.measured
        else "not measured"
    )
    parts = "".join(f"  {name} {value:.4g}" for name, value in figure.parts.items())
    note = f"  {figure.note}" if figure.note else ""
    return f"{row.what:<88} must {row.must:<5g} aim {row.aim:<5g} {result}{parts}{note}"


def show_progress(started: float) -> Progress:
    """A `Progress` that prints share, time and ETA to stderr, every two seconds at most."""
    shown = started

    def progress(share: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if share > 0 and now - shown >= 2:
            shown = now
            elapsed = now - started
            left = elapsed / share - elapsed
            print(f"  {share:4.0%}, {elapsed:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True)

    return progress


def run_group(figures: Callable[[int, Progress], Figures], *, keep_memory: bool = False) -> None:
    """The `main` of a group's module: starts again with the environment that the figures need, measures and prints."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each alternative (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS, keep_memory=keep_memory))
    results = []
    for figure in figures(arguments.rounds, show_progress(time.monotonic())):
        print(format_line(figure), flush=True)
        results.append(figure.as_json())
        if arguments.json:
            arguments.json.write_text(json.dumps(results) + "\n")
