"""Attacks that take minutes: `make attack` runs them in full and writes docs/reliability.md's table of them,
`make attack SHORT=1` runs a few of each. CYCLEMLP_ATTACK is "long" or "short"; without it there are none."""

import datetime
import os
import platform
import random
import re
from pathlib import Path

import pytest

from cyclemlp_backbones.files import installed_versions, write_atomically

LENGTH = os.environ.get("CYCLEMLP_ATTACK")
SEED = os.environ.get("CYCLEMLP_ATTACK_SEED", "1")
if LENGTH:
    os.environ["OMP_NUM_THREADS"] = "1"  # sums in the same order in every run
else:
    collect_ignore_glob = ["test_*.py"]

BEGIN, END = "<!-- attacks: begin -->\n", "<!-- attacks: end -->\n"
HEADER = ("attack", "seen", "seed", "Paddle", "date")
rows: dict = {}


class Attack:
    """What an attack takes and tells: how often, its random choices, and its row of the table."""

    def __init__(self, request):
        self.rng, self._node = random.Random(f"{SEED} {request.node.name}"), request.node

    def times(self, long, short):
        return short if LENGTH == "short" else long

    def tell(self, seen):
        self._node.user_properties.append(("seen", seen))


@pytest.fixture
def attack(request):
    """The first column is the test's docstring, with its parameters."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    named = {name: getattr(value, "__name__", value) for name, value in parameters.items()}
    request.node.user_properties.append(("attack", " ".join(request.node.obj.__doc__.format(**named).split())))
    return Attack(request)


def pytest_runtest_logreport(report):
    told = dict(report.user_properties)
    if "attack" in told and (report.when == "call" or report.failed):
        (paddle,) = installed_versions(["paddlepaddle", "paddlepaddle-gpu"]).values()
        seen = told.get("seen", "") if report.passed else "FAILS"
        rows[told["attack"], paddle] = (told["attack"], seen, SEED, paddle, str(datetime.date.today()))


def pytest_sessionfinish(session):
    """The rows of what ran; those of other attacks, and of other releases of Paddle, stay."""
    path = session.config.getoption("--write-table")
    if not path or not rows:
        return
    text = Path(path).read_text()
    before, earlier, after = (
        text.partition(BEGIN)[0],
        text.partition(BEGIN)[2].partition(END)[0],
        text.partition(END)[2],
    )
    found = [tuple(line.strip("| ").split(" | ")) for line in earlier.splitlines() if line.startswith("| ")][1:]
    table = {(row[0], row[3]): row for row in found} | rows
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, *table.values())]
    lines.insert(1, "|---" * len(HEADER) + "|")
    lines = [f"Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores.", "", *lines]
    write_atomically(path, lambda file: file.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after))


def processor():
    match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()
