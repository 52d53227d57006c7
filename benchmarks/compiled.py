"""What `cyclemlp build-ops` brings: CycleFC and B1 with the compiled shift and without it, in turns.

    python -m benchmarks.compiled [--rounds 9]

Builds the operator where it is missing. Writes compiled.json into the processor's folder of docs/results, and its
tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.documents import ROOT, Part, read_json, write_json
from benchmarks.group import THREADS
from benchmarks.report import describe
from benchmarks.results import folder, processor_name, stored
from benchmarks.rows import CHANNELS
from cyclemlp_backbones.timing import ROUNDS, Timing, describe_machine, measure, start_again_with, variables

DOCUMENT = ROOT / "docs" / "performance.md"
PART = Part("build-ops", "python -m benchmarks.compiled")
NETWORKS = {
    "forward, batch 1, 224 px": (1, 224, False),
    "forward, batch 8, 224 px": (8, 224, False),
    "forward, batch 1, 512 px": (1, 512, False),
    "training step, batch 4, 224 px": (4, 224, True),
}


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, **how: Any) -> dict[str, Timing]:
    """Times of "name" and of "name, built": each call without the operator and with it."""

    def with_ops(ops: str, call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            os.environ["CYCLEMLP_OPS"] = ops
            call()

        return run

    both = {f"{name}{suffix}": with_ops(ops, call) for name, call in calls.items() for suffix, ops in _SUFFIXES}
    return measure(both, rounds=rounds, **how)


_SUFFIXES = (("", "0"), (", built", "1"))


def measure_all(rounds: int) -> dict[str, Any]:
    import paddle

    from benchmarks.layers import layer_calls
    from benchmarks.network import SECONDS_A_TURN, build, forward_call, step_call
    from cyclemlp_backbones import compiled

    if not compiled.library().exists():
        compiled.build()
    layers: dict[str, dict[str, float]] = {}
    for what, backward in (("forward", False), ("forward and backward", True)):
        for channels in CHANNELS:
            paddle.seed(0)
            calls = layer_calls(channels, backward=backward)
            times = in_turns({name: calls[name] for name in ("width", "height")}, 3 * rounds, warm_up=5)
            linear = measure({"linear": calls["linear"]}, rounds=3 * rounds, warm_up=5)["linear"].minimum
            slower = {
                suffix: max(times[f"{axis}{suffix}"].minimum for axis in ("width", "height")) for suffix, _ in _SUFFIXES
            }
            layers[f"{what}, C = {channels}"] = {"without": slower[""] / linear, "with": slower[", built"] / linear}
            print(what, channels, layers[f"{what}, C = {channels}"], flush=True)
    networks = {}
    for what, (batch, size, training) in NETWORKS.items():
        call = step_call(build("b1"), batch, size) if training else forward_call("b1", batch, size)
        times = in_turns({"b1": call}, rounds, least_seconds=SECONDS_A_TURN)
        networks[what] = times["b1, built"].minimum / times["b1"].minimum
        print(what, networks[what], flush=True)
    return {"machine": describe_machine(), "rounds": rounds, "layers": layers, "networks": networks}


def render(found: Mapping[str, Any]) -> str:
    lines = [f"{processor_name(found['machine'])}; CycleFC's time, the slower axis, as a multiple of F.linear's:", ""]
    lines += ["| CycleFC | without | with build-ops |", "|---|---|---|"]
    lines += [f"| {what} | {row['without']:.2f} | **{row['with']:.2f}** |" for what, row in found["layers"].items()]
    lines += ["", "| B1 | time with build-ops, as a multiple of that without |", "|---|---|"]
    lines += [f"| {what} | {ratio:.2f} |" for what, ratio in found["networks"].items()]
    return "\n".join([*lines, "", describe(found["machine"], found["rounds"]) + "."])


def tables() -> str:
    """Those of every processor that was measured."""
    return "\n\n".join(render(read_json(path)) for path in stored("compiled.json"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each call (%(default)s)")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS, keep_memory=True))
    found = measure_all(arguments.rounds)
    path = folder(found["machine"]) / "compiled.json"
    write_json(path, found)
    PART.write(DOCUMENT, tables())
    print(f"written to {path} and {DOCUMENT}")


if __name__ == "__main__":
    main()
