"""Measures every row of the table, prints it, and writes it to bench.json in the processor's folder of docs/results.

    python -m benchmarks [--rounds 9] [--groups layers network …] [--json FILE]

Only a run of all groups is stored; `python -m benchmarks.report` then puts it into the documents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.group import THREADS, format_line
from benchmarks.results import Results, folder, in_order
from benchmarks.rows import GROUPS, Figure
from cyclemlp_backbones.timing import ROUNDS, describe_machine, start_again_with, variables


def run_group(group: str, rounds: int) -> tuple[Figure, ...]:
    """A group's figures; those that it had before it failed, if it does. Its lines and its progress are shown."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{group}", "--rounds", str(rounds), "--json", str(output)]
        subprocess.run(command, cwd=Path(__file__).resolve().parent.parent)
        data = json.loads(output.read_text()) if output.exists() else []
    return tuple(Figure(**figure) for figure in data)


def _left(groups: list[str], taken: dict[str, float], path: Path) -> str:
    """What this processor's stored run says of the time that the remaining groups take."""
    if not path.exists():
        return ""
    stored = Results.read(path).seconds
    seconds = sum(stored.get(group, 0.0) for group in groups if group not in taken)
    return f", about {seconds / 60:.1f} min left by the stored run"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each alternative (%(default)s)")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--json", type=Path, help="file for the figures; default for all groups: the processor's")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS))
    machine = describe_machine()
    path = folder(machine) / "bench.json"
    figures: tuple[Figure, ...] = ()
    taken: dict[str, float] = {}
    for number, group in enumerate(arguments.groups, 1):
        print(f"== {group} ({number} of {len(arguments.groups)}{_left(arguments.groups, taken, path)})", flush=True)
        start = time.monotonic()
        figures += run_group(group, arguments.rounds)
        taken[group] = time.monotonic() - start
    results = Results(machine, arguments.rounds, in_order(figures), taken)
    print("\n== all figures: ratios of the best rounds and of the median ones")
    for figure in results.figures:
        print(format_line(figure))
    whole = list(arguments.groups) == list(GROUPS)
    if whole and results.missing:
        print(f"no figure for {', '.join(results.missing)}: see the messages above", file=sys.stderr)
    target = arguments.json or (path if whole and not results.missing else None)
    if target is not None:
        results.write(target)
        print(f"written to {target}; `python -m benchmarks.report` puts the stored run into the documents")
    else:
        print("nothing is stored: only a run of all groups, with a figure for every row, is")
    return 1 if whole and results.missing else 0


if __name__ == "__main__":
    sys.exit(main())
