"""What the time of the slower rows is made of: CycleFC's passes, and the operators of exported models.

    python -m benchmarks.bounds [--rounds 9]

Writes bounds.json into the processor's folder of docs/results, and its tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT, Part, read_json, write_json
from benchmarks.exported import NETWORKS, export_network, onnx_call, paddle_call
from benchmarks.group import THREADS
from benchmarks.report import describe
from benchmarks.results import folder, stored
from benchmarks.rows import CHANNELS
from cyclemlp_backbones.files import isolated_python
from cyclemlp_backbones.timing import ROUNDS, describe_machine, measure, start_again_with, variables

DOCUMENT = ROOT / "docs" / "performance.md"
PART = Part("bounds", "python -m benchmarks.bounds")

PRODUCTS = {"Gemm", "MatMul", "FusedMatMul", "Conv", "FusedConv", "inner_product", "matmul", "convolution"}
LAYER_PARTS = ("F.linear", "addmm", "pad", "crop", "concat", "CycleFC", "copy")
_CALLS = 20
_VERBOSE_CODE = (
    "import sys; from pathlib import Path; from benchmarks import exported;"
    "call = exported.paddle_call(Path(sys.argv[1]), sys.argv[2], {'onednn': True, 'ir_optim': False});"
    "[call() for _ in range(int(sys.argv[3]))]"
)


def layer_milliseconds(channels: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CycleFC along the width, of its passes, of the product alone, and of copying its input once."""
    import paddle
    import paddle.nn.functional as F
    from paddle import nn

    from benchmarks.layers import BATCH, SIDES
    from cyclemlp_backbones import CycleFC
    from cyclemlp_backbones.fast_cpu import accelerate

    side, groups = SIDES[channels], -(-channels // 3)
    size = [BATCH, side, side, groups, 1]
    x = paddle.randn([BATCH, side, side, channels])
    layer, linear = accelerate(CycleFC(channels, channels, (1, 3))), nn.Linear(channels, channels)
    padding = [0, 0, 0, 0, 1, 1, 0, 3 * groups - channels]
    padded = F.pad(x, padding).reshape([BATCH, side, side + 2, groups, 3])
    starts = [[0, 0, 1 + offset, 0, residue] for residue, offset in enumerate((0, 1, -1))]
    windows = [paddle.crop(padded, size, start).reshape(size[:4]) for start in starts]
    rows, weight = x.reshape([-1, channels]), linear.weight
    calls: dict[str, Callable[[], Any]] = {
        "F.linear": lambda: F.linear(x, weight, linear.bias),
        "addmm": lambda: paddle.addmm(linear.bias, rows, weight),
        "pad": lambda: F.pad(x, padding),
        "crop": lambda: [paddle.crop(padded, size, start) for start in starts],
        "concat": lambda: paddle.concat(windows, axis=-1),
        "CycleFC": lambda: layer(x),
        "copy": x.clone,
    }
    with paddle.no_grad():
        times = measure(calls, rounds=3 * rounds, warm_up=5)
    return {name: 1e3 * times[name].minimum for name in LAYER_PARTS}


def onnx_milliseconds(folder: Path, name: str) -> dict[str, float]:
    """Milliseconds of a call by operator, by ONNX Runtime's profiler."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    program = str(folder / f"{name}_onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    feed = {"image": np.load(folder / f"{name}.npz")["image"]}
    for _ in range(_CALLS):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    taken: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"] / _CALLS / 1e3
    return dict(taken)


def onednn_milliseconds(folder: Path, name: str) -> dict[str, float]:
    """Milliseconds of a call of Paddle's predictor by oneDNN's primitive, as oneDNN reports them itself."""
    command = isolated_python(_VERBOSE_CODE, folder, name, _CALLS)
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return parse_verbose(output, _CALLS)


def parse_verbose(output: str, calls: int) -> dict[str, float]:
    taken: defaultdict[str, float] = defaultdict(float)
    for line in output.splitlines():
        fields = line.strip().split(",")
        if "exec" in fields and fields[fields.index("exec") + 1] == "cpu":
            taken[fields[fields.index("exec") + 2]] += float(fields[-1]) / calls
    return dict(taken)


def _share(taken: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Milliseconds of products and convolutions, and of the others, the longest first."""
    products = sum(milliseconds for name, milliseconds in taken.items() if name in PRODUCTS)
    others = {name: taken[name] for name in sorted(taken, key=lambda name: -taken[name]) if name not in PRODUCTS}
    return products, others


def render(bounds: Mapping[str, Any]) -> str:
    lines = ["Milliseconds of one call along the width, batch of 8 images of 224 px at the stage's size:", ""]
    lines += ["| C | " + " | ".join(LAYER_PARTS) + " |", "|---" * (1 + len(LAYER_PARTS)) + "|"]
    for channels, parts in bounds["layers"].items():
        lines.append(f"| {channels} | " + " | ".join(f"{parts[name]:.2f}" for name in LAYER_PARTS) + " |")
    lines += ["", "Milliseconds of one image of 224 px in exported models, by operator:", ""]
    lines += ["| | whole call | products and convolutions | the longest others |", "|---|---|---|---|"]
    for key, row in bounds["exported"].items():
        products, others = _share(row["operators"])
        longest = ", ".join(f"{name} {value:.1f}" for name, value in list(others.items())[:8])
        rest = row["whole"] - products - sum(others.values())
        longest += f"; not in the profile {rest:.1f}" if rest > 0.05 * row["whole"] else ""
        lines.append(f"| {key} | {row['whole']:.1f} | {products:.1f} | {longest} |")
    return "\n".join([*lines, "", describe(bounds["machine"], bounds["rounds"]) + "."])


def tables() -> str:
    """Those of every processor that was measured."""
    return "\n\n".join(render(read_json(path)) for path in stored("bounds.json"))


def measure_bounds(rounds: int) -> dict[str, Any]:
    layers = {}
    for channels in CHANNELS:
        layers[str(channels)] = layer_milliseconds(channels, rounds)
        print(f"C = {channels}: {layers[str(channels)]}", flush=True)
    exported = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in NETWORKS:
            export_network(name, folder)
            runtimes: dict[str, tuple[Callable[[], Any], Callable[[Path, str], dict[str, float]]]] = {
                "ONNX Runtime": (onnx_call(folder, name), onnx_milliseconds),
                "Paddle with oneDNN": (
                    paddle_call(folder, name, {"onednn": True, "ir_optim": False}),
                    onednn_milliseconds,
                ),
            }
            for runtime, (call, profile) in runtimes.items():
                whole = 1e3 * measure({name: call}, rounds=rounds)[name].minimum
                exported[f"{name}, {runtime}"] = {"whole": whole, "operators": profile(folder, name)}
                print(f"{name}, {runtime}: {whole:.1f} ms", flush=True)
    return {"machine": describe_machine(), "rounds": rounds, "layers": layers, "exported": exported}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each call (%(default)s)")
    arguments = parser.parse_args()
    start_again_with(variables(THREADS, keep_memory=True))
    bounds = measure_bounds(arguments.rounds)
    path = folder(bounds["machine"]) / "bounds.json"
    write_json(path, bounds)
    PART.write(DOCUMENT, tables())
    print(f"written to {path} and {DOCUMENT}")


if __name__ == "__main__":
    main()
