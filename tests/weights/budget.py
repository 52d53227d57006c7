"""Reads weights files in a process of its own, whose address space ends at what reading may take.

`python -m tests.weights.budget read PATH...` reads each; `mutate PATH... --count N` reads N changed copies of each.
Prints one JSON object a line: {"path", "outcome", "message", "seconds"}.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_package = types.ModuleType("cyclemlp_backbones")  # without Paddle, whose threads and pools reserve gigabytes
_package.__path__ = [str(ROOT / "cyclemlp_backbones")]
sys.modules["cyclemlp_backbones"] = _package

from cyclemlp_backbones.weights.formats import CheckpointError, read_checkpoint  # noqa: E402

ALLOWANCE = 64_000_000


def seconds_allowed(size: int) -> float:
    return 4 + size * 1e-7


def read(path: Path) -> dict[str, object]:
    size = path.stat().st_size
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (now + 3 * size + ALLOWANCE, hard))
    start, message = time.perf_counter(), ""
    try:
        outcome = f"{len(read_checkpoint(path))} arrays"
    except CheckpointError as error:
        outcome, message = "refused", str(error)
        if "more memory than there is" in message:
            outcome = "out of memory"
    except BaseException as error:  # whatever it is, the test that reads this line fails on it
        outcome, message = type(error).__name__, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    seconds = time.perf_counter() - start
    if seconds > seconds_allowed(size):
        outcome = "too slow"
    return {"path": str(path), "outcome": outcome, "message": message[:500], "seconds": round(seconds, 3)}


def mutate(original: Path, count: int, generator: random.Random, folder: Path) -> dict[str, int]:
    """How often each outcome came; arrays are counted together."""
    data, outcomes = original.read_bytes(), {}
    path = folder / original.name
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 8))):
            # Most of a file is numbers; its structure is at both ends.
            start = generator.choice((0, 0, max(0, len(data) - 2000), generator.randrange(len(data))))
            where = min(len(changed) - 1, start + generator.randrange(400))
            how = generator.randrange(4)
            if how == 0:
                changed[where:where] = changed[start : start + generator.randrange(64)]
            elif how == 1:
                del changed[where : where + generator.randrange(8)]
            else:
                changed[where] = generator.choice((generator.randrange(256), 0, 255, 0x80))
        path.write_bytes(changed)
        outcome = str(read(path)["outcome"])
        outcome = "arrays" if outcome.endswith(" arrays") else outcome
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("read", "mutate"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=0)
    arguments = parser.parse_args()
    for path in arguments.paths:
        if arguments.action == "read":
            print(json.dumps(read(path)), flush=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                generator = random.Random(path.name)
                print(json.dumps(mutate(path, arguments.count, generator, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
