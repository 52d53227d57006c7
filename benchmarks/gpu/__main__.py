"""Whether the network is right on a GPU in every precision, trains in every trainer, and how fast it is.

    python -m benchmarks.gpu [--device gpu|cpu] [--stages "numerics fp16" …] [--batch 64] [--out FOLDER]

Each stage is a process of its own: one that fails says why, and the others go on. The exit code is 1 if any failed. A
whole run on a GPU writes docs/results/gpu/DEVICE.json and its table into docs/performance.md; logs lie in FOLDER.
`--device cpu` is narrow and short, shows that this program works, and leaves docs/ alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT, read_json, write_json
from benchmarks.gpu import table
from benchmarks.gpu.scale import SCALES, NotHere, Scale, lacks, reason_of
from benchmarks.gpu.stages import STAGES
from cyclemlp_backbones.timing import describe_machine

MOST_SECONDS = 1800  # of a stage


def result(status: str, reasons: Sequence[str] = (), **figures: Any) -> dict[str, Any]:
    return {"status": status, "reasons": list(reasons), "figures": figures}


def run_stage(name: str, scale: Scale, out: Path) -> dict[str, Any]:
    """A stage in a process of its own: status "passed", "failed" or "not here", figures, reasons, and seconds."""
    if lacking := lacks(scale.device, STAGES[name].precision):
        return {**result("not here", [lacking]), "seconds": 0.0}
    found, log = (out / f"{name.replace(' ', '-')}{suffix}" for suffix in (".json", ".log"))
    found.unlink(missing_ok=True)
    # Paddle lets fp32 products be in TF32 where a GPU has it; this is NVIDIA's own switch for all its libraries.
    environment = {**os.environ, **({} if STAGES[name].precision == "tf32" else {"NVIDIA_TF32_OVERRIDE": "0"})}
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, json.dumps(asdict(scale)), str(found)]
    started = time.monotonic()
    with log.open("w") as output:
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT}
        try:
            status = subprocess.run(command, cwd=ROOT, env=environment, timeout=MOST_SECONDS, **streams).returncode
            ended = f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"not done within {MOST_SECONDS} s"
    data = read_json(found) if found.exists() else result("failed", [f"{ended}; see {log.name}"])
    return {**data, "seconds": round(time.monotonic() - started, 1)}


def run_here(name: str, scale: Scale) -> dict[str, Any]:
    """A stage in this process."""
    import paddle

    try:
        paddle.set_device(scale.device)
        paddle.seed(0)
        figures, failures = STAGES[name].run(scale)
    except NotHere as reason:
        return result("not here", [str(reason)])
    except Exception as error:
        traceback.print_exc()  # into the log
        return result("failed", [reason_of(error)])
    return result("failed" if failures else "passed", failures, **figures)


def describe_device(device: str) -> dict[str, str]:
    """The machine, and its GPU with the libraries' versions, as far as Paddle tells."""
    import paddle

    if device == "cpu":
        return describe_machine()
    properties = paddle.device.cuda.get_device_properties()
    return {
        **describe_machine(),
        "device": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": str(paddle.version.cuda()),
        "cudnn": str(paddle.version.cudnn()),
    }


def run_stages(names: Sequence[str], scale: Scale, out: Path) -> dict[str, Any]:
    """All results, by name; a line for each, with the time that the rest is likely to take."""
    seconds = {name: 0.0 if lacks(scale.device, STAGES[name].precision) else STAGES[name].seconds for name in names}
    started, results = time.monotonic(), {}
    for name in names:
        found = results[name] = run_stage(name, scale, out)
        elapsed, done = time.monotonic() - started, sum(seconds[done] for done in results)
        left = elapsed / done * (sum(seconds.values()) - done) if done else 0.0
        so_far, rest = ("{}:{:02}".format(*divmod(round(value), 60)) for value in (elapsed, left))
        said = "; ".join([f"{found['status']} in {found['seconds']:.0f} s", *found["reasons"]])
        print(f"[{len(results)}/{len(names)}] {name}: {said} ({so_far} so far, about {rest} left)", flush=True)
    return results


def store(data: dict[str, Any]) -> None:
    """docs/results/gpu/DEVICE.json, and the document with all that lie there."""
    name = re.sub(r"[^a-z0-9]+", "-", data["machine"]["device"].lower()).strip("-")
    write_json(table.STORED / f"{name}.json", data)
    table.PART.write(table.DOCUMENT, table.render(table.stored()))
    print(f"written to {table.STORED / f'{name}.json'} and {table.DOCUMENT}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=SCALES, default="gpu", help="default: %(default)s")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help="default: all"
    )
    parser.add_argument("--batch", type=int, help="images of a forward whose time is taken; 64 on a GPU, 1 on a CPU")
    parser.add_argument("--out", type=Path, default=Path("output/gpu-check"), help="of logs (%(default)s)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a stage, its scale, and the file for its result
    arguments = parser.parse_args()
    if arguments.one:
        name, values, file = arguments.one
        write_json(Path(file), run_here(name, Scale(**json.loads(values))))
        return 0
    import paddle

    scale = SCALES[arguments.device]
    if arguments.batch is not None:
        if arguments.batch < 1:
            parser.error(f"--batch {arguments.batch}; it takes at least 1")
        scale = replace(scale, batch=arguments.batch)
    if scale.device == "gpu" and not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        print(
            f"Paddle {paddle.__version__} sees no GPU. Install paddlepaddle-gpu for your CUDA instead of it, or try "
            "the program itself: `python -m benchmarks.gpu --device cpu`",
            file=sys.stderr,
        )
        return 1
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = run_stages(arguments.stages, scale, out)
    data = {"machine": describe_device(scale.device), "scale": asdict(scale), "stages": results}
    write_json(out / "result.json", data)
    print(f"\n{table.render([data])}\n\nwritten to {out / 'result.json'}")
    if scale.device == "gpu" and set(results) == set(STAGES):
        store(data)
    return int(any(found["status"] == "failed" for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
