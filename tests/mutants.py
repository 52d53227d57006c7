"""Changes one place of the code at a time and looks whether the tests notice: `make mutants`, MODULE=NAME for one.

The usual changes: another operator, the opposite condition, another constant, a statement left out. Each goes into a
copy of the tree; a fork that has Paddle loaded already runs the module's quick tests that reach the changed lines, the
quickest first, until one fails. What survives has a reason in tests/mutants.yml, or is a failure.
Figures go to docs/results/mutants.json and into the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
REASONS = ROOT / "tests" / "mutants.yml"
FIGURES = ROOT / "docs" / "results" / "mutants.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- mutants: begin -->\n", "<!-- mutants: end -->\n"
COLUMNS = ("changes", "tried", "killed", "explained")
NETWORK = [
    *("tests/test_cyclefc.py", "tests/test_numerics.py", "tests/test_cyclenet.py"),
    "tests/test_fast_cpu.py::test_fast_form_equals_the_plain_one",
    *("-k", "not b5 and not b4 and not b3 and not memory and not to_static_equals and not compiled"),
]
WEIGHTS = [
    *("tests/weights/test_pickles.py", "tests/weights/test_arrays.py", "tests/weights/test_formats.py"),
    *("tests/weights/test_refusals.py", "tests/weights/test_containers.py"),
    *("-k", "not changed_bytes and not truncated"),
]
MODULES = {
    "cyclemlp_backbones/cyclenet.py": NETWORK,
    "classification/losses.py": ["tests/classification/test_losses.py"],
    "classification/mixup.py": ["tests/classification/test_mixup.py"],
    "classification/schedule.py": ["tests/classification/test_schedule.py"],
    "cyclemlp_backbones/weights/pickles.py": WEIGHTS,
    "cyclemlp_backbones/weights/arrays.py": WEIGHTS,
    "cyclemlp_backbones/weights/formats.py": WEIGHTS,
}
"""Module -> its quick tests, as pytest takes them."""

_SWAPS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Break: ast.Continue, ast.Continue: ast.Break},
}
_ERRORS = ("damaged", "refused", "CheckpointError", "MissingCheckpointError", "ValueError", "info", "warning")
"""Calls whose texts are left as they are."""


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, Any, int, str]]:
    """(node, field, index or None, statement's line, function) of all that may be changed, in the code's order."""

    def visit(node: ast.AST, statement: ast.stmt | None, function: str) -> Iterator[tuple[Any, ...]]:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "ctx"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST):
                    continue
                if isinstance(node, ast.Call) and _name(node.func) in _ERRORS and _is_text(child):
                    continue
                if isinstance(child, ast.Expr) and _is_text(child.value):
                    continue  # a docstring
                own = child if isinstance(child, (ast.stmt, ast.match_case)) else statement
                inside = function
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and name == "body":
                    inside = f"{function}.{node.name}".lstrip(".")
                yield child, (node, name, index), own, inside
                yield from visit(child, own, inside)

    yield from visit(tree, None, "")  # type: ignore[misc]


def _name(function: ast.AST) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def replacements(node: ast.AST, parent: ast.AST, field: str) -> Iterator[ast.AST]:
    """What may stand in place of `node`."""
    if type(node) in _SWAPS:
        yield _SWAPS[type(node)]()
    if isinstance(node, ast.Constant) and not isinstance(parent, ast.JoinedStr):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield ast.Constant(node.value + 1 if abs(node.value) < 32 else node.value * 2)
        elif isinstance(node.value, str):
            yield ast.Constant(f"{node.value}X")
        elif isinstance(node.value, bytes):
            yield ast.Constant(node.value + b"X")
    if field == "test" or (field == "ifs" and isinstance(parent, ast.comprehension)):
        yield ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    if isinstance(node, (ast.Expr, ast.Raise)):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value, lineno=node.lineno)
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    if isinstance(node, ast.keyword) and node.arg is not None and isinstance(parent, ast.Call):
        yield ast.Starred(ast.Tuple([], ast.Load()), ast.Load())  # the argument left out


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def mutants(source: str) -> Iterator[dict[str, Any]]:
    """Each mutant's name (function: statement's change), lines whose tests see it (none: all tests) and source."""
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for node, (parent, field, index), statement, function in places(tree):
        for new in replacements(node, parent, field):
            old_list = getattr(parent, field)
            before = _head(statement)
            if isinstance(new, ast.Starred):
                changed = [keyword for keyword in old_list if keyword is not node]
                setattr(parent, field, changed)
            elif index is None:
                setattr(parent, field, new)
            else:
                setattr(parent, field, [*old_list[:index], new, *old_list[index + 1 :]])
            ast.fix_missing_locations(tree)
            text = ast.unparse(tree)
            after = _head(new if statement is node else statement)
            setattr(parent, field, old_list)
            what = f"{function or 'module'}: {_shortened(before, after)}"
            seen[what] = seen.get(what, 0) + 1
            name = what if seen[what] == 1 else f"{what} ({seen[what]})"
            first = getattr(statement, "pattern", statement).lineno
            lines = range(first, _end_of_head(statement) + 1) if _is_in_body(function, tree) else None
            yield {"name": name, "lines": lines, "source": text}


def _is_in_body(function: str, tree: ast.Module) -> bool:
    """Whether what is in `function` runs when it is called, not at the import."""
    scope: Any = tree
    for part in filter(None, function.split(".")):
        scope = next(node for node in ast.walk(scope) if getattr(node, "name", "") == part)
    return isinstance(scope, ast.FunctionDef)


def _end_of_head(statement: Any) -> int:
    """The last line of a statement without those within it."""
    if isinstance(statement, ast.match_case):
        return statement.pattern.end_lineno or statement.pattern.lineno
    inner = getattr(statement, "cases", None) or getattr(statement, "body", None)
    if not inner:
        return statement.end_lineno
    return max(statement.lineno, getattr(inner[0], "pattern", inner[0]).lineno - 1)


def _head(node: Any) -> str:
    """The code of a statement without those within it."""
    node = copy.copy(node)
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        if isinstance(getattr(node, field, None), list):
            setattr(node, field, [])
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


def _shortened(before: str, after: str) -> str:
    """`before -> after` without what they share at both ends, but for some words."""
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    first = max(0, before.rfind(" ", 0, max(0, start - 24)) + 1)
    last = min(end, 24)
    return f"{before[first : len(before) - end + last]} -> {after[first : len(after) - end + last]}"


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


class Mutating:
    """A pytest plugin that has the collected tests look for mutants instead of running them once.

    Each mutant gets a fork, in which the functions of the loaded module take the changed code; where the change is
    outside of functions, or changes what a function closes over, the fork loads everything anew.
    """

    def __init__(self, module: str, tree: Path, arguments: argparse.Namespace, known: dict[str, str]):
        self.module, self.path, self.arguments, self.known = module, tree / module, arguments, known
        self.source = (ROOT / module).read_text(encoding="utf-8")
        self.found: dict[str, Any] = {"changes": 0, "tried": 0, "killed": 0, "timeouts": 0, "survivors": []}
        self._lines: set[int] = set()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        reached = self.path.with_suffix(".json")
        if status := forked(lambda: self._run_all(session, reached), 1800):
            sys.exit(f"the tests of {self.module} end with status {status} before anything is changed")
        tests = json.loads(reached.read_text())
        items = sorted(session.items, key=lambda item: tests[item.nodeid][0])
        limit = 20 + 5 * sum(seconds for seconds, _ in tests.values())
        for number, mutant in enumerate(mutants(self.source)):
            self.found["changes"] += 1
            if self.arguments.only in mutant["name"] and number % self.arguments.every == 0:
                lines = mutant["lines"]
                chosen = [item for item in items if lines is None or set(lines) & set(tests[item.nodeid][1])]
                self.path.write_text(mutant["source"], encoding="utf-8")
                os.utime(self.path, (number, number))  # a time of its own, else compiled code could be taken for its
                self._count(mutant["name"], self._status(session, mutant, chosen, limit))
        self.path.write_text(self.source, encoding="utf-8")
        return True

    def _status(
        self, session: pytest.Session, mutant: dict[str, Any], chosen: list[pytest.Item], limit: float
    ) -> int | None:
        status: int | None = _ANEW
        if mutant["lines"] is not None:
            status = forked(lambda: self._run(session, mutant["source"], chosen), limit)
        if status == _ANEW:
            status = forked(lambda: _pytest(MODULES[self.module]), limit)
        return status

    def _count(self, name: str, status: int | None) -> None:
        self.found["tried"] += 1
        self.found["killed"] += status not in (0, None)
        self.found["timeouts"] += status is None
        if status == 0:
            self.found["survivors"].append(name)
            print(f"{'explained' if name in self.known else 'SURVIVES '} {name}", flush=True)

    def _run(self, session: pytest.Session, source: str, items: Sequence[pytest.Item]) -> int:
        module = sys.modules[self.module.removesuffix(".py").replace("/", ".")]
        changed = dict(_codes(compile(source, str(self.path), "exec", dont_inherit=True)))
        try:
            for function in _functions(module):
                function.__code__ = changed[function.__qualname__]
        except ValueError:  # another number of free variables
            return _ANEW
        for item in items:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                return 1
        return 0

    def _run_all(self, session: pytest.Session, reached: Path) -> int:
        """Writes for each test its seconds and the lines of the module that it runs."""
        tests = {}
        for item in session.items:
            self._lines, start = set(), time.perf_counter()
            sys.settrace(self._enter)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            sys.settrace(None)
            tests[item.nodeid] = [time.perf_counter() - start, sorted(self._lines)]
        reached.write_text(json.dumps(tests))
        return session.testsfailed

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename == str(self.path) else None

    def _line(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        self._lines.add(frame.f_lineno)
        return self._line


_ANEW = 99
"""The status of a fork that cannot take the changed code as it is."""


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from _codes(inner)


def _functions(scope: Any) -> Iterator[FunctionType]:
    """The functions of a module and of its classes."""
    name = getattr(scope, "__module__", scope.__name__)
    for value in vars(scope).values():
        value = getattr(value, "fget", getattr(value, "__wrapped__", value))
        if isinstance(value, FunctionType) and value.__module__ == name and value.__code__.co_filename[0] != "<":
            yield value
        elif isinstance(value, type) and value.__module__ == name:
            yield from _functions(value)


def _pytest(arguments: list[str]) -> int:
    """In a fork, all loaded anew but for Paddle and the other libraries."""
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("tests", "classification", "cyclemlp_backbones")
    ]:
        del sys.modules[name]
    return int(pytest.main([*_OPTIONS, "-x", *arguments]))


_OPTIONS = ["-q", "-p", "no:cacheprovider", "--capture=no", "--disable-warnings"]


def forked(work: Callable[[], int], timeout: float) -> int | None:
    """What `work` returns in a fork, negative for a signal, None for no end within `timeout` seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        status = 98
        try:
            status = work()
        finally:
            os._exit(status)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="part of a module's path; default: all")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name has this in it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th mutant")
    parser.add_argument("--list", action="store_true", help="print the mutants and change nothing")
    arguments = parser.parse_args()
    chosen = [module for module in MODULES if not arguments.modules or any(m in module for m in arguments.modules)]
    if arguments.list:
        for module in chosen:
            print(*(mutant["name"] for mutant in mutants((ROOT / module).read_text(encoding="utf-8"))), sep="\n")
        return
    reasons = yaml.safe_load(REASONS.read_text(encoding="utf-8"))
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    os.nice(5)
    for slow in ("paddle.distributed.fleet.utils", "paddle.vision", "hypothesis.strategies", "scipy.io", "safetensors"):
        importlib.import_module(slow)  # once, here, for all forks
    unexplained = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "output", "docs")
        shutil.copytree(ROOT, tree, ignore=ignored)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        os.environ["PYTHONPATH"] = str(tree)
        sys.modules.pop("tests", None)  # which `-m` imported from the tree that stays as it is
        for module in chosen:
            known = reasons.get(module, {})
            plugin = Mutating(module, tree, arguments, known)
            pytest.main([*_OPTIONS, f"--basetemp={folder}/tests", *MODULES[module]], [plugin])
            found = plugin.found
            if not found["tried"]:
                sys.exit(f"{module}: no mutant was tried, since its tests were not collected")
            survivors = found.pop("survivors")
            unexplained += len({*survivors} - {*known})
            if arguments.every == 1 and not arguments.only:
                print(*(f"NEEDLESS  {name}" for name in {*known} - {*survivors}), sep="\n", flush=True)
            figures[module] = {**found, "explained": len({*survivors} & {*known}), "every": arguments.every}
            print(f"{module}: {figures[module]}", flush=True)
            if not arguments.only:
                FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
                _write_table(figures)
    if unexplained:
        sys.exit(f"{unexplained} mutants survive without a reason in {REASONS.relative_to(ROOT)}")


def _write_table(figures: dict[str, dict[str, int]]) -> None:
    rows = [("module", *COLUMNS), *((f"`{name}`", *map(found.get, COLUMNS)) for name, found in figures.items())]
    lines = ["| " + " | ".join(map(str, row)) + " |\n" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|\n")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{''.join(lines)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
