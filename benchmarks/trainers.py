"""The toolkits' own trainers, from the files to the updated weights: B1 against their ResNet-50, and what a step is of.

    python -m benchmarks.trainers [--heads semantic_fpn retinanet mask_rcnn] [--rounds 3]

Our shipped configurations on digits on photographs, crops of 512 px, batch 2, on a CPU. Every round runs each trainer
once, in a process of its own, in turns; the round with the quickest steps counts. A run of all heads writes
docs/results/PROCESSOR/trainers.json, and the tables of all such files into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.documents import ROOT, Part, read_json, write_json
from benchmarks.group import THREADS
from benchmarks.report import describe
from benchmarks.results import folder, stored
from benchmarks.toolkits import PARTS, RESNET, SHIPPED, Run, train, write_data
from cyclemlp_backbones.timing import describe_machine, start_again_with, variables

FILE = "trainers.json"
DOCUMENT = ROOT / "docs" / "performance.md"
PART = Part("trainers", "python -m benchmarks.trainers")
TITLES = {"semantic_fpn": "Semantic FPN, PaddleSeg", "retinanet": "RetinaNet, PaddleDetection",
          "mask_rcnn": "Mask R-CNN, PaddleDetection"}  # fmt: skip
BACKBONES = {"b1": "B1", RESNET: "ResNet-50"}
PROCESSOR = ("processor", "system")
WARM_UP = 2  # steps


def measure_here(run: Run, scenes: Path) -> dict[str, float]:
    """Milliseconds of a step by its parts, medians after the first steps and without the last, which saves; "step", the
    median whole; "processor" and "system", as in `Steps`; "reading", processor time of reading a batch."""
    seen = train(run, scenes)
    steps = seen.parts[WARM_UP:-1]
    result = {name: 1e3 * median(step[name] for step in steps) for name in (*PARTS, *PROCESSOR)}
    whole = 1e3 * median(sum(step[part] for part in PARTS) for step in steps)
    return {"step": whole, **result, "reading": 1e3 * seen.reading / len(seen.parts)}


def measure_apart(run: Run, scenes: Path) -> dict[str, float]:
    """`measure_here` in a process of its own."""
    found, log = scenes / "found.json", scenes / "log.txt"
    found.unlink(missing_ok=True)
    with log.open("a") as output:
        command = [sys.executable, "-m", "benchmarks.trainers", "--one", json.dumps(vars(run)), str(scenes), str(found)]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{run}: status {done.returncode}\n{log.read_text()[-2000:]}")
    return read_json(found)


def measure(heads: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    started, done, total = time.monotonic(), 0, rounds * len(heads) * len(BACKBONES)
    rows: dict[str, dict[str, dict[str, float]]] = {head: {} for head in heads}
    with tempfile.TemporaryDirectory() as text:
        scenes = Path(text)
        runs = {(head, backbone): Run(head, backbone, steps) for head in heads for backbone in BACKBONES}
        for run in runs.values():
            write_data(run, scenes)  # both processes of a round find it there
        for _ in range(rounds):
            for (head, backbone), run in runs.items():
                found = measure_apart(run, scenes)
                best = rows[head].get(backbone)
                rows[head][backbone] = found if best is None or found["step"] < best["step"] else best
                done += 1
                left = (time.monotonic() - started) * (total - done) / done
                print(f"{head}, {backbone}: {found['step']:.0f} ms a step; about {left:.0f} s left", flush=True)
    example = Run(heads[0], "b1", steps)
    sizes = {"crop": example.crop, "batch": example.batch, "steps": steps}
    return {"machine": describe_machine(), "rounds": rounds, **sizes, "rows": rows}


def tables() -> str:
    """Those of every processor that was measured."""
    return "\n\n".join(render(read_json(path)) for path in stored(FILE))


def render(measured: Mapping[str, Any]) -> str:
    batch = measured["batch"]
    columns = ["B1, images/s", "ResNet-50, images/s", "ratio of times", "of processor time"]
    lines = [f"| trainer, {measured['crop']} px, batch {batch} | {' | '.join(columns)} |", "|---" * 5 + "|"]
    for head, row in measured["rows"].items():
        ours, other = row["b1"]["step"], row[RESNET]["step"]
        processor = row["b1"]["processor"] / row[RESNET]["processor"]
        speeds = f"{1e3 * batch / ours:.2f} | {1e3 * batch / other:.2f}"
        lines.append(f"| {TITLES[head]} | {speeds} | **{ours / other:.2f}** | {processor:.2f} |")
    columns = [*PARTS, "both processors", "of it the kernel's", "reading, in a thread beside"]
    lines += ["", f"| ms of a step | whole | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for head, row in measured["rows"].items():
        for backbone, cell in row.items():
            parts = " | ".join(f"{cell[part]:.0f}" for part in ("step", *PARTS, *PROCESSOR, "reading"))
            lines.append(f"| {head}, {BACKBONES[backbone]} | {parts} |")
    lines += ["", f"{describe(measured['machine'], measured['rounds'])}, {measured['steps']} steps each."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainers", description=__doc__)
    parser.add_argument("--heads", nargs="+", choices=SHIPPED, default=list(SHIPPED), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each trainer (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of each turn (%(default)s)")
    parser.add_argument("--keep-memory", action="store_true", help="a malloc that keeps freed memory; not stored")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a run, a folder, and the file for what it took
    arguments = parser.parse_args()
    if arguments.one:
        run, scenes, found = arguments.one
        write_json(Path(found), measure_here(Run(**json.loads(run)), Path(scenes)))
        return
    start_again_with(variables(THREADS, keep_memory=arguments.keep_memory))
    if arguments.steps < WARM_UP + 2:
        parser.error(f"--steps {arguments.steps}; it takes at least {WARM_UP + 2}")
    measured = measure(arguments.heads, arguments.rounds, arguments.steps)
    print(f"\n{render(measured)}\n")
    if arguments.keep_memory or set(arguments.heads) != set(SHIPPED):
        print("not all heads, or another malloc: nothing is stored")
        return
    write_json(folder(measured["machine"]) / FILE, measured)
    PART.write(DOCUMENT, tables())
    print(f"written to {folder(measured['machine']) / FILE} and {DOCUMENT}")


if __name__ == "__main__":
    main()
