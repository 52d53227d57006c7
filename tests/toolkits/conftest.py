"""Tests of the toolkits' checkouts, which the folder CYCLEMLP_TOOLKITS holds; without it there are none."""

import os
import platform
import re
from pathlib import Path

from cyclemlp_backbones.files import installed_versions, write_atomically

if not os.environ.get("CYCLEMLP_TOOLKITS"):
    collect_ignore_glob = ["test_*.py"]

STEPS = ("train", "resume", "evaluate", "predict", "export", "exported_equals_dygraph", "two_processes")
PACKAGES = ("paddlepaddle", "numpy", "opencv-python", "pillow")
BEGIN, END = "<!-- checkouts: begin -->\n", "<!-- checkouts: end -->\n"
results: dict = {}
repairs: dict = {}


def pytest_runtest_logreport(report):
    match = re.search(r"::test_(\w+)\[(.+)-(\w+)\]$", report.nodeid)
    if match and match[1] in STEPS and (report.when == "call" or report.failed):
        step, checkout, model = match.groups()
        results.setdefault((checkout, model), {})[step] = "yes" if report.passed else "FAILS"
        repairs.setdefault(checkout, []).extend(dict(report.user_properties).get("repairs", []))


def pytest_sessionfinish(session):
    path = session.config.getoption("--write-table")
    if path and results:
        text = Path(path).read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        write_atomically(path, lambda file: Path(file).write_text(before + BEGIN + table() + END + after))


def table() -> str:
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions(PACKAGES).items())
    lines = [f"Python {platform.python_version()}, {versions}.", ""]
    header = ("checkout", "model", *(step.replace("_", " ") for step in STEPS))
    rows = [header, ["---"] * len(header)]
    rows += [(*case, *(steps.get(step, "–") for step in STEPS)) for case, steps in sorted(results.items())]
    lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    for checkout, names in sorted(repairs.items()):
        lines.append(f"- {checkout}, repaired: {', '.join(f'`{name}`' for name in dict.fromkeys(names))}.")
    return "\n".join(lines) + "\n"
