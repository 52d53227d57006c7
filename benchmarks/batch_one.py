"""Where a forward of one image goes on a CPU: kernels, what calls them, Python; and what `paddle.jit.to_static` saves.

    python -m benchmarks.batch_one [--rounds 9]

Paddle's profiler notes every operator and the kernel in it; each operator's quickest of many calls counts. A second
figure for what is no arithmetic: nearly the same operators on next to no numbers, B1's blocks with 4 to 32 channels.
Writes docs/results/PROCESSOR/batch_one.json, and the tables of all such files into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT, Part, read_json, write_json
from benchmarks.group import THREADS, show_progress
from benchmarks.report import describe
from benchmarks.results import folder, stored
from cyclemlp_backbones import timing
from cyclemlp_backbones.timing import ROUNDS, Ratio, describe_machine, start_again_with, variables

FILE = "batch_one.json"
DOCUMENT = ROOT / "docs" / "performance.md"
PART = Part("batch one", "python -m benchmarks.batch_one")
NETWORKS = ("b1", "resnet50")
PROFILED = 30  # calls
SECONDS_A_TURN = 0.3
_SHOWN = 6  # operators


@dataclass
class Operator:
    """Microseconds of one operator of a forward: before it, since the last one; within it; and of these in kernels."""

    name: str
    before: float
    within: float
    kernels: float = 0.0


def operators_of_calls(events: Iterable[Mapping[str, Any]]) -> list[list[Operator]]:
    """A profiler's events as the operators of each forward; the last one, without a name, is what comes after them."""
    calls: list[list[Operator]] = []
    call_end = operator_end = -1.0
    spans = [(*_times(event), event) for event in events if "start_time" in event.get("args", {})]
    for start, end, span in sorted(spans, key=lambda item: (item[0], -item[1])):
        name = span["name"].split()[0]
        if span["cat"] == "Forward" and start >= call_end:  # the network itself, not a layer in it
            if calls:
                calls[-1].append(Operator("", call_end - operator_end, 0.0))
            calls.append([])
            call_end, operator_end = end, start
        elif calls and end <= call_end:
            if span["cat"] == "Operator" and start >= operator_end:  # one may consist of others
                calls[-1].append(Operator(name, start - operator_end, end - start))
                operator_end = end
            elif span["cat"] == "DygraphKernelLaunch" or " compute" in span["name"]:  # the latter in Paddle 2.6
                calls[-1][-1].kernels += end - start
    if calls:
        calls[-1].append(Operator("", call_end - operator_end, 0.0))
    return calls


def _times(event: Mapping[str, Any]) -> tuple[float, float]:
    """Its start and end in microseconds; "ts" has whole ones only."""
    start, end = (float(event["args"][key].removesuffix(" us")) for key in ("start_time", "end_time"))
    return start, end


def split(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Milliseconds of a forward by who spends them, of each operator the least over all calls, which leaves out where
    another process had the processor.

    "kernels", the arithmetic; "operators", what Paddle's C++ does around kernels; "python", all between the operators;
    "whole", their sum. "calls" counts operators, "by_operator" has the kernels' milliseconds of each kind.
    """
    calls = operators_of_calls(events)
    names = [tuple(operator.name for operator in call) for call in calls]
    usual = Counter(names).most_common(1)[0][0]
    same = [call for call, own in zip(calls, names) if own == usual]  # the first may prepare something
    kernels: defaultdict[str, float] = defaultdict(float)
    around = between = 0.0
    for turns in zip(*same):
        kernels[turns[0].name] += min(turn.kernels for turn in turns) / 1e3
        around += min(turn.within - turn.kernels for turn in turns) / 1e3
        between += min(turn.before for turn in turns) / 1e3
    del kernels[""]
    counts = Counter(filter(None, usual))
    arithmetic = sum(kernels.values())
    return {
        "whole": arithmetic + around + between, "kernels": arithmetic, "operators": around, "python": between,
        "calls": counts.total(), "profiled": len(same),
        "by_operator": {name: {"ms": ms, "calls": counts[name]} for name, ms in kernels.items()},
    }  # fmt: skip


def profile(call: Callable[[], object]) -> dict[str, Any]:
    """`split` of many calls."""
    from paddle.profiler import Profiler, ProfilerTarget

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda p: p.export(str(trace), "json"))
        with profiler:
            for _ in range(PROFILED):
                call()
        return split(json.loads(trace.read_text())["traceEvents"])


def build(name: str) -> tuple[Any, int]:
    """A network, and the side of its image. "narrow" is "b1" with next to no numbers, and no chunks in Mlp."""
    from benchmarks import network
    from cyclemlp_backbones import VARIANTS, CycleNet

    if name != "narrow":
        return network.build(name), 224
    size = VARIANTS["b1"]  # at 64 px the first two stages have more positions than twice their channels, as b1 has
    return CycleNet(size.depths, (4, 8, 16, 32), size.mlp_ratios, num_classes=10), 64


def forward_calls(name: str) -> dict[str, Callable[[], None]]:
    """A forward in dygraph and, for a network in earnest, in the graphs that `to_static` makes of it."""
    import paddle

    from cyclemlp_backbones.deploy.graph_forms import cpu_graph_forms

    model, side = build(name)
    image = paddle.randn([1, 3, side, side])
    calls = {"dygraph": timing.forward_call(model, image)}
    if name != "narrow":
        calls["to_static"] = timing.forward_call(paddle.jit.to_static(build(name)[0], full_graph=True), image)
    if name == "b1":
        model = build(name)[0]
        calls["to_static, an export's forms"] = timing.forward_call(paddle.jit.to_static(model, full_graph=True), image)
        with cpu_graph_forms(model):
            calls["to_static, an export's forms"]()  # the graph is made at the first call
    return calls


def measure(rounds: int) -> dict[str, Any]:
    profiles: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], None]] = {}
    for name in ("narrow", *NETWORKS):
        own = forward_calls(name)
        for call in own.values():
            call()
        profiles[name] = profile(own["dygraph"])
        print(f"{name}: {profiles[name]['whole']:.1f} ms, {profiles[name]['calls']} operators", flush=True)
        calls |= {f"{name}, {form}": call for form, call in own.items()}
    progress = show_progress(time.monotonic())
    times = timing.measure(
        calls, rounds=rounds, least_seconds=SECONDS_A_TURN, progress=lambda done, total: progress(done / total)
    )
    forms = {
        key: {
            "ms": 1e3 * times[key].minimum,
            "ratio": Ratio.of(times[key], times[f"{key.partition(',')[0]}, dygraph"]).minima,
        }
        for key in calls
    }
    return {"machine": describe_machine(), "rounds": rounds, "profiles": profiles, "forms": forms}


def tables() -> str:
    """Those of every processor that was measured."""
    return "\n\n".join(render(read_json(path)) for path in stored(FILE))


def render(run: Mapping[str, Any]) -> str:
    lines = [
        "| one image, dygraph | ms | kernels | around them in C++ | Python between | operators | the longest kernels |"
    ]
    lines.append("|---" * 7 + "|")
    names = {"b1": "B1, 224 px", "resnet50": "resnet50, 224 px", "narrow": "B1's operators, 4 to 32 channels, 64 px"}
    for key, name in names.items():
        row = run["profiles"][key]
        longest = sorted(row["by_operator"].items(), key=lambda item: -item[1]["ms"])[:_SHOWN]
        shown = ", ".join(f"{operator} {cell['ms']:.1f} ({cell['calls']})" for operator, cell in longest)
        parts = [f"{row[part]:.1f} ({row[part] / row['whole']:.0%})" for part in ("kernels", "operators", "python")]
        lines.append(f"| {name} | {row['whole']:.1f} | {' | '.join(parts)} | {row['calls']} | {shown} |")
    lines += ["", "| one image, 224 px | ms | to dygraph |", "|---|---|---|"]
    for key, cell in run["forms"].items():
        if not key.startswith("narrow"):
            lines.append(f"| {key} | {cell['ms']:.1f} | {cell['ratio']:.2f} |")
    return "\n".join([*lines, "", describe(run["machine"], run["rounds"]) + "."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_one", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each form (%(default)s)")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS))
    run = measure(arguments.rounds)
    write_json(folder(run["machine"]) / FILE, run)
    PART.write(DOCUMENT, tables())
    print(f"written to {folder(run['machine']) / FILE} and {DOCUMENT}")


if __name__ == "__main__":
    main()
