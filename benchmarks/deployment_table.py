"""Puts the stored measurements of exported models into docs/deployment.md. Measures nothing.

python -m benchmarks.deployment_table
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.documents import RESULTS, ROOT, Part
from benchmarks.documents import describe as describe_run
from benchmarks.documents import read_json as read

DOCUMENT = ROOT / "docs" / "deployment.md"
QUANTISED, OPENVINO = RESULTS / "quantised.json", RESULTS / "deployment_openvino.json"
TOLERANCE = 1e-4
EQUALITY = Part("exported models", "make bench-deploy")
OPENVINO_PART = Part("OpenVINO", "python -m benchmarks.deployment --openvino")
OLDER = ("3.2.2", "2.6.2")
"""Releases of Paddle of which oneDNN alone is measured, which is what `predict` uses there."""
INT8 = Part("int8, fp16 and bf16", "make demo demo-det bench-deploy")
_RUNTIMES = {
    "paddle-onednn": ("Paddle", "Paddle, oneDNN on"),
    "paddle": ("Paddle", "Paddle, oneDNN off"),
    "onnx": ("ONNX", "ONNX Runtime"),
    "openvino": ("ONNX", "OpenVINO"),
}
_PACKAGES = ("paddlepaddle", "paddle2onnx", "onnxruntime", "openvino", "paddleseg")


def stored_file(paddle: str) -> Path:
    """Where a run's results are stored: a file for each of the older releases, one for any other."""
    return RESULTS / (f"deployment_{paddle}.json" if paddle in OLDER else "deployment.json")


def describe(machine: dict[str, str]) -> str:
    return describe_run(machine, _PACKAGES, python=f"Python {machine['python']}")


def _line(row: dict[str, Any]) -> str:
    format, runtime = _RUNTIMES[row["runtime"]]
    start = f"| {row['model']} | {format} | {runtime} |"
    if "failure" in row:
        what = row["failure"].split(" (at ")[0].strip().replace("|", "/")
        return f"{start} does not run: `{what}` | | | | | |"
    equal = {shape: value <= TOLERANCE for shape, value in row["differences"].items()}
    largest = max(row["differences"].values())
    batches = "yes" if all(value for shape, value in equal.items() if shape.startswith("3x")) else "**no**"
    cells = [
        f"{'yes' if all(equal.values()) else '**no**'} ({largest:.0e})",
        "**no**, one image at a time" if row.get("failures") else batches,
        "yes" if all(equal.values()) else "**no**",
        f"{row['milliseconds']['deployed']:.0f} ms at {row['side']}",
        f"{row['milliseconds']['dygraph']:.0f} ms",
        f"{row['milliseconds']['deployed'] / row['milliseconds']['dygraph']:.2f}",
    ]
    return f"{start} {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """One line a model, format and runtime, and what the figures were measured on."""
    header = ("model", "format", "runtime", "equal (largest difference)", "dynamic batch", "dynamic size")
    lines = [f"| {' | '.join(header)} | latency | dygraph | of dygraph's |", "|---" * 9 + "|"]
    lines += map(_line, results["rows"])
    lines += ["", f"{describe(results['machine'])}; {results['rounds']} rounds in turns, {results['seconds']} s."]
    return "\n".join(lines)


def quantised_table(results: dict[str, Any]) -> str:
    """fp16, int8 and bf16 beside float32."""
    side, lines = results["side"], []
    for model in results["models"]:
        title = f"{model['name']} of the demo | {model['measure']} | file | {side} x {side} | of float32's time"
        lines += [f"| {title} |", "|---" * 5 + "|"]
        for row in model["rows"]:
            ratio = row["milliseconds"] / model["rows"][0]["milliseconds"]
            figures = f"{row['accuracy']:.3f} | {row['megabytes']:.1f} MB | {row['milliseconds']:.1f} ms | {ratio:.2f}"
            lines.append(f"| {row['name']} | {figures} |")
        lines.append("")
    bf16 = results["bf16"]
    lines += ["| classifier b1, Paddle, oneDNN on | largest difference of logits | 224 x 224 | of float32's time |"]
    lines += ["|---" * 4 + "|", f"| float32 | | {bf16['float32']:.1f} ms | 1.00 |"]
    ratio = bf16["bf16"] / bf16["float32"]
    lines.append(f"| bf16 | {bf16['difference']:.1%} of the largest | {bf16['bf16']:.1f} ms | {ratio:.2f} |")
    return "\n".join([*lines, "", f"{describe(results['machine'])}."])


def equality_part() -> str:
    tables = [table(read(path)) for path in map(stored_file, ("3.3.1", *OLDER)) if path.is_file()]
    return "\n\n".join(tables)


def write_document() -> None:
    EQUALITY.write(DOCUMENT, equality_part())
    if OPENVINO.is_file():
        OPENVINO_PART.write(DOCUMENT, table(read(OPENVINO)))
    if QUANTISED.is_file():
        INT8.write(DOCUMENT, quantised_table(read(QUANTISED)))


if __name__ == "__main__":
    write_document()
