"""`python -m tests.matrix [PYTHON-PADDLE …]`: the versions that the project is tried on, an environment a cell.

Environments lie in CYCLEMLP_MATRIX and are used again while their requirements stay the same. What a cell gave is put
into the package's versions.json, which `cyclemlp doctor` reads, and into docs/support.md, before the next one begins.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.documents import Part, read_json, write_json
from cyclemlp_backbones.environment import VERSIONS
from cyclemlp_backbones.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "support.md"
TABLE = Part("versions", "make test-matrix")
CACHE = Path(os.environ.get("CYCLEMLP_MATRIX") or Path.home() / ".cache" / "cyclemlp" / "matrix")
CELLS = [f"{python}-{paddle}" for python in ("3.10", "3.11", "3.12", "3.13") for paddle in ("2.6.2", "3.2.2", "3.3.1")]
SECONDS = 1200
"""What a part may take."""

# What every cell needs; hypothesis is what the chosen tests import.
BASE = ("-e", ".[cls,export]", "pytest", "hypothesis")
# The pins of the extras, and what the toolkits' checkouts import whose own pins do not hold on every Python.
WHEELS = ("paddleseg==2.8.0", "paddledet==2.6.0")
PINS = ("numpy<2", "opencv-python<4.6")
PROTOBUF = {"2.6.2": ("protobuf<7",)}
CHECKOUTS = (
    "numpy<2.4",  # from 2.4 on, `int` of a Paddle tensor of one element fails
    *("visualdl>=2.2", "opencv-python", "filelock", "scipy", "prettytable", "scikit-learn", "scikit-image"),
    *("typeguard", "terminaltables", "shapely", "pycocotools", "imgaug>=0.4", "setuptools<81"),
)
# Built from source, these would take a quarter of an hour each, or an older one of another time is taken.
BINARIES = "--only-binary=numpy,opencv-python,scipy,scikit-learn,scikit-image,imgaug"

PARTS = {
    "core": (
        *("tests/test_cyclenet.py", "tests/weights/test_loading.py", "tests/weights/test_formats.py"),
        *("tests/adapters/test_importing.py", "-k"),
        "(golden and not b5) or (published_count and b1) or round_trip or pretrained_takes or importing",
    ),
    "cls": ("tests/classification/test_trainer.py", "-k", "leaves_configuration or step_after_resuming"),
    "predict": (
        *("tests/deploy/test_classifier.py", "tests/deploy/test_predict.py", "-k"),
        "every_format_equals or probabilities_are",
    ),
    "paddleseg 2.8.0": ("tests/cli/test_seg.py", "-k", "train_leaves"),
    "paddledet 2.6.0": ("tests/cli/test_det.py", "-k", "train_leaves"),
    "PaddleSeg-develop": ("tests/toolkits", "-k", "PaddleSeg-develop-semantic_fpn and (train or export)"),
    "PaddleDetection-develop": ("tests/toolkits", "-k", "PaddleDetection-develop-retinanet and (train or export)"),
}


def interpreter(python: str) -> str | None:
    """A Python of this version, from the PATH or from pyenv."""
    for path in (f"python{python}", *map(str, Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))):
        try:
            done = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.startswith(f"{python}."):
            return path
    return None


def run(command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """The exit status and what was printed; the status is 124 where it took longer than SECONDS."""
    with subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # tests start processes of their own
            return 124, process.communicate()[0]
    return process.returncode, output


def pip(python: Path, *arguments: str) -> str:
    """ "" where pip did what it was asked for, else why not, in its words."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", BINARIES, *arguments]
    status, output = run(command)
    lines = [line for line in output.splitlines() if line.startswith("ERROR: ") and "Ignored the" not in line]
    said = " ".join(line.removeprefix("ERROR: ") for line in lines if "for help visit" not in line)
    return "" if status == 0 else f"pip: {said or output.strip()[-200:] or f'stopped after {SECONDS} s'}"


def install(cell: str) -> tuple[Path, dict[str, str]]:
    """The environment's Python, and why each part that cannot be installed there cannot; "core": nothing can."""
    version, paddle = cell.split("-")
    folder, stamp = CACHE / cell, CACHE / f"{cell}.json"
    python, wanted = folder / "bin" / "python", [str(ROOT), *BASE, *WHEELS, *PINS, *CHECKOUTS]
    if stamp.is_file() and (stored := read_json(stamp))["requirements"] == wanted:
        return python, stored["reasons"]
    base = interpreter(version)
    if base is None:
        return python, {"core": f"no Python {version} on the PATH or under pyenv"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    run([base, "-m", "venv", folder])
    if reason := pip(python, f"paddlepaddle=={paddle}", "--no-deps", "--dry-run"):
        shutil.rmtree(folder)
        return python, {"core": reason}
    reasons, chosen = {}, []
    for wheel in WHEELS:
        if reason := pip(python, "--dry-run", "--ignore-installed", *chosen, wheel, *PINS):
            reasons[wheel.replace("==", " ")] = reason
        else:
            chosen.append(wheel)
    if reason := pip(
        python,
        f"paddlepaddle=={paddle}",
        *BASE,
        *chosen,
        *(PINS if chosen else ()),
        *CHECKOUTS,
        *PROTOBUF.get(paddle, ()),
    ):
        return python, {"core": reason}
    write_json(stamp, {"requirements": wanted, "reasons": reasons})
    return python, reasons


def try_part(python: Path, part: str) -> str:
    """ "yes", or the first test that failed and what it said."""
    status, output = run(
        [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short", *PARTS[part]],
        PYTHONPATH=str(ROOT),
    )
    (CACHE / f"{python.parents[1].name}.{part.split()[0]}.log").write_text(output)
    failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if status == 124:
        return f"stopped after {SECONDS} s"
    return "yes" if status == 0 else (failed[0][:300] if failed else f"pytest ended with status {status}")


def installed(python: Path) -> str:
    code = (
        "from cyclemlp_backbones.files import installed_versions; print(installed_versions(['numpy', 'opencv-python']))"
    )
    found = ast.literal_eval(run([python, "-c", code])[1].splitlines()[-1])
    return ", ".join(f"{name} {version}" for name, version in found.items())


def table(cells: Mapping[str, Mapping[str, str]]) -> str:
    """The part of docs/support.md that shows what versions.json holds."""
    lines = [f"| Python | Paddle | {' | '.join(PARTS)} | with |", "|---" * (len(PARTS) + 3) + "|"]
    notes: dict[str, int] = {}
    for cell in CELLS:
        row = cells.get(cell, {})
        shown = []
        for part in PARTS:
            said = row.get(part, "not run")
            shown.append(said if said in ("yes", "not run") else f"no ({notes.setdefault(said, len(notes) + 1)})")
        if "core" in row and row["core"] != "yes":
            shown[1:] = ["–" if part not in row else text for part, text in zip([*PARTS][1:], shown[1:])]
        python, paddle = cell.split("-")
        lines.append(f"| {python} | {paddle} | {' | '.join(shown)} | {row.get('with', '')} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for note, number in notes.items())]).strip()


def main(chosen: Sequence[str]) -> int:
    if unknown := set(chosen) - set(CELLS):
        print(f"no such cell: {', '.join(sorted(unknown))}; choose from {', '.join(CELLS)}")
        return 2
    failed = 0
    for cell in chosen or CELLS:
        started = time.monotonic()
        python, row = install(cell)
        if "core" not in row:
            row |= {part: try_part(python, part) for part in PARTS if part not in row}
            row["with"] = installed(python)
        failed += any("pip:" not in said and said != "yes" for part, said in row.items() if part in PARTS)
        cells = {**read_json(VERSIONS), cell: row}
        write_atomically(VERSIONS, lambda file, cells=cells: write_json(file, cells))
        TABLE.write(DOCUMENT, table(cells))
        print(f"{cell} ({time.monotonic() - started:.0f} s): {row}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
