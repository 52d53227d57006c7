"""`make compare-chain`: pretrain, then segment and detect from those weights: CycleMLP and the toolkits' own backbones,
the same data and the same computing time for each, each with a learning rate of its own, over three seeds.

    python demo/chain.py --out output/chain
    python demo/chain.py --smoke --out output/chain-smoke

The least time of a step, taken in turns in one process, gives each backbone the steps that fill the budget of one core:
what else the machine does changes how long that takes, not how much is trained. The rate is the best of three by scenes
held out of the training data, along a chain with a seed of its own; the test scenes are scored with that rate only. A
rerun goes on where an earlier one ended. The folder OUT gets result.json, result.md and curves.png; `--store` puts them
into docs/ as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.documents import RESULTS, Part, describe, read_json
from cyclemlp_backbones.timing import variables
from demo.chain_picture import draw_curves
from demo.chain_run import BACKBONES, TASKS, Run
from demo.steps import ROOT, DemoFailure, parser, run_demo, write_json

PART = Part("chain", "make compare-chain")
DOCUMENT, STORED, PICTURE = ROOT / "docs" / "results.md", RESULTS / "chain.json", RESULTS / "chain.png"
PROCESSES = 2
DEFAULT = ["cyclemlp_b0", "resnet50_vd", "mit_b0"]
PRETRAINING, *LATER = TASKS


@dataclass(frozen=True)
class Scale:
    """`seconds` of one core for each run; `rates` are tried for `trial_share` of that with `rate_seed`, on `held_out`
    scenes of the training split, the best one is trained with each of `seeds` and scored on `test` scenes."""

    seconds: float = 75.0
    trial_share: float = 0.5
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    rate_seed: int = 100
    held_out: int = 300
    test: int = 300
    rounds: int = 3


SMOKE = Scale(seconds=0.3, rates=(1e-3, 3e-3), seeds=(0, 1), held_out=10, test=10, rounds=1)


def chosen_steps(seconds: float, seconds_a_step: float) -> int:
    """Steps that take at most `seconds`, but one at least."""
    return max(1, int(seconds / seconds_a_step))


def chosen_rate(results: Iterable[Mapping[str, Any]]) -> float:
    """The rate of the best score on held-out training scenes; the least of equals. Raises ValueError where a result was
    scored on others, those of the test above all."""
    results = list(results)
    if others := {result["run"]["scored_on"] for result in results} - {"held-out"}:
        raise ValueError(f"a rate is chosen by held-out training scenes, not by: {', '.join(sorted(others))}")
    best = max(results, key=lambda result: (result["score"], -result["run"]["rate"]))
    return float(best["run"]["rate"])


class Experiment:
    """All runs of `backbones` at `scale`, their results in `folder`; what is there of an earlier call is kept."""

    def __init__(self, backbones: Sequence[str], scale: Scale, folder: Path):
        self.backbones, self.scale, self.folder = backbones, scale, folder
        self.total = len(TASKS) * len(backbones) * (len(scale.rates) + len(scale.seeds))
        self.there: set[str] = set()

    def call(self, request: Mapping[str, Any], name: str) -> None:
        """chain_run.py in a process with one thread. Raises DemoFailure if it fails."""
        log = self.folder / f"{name}.log"
        command = [sys.executable, str(ROOT / "demo" / "chain_run.py")]
        command.append(json.dumps({"folder": str(self.folder), **request}))
        with log.open("w", encoding="utf-8") as file:
            environment = {**os.environ, **variables(1)}
            status = subprocess.call(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        if status:
            raise DemoFailure(f"{name} ended with status {status}\n{log.read_text()[-2000:]}")

    def measure(self) -> dict[str, Any]:
        """The machine, and the seconds of a step by task and backbone; those of an earlier call are kept, so that its
        runs still count."""
        path = self.folder / "measured.json"
        known = read_json(path)["seconds"][PRETRAINING] if path.is_file() else {}
        if missing := [backbone for backbone in self.backbones if backbone not in known]:
            print(f"== seconds of a step, {self.scale.rounds} rounds in turns", flush=True)
            self.call({"measure": {"backbones": missing, "rounds": self.scale.rounds}}, "measured")
        measured: dict[str, Any] = read_json(path)
        return measured

    def results(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
        """What `runs` left, of those that came to their end."""
        pairs = [(run, self.folder / f"{run.key}.json") for run in runs]
        found = [(run, read_json(path)) for run, path in pairs if path.is_file()]
        return [result for run, result in found if result["run"] == asdict(run)]

    def complete(self, groups: Mapping[Any, Sequence[Run]]) -> None:
        """Trains what is missing: a group a process, since its start takes as long as many steps, two at a time."""
        self.there |= {run.key for group in groups.values() for run in group if self.results([run])}
        missing = [[run for run in group if run.key not in self.there] for group in groups.values()]
        begun, trained = time.monotonic(), 0
        with ThreadPoolExecutor(PROCESSES) as pool:
            futures = {
                pool.submit(self.call, {"runs": [asdict(run) for run in group]}, group[0].key): group
                for group in missing
                if group
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    group = futures[future]
                    self.there |= {run.key for run in group}
                    trained += len(group)
                    left = (time.monotonic() - begun) / trained * (self.total - len(self.there)) / 60
                    print("\n".join(map(self.describe, group)))
                    print(f"[{len(self.there)} of {self.total} runs, about {left:.0f} min left]", flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def describe(self, run: Run) -> str:
        result, (title, metric) = self.results([run])[0], TASKS[run.task]
        return (
            f"{title}, {BACKBONES[run.backbone][0]}, rate {run.rate:g}, seed {run.seed}: {metric} "
            f"{result['score']:.3f} on {run.scored_on} scenes, {run.steps} steps in {result['seconds']:.0f} s of CPU, "
            f"{result['wall_seconds']:.0f} s by the clock"
        )

    def run(self) -> dict[str, Any]:
        """The whole experiment; the table's rows, with what they were measured on."""
        measured, scale = self.measure(), self.scale

        def steps(task: str, backbone: str, share: float = 1.0) -> int:
            return chosen_steps(scale.seconds * share, measured["seconds"][task][backbone])

        def trials(task: str, backbone: str, start: str | None = None) -> list[Run]:
            fixed = (scale.rate_seed, steps(task, backbone, scale.trial_share), "held-out", scale.held_out, start)
            return [Run(task, backbone, rate, *fixed) for rate in scale.rates]

        def finals(task: str, backbone: str, starts: Sequence[str | None]) -> list[Run]:
            rate = chosen_rate(self.results(searches[task, backbone]))
            fixed = (steps(task, backbone), "test", scale.test)
            return [Run(task, backbone, rate, seed, *fixed, start) for seed, start in zip(scale.seeds, starts)]

        searches = {(PRETRAINING, backbone): trials(PRETRAINING, backbone) for backbone in self.backbones}
        self.complete(searches)
        trained = {}
        for backbone in self.backbones:
            trained[PRETRAINING, backbone] = finals(PRETRAINING, backbone, [None] * len(scale.seeds))
            rate = trained[PRETRAINING, backbone][0].rate
            # Rates of the later tasks are sought on the search's own weights, of another seed than those that count.
            start = next(run.key for run in searches[PRETRAINING, backbone] if run.rate == rate)
            searches |= {(task, backbone): trials(task, backbone, start) for task in LATER}
        self.complete({**trained, **{("search", *place): runs for place, runs in searches.items()}})
        for backbone in self.backbones:
            starts = [run.key for run in trained[PRETRAINING, backbone]]
            trained |= {(task, backbone): finals(task, backbone, starts) for task in LATER}
        self.complete(trained)
        rows = [
            summary(self.results(searches[task, backbone]), self.results(trained[task, backbone]))
            for task in TASKS
            for backbone in self.backbones
        ]
        return {**measured, "scale": asdict(scale), "rows": rows}


def summary(searched: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table: the held-out score of each rate, and of the best one the scores on the test scenes, their
    mean and sample standard deviation."""
    run, scores = trained[0]["run"], [result["score"] for result in trained]
    return {
        **{name: run[name] for name in ("task", "backbone", "rate", "steps")},
        "parameters": trained[0]["parameters"],
        "seconds": [result["seconds"] for result in trained],
        "wall_seconds": [result["wall_seconds"] for result in trained],
        "held_out": {f"{result['run']['rate']:g}": result["score"] for result in searched},
        "scores": scores,
        "mean": statistics.mean(scores),
        "deviation": statistics.stdev(scores),
        "curves": [result["curve"] for result in trained],
    }


def render(result: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    rates = list(result["rows"][0]["held_out"])
    head = ["task", "backbone", "parameters", "steps", "CPU seconds", *(f"rate {rate}" for rate in rates)]
    lines = [f"| {' | '.join([*head, 'test scenes'])} |", "|---" * (len(head) + 1) + "|"]
    for row in result["rows"]:
        chosen = f"{row['rate']:g}"
        cells = [", ".join(TASKS[row["task"]]), BACKBONES[row["backbone"]][0], f"{row['parameters'] / 1e6:.1f} M"]
        cells += [str(row["steps"]), f"{statistics.mean(row['seconds']):.0f}"]
        cells += [f"*{score:.3f}*" if rate == chosen else f"{score:.3f}" for rate, score in row["held_out"].items()]
        lines.append(f"| {' | '.join(cells)} | **{row['mean']:.3f}** ± {row['deviation']:.3f} |")
    scale, seconds = result["scale"], [value for row in result["rows"] for value in row["seconds"]]
    lines += [
        "",
        f"Rates by {scale['held_out']} scenes held out of the training data, one run of {scale['trial_share']:g} of "
        f"the budget each, the chosen one in italics; on {scale['test']} test scenes mean and sample standard "
        f"deviation of {len(scale['seeds'])} seeds. Budget {scale['seconds']:g} s of one core; runs with seeds took "
        f"{min(seconds):.0f} to {max(seconds):.0f} s of CPU. "
        f"{describe(result['machine'], ('paddlepaddle', 'paddleseg', 'paddledet'))}.",
    ]
    return "\n".join(lines)


def store(result: Mapping[str, Any]) -> None:
    """Puts a result into docs/."""
    write_json(STORED, result)
    PART.write(DOCUMENT, render(result))
    draw_curves(result, PICTURE)


def main() -> int:
    command = parser("The chain of pretraining, segmentation and detection, by backbone.", "output/chain")
    command.add_argument("--backbones", choices=BACKBONES, nargs="+", default=DEFAULT, help="default: %(default)s")
    command.add_argument("--seconds", type=float, help=f"of one core for each run ({Scale.seconds:g})")
    command.add_argument("--store", action="store_true", help="put table, figures and picture into docs/")
    args = command.parse_args()

    def compare() -> None:
        scale = SMOKE if args.smoke else Scale()
        scale = scale if args.seconds is None else replace(scale, seconds=args.seconds)
        if not 0.01 <= scale.seconds <= 86400:
            raise ValueError(f"--seconds is {scale.seconds:g}; it takes a number from 0.01 to 86400")
        out = args.out.resolve()
        (out / "runs").mkdir(parents=True, exist_ok=True)
        result = Experiment(list(dict.fromkeys(args.backbones)), scale, out / "runs").run()
        write_json(out / "result.json", result)
        (out / "result.md").write_text(render(result) + "\n")
        draw_curves(result, out / "curves.png")
        print(f"\n{render(result)}\n\nfigures  {out / 'result.json'}\npicture  {out / 'curves.png'}")
        if args.store:
            store(result)
            print(f"stored   {STORED}, {PICTURE}, {DOCUMENT}")

    return run_demo(compare)


if __name__ == "__main__":
    sys.exit(main())
