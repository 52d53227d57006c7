"""The operator in C++: found by other processes and only with the Paddle that it was built for, and its errors.

That it equals the plain form is in test_fast_cpu.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from cyclemlp_backbones import CycleFC, compiled, fast_cpu
from cyclemlp_backbones.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def used(monkeypatch):
    """How often the operator ran."""
    calls = []
    shift = compiled.shift
    monkeypatch.setattr(compiled, "shift", lambda x, layer: calls.append(x) or shift(x, layer))
    return calls


@pytest.mark.parametrize(("ops", "times"), [("0", 0), ("1", 1)])
def test_a_variable_of_the_environment_decides(built_ops, used, monkeypatch, ops, times):
    monkeypatch.setenv("CYCLEMLP_OPS", ops)
    layer = fast_cpu.accelerate(CycleFC(4, 4, (1, 3)))
    layer(paddle.randn([1, 5, 6, 4]))
    assert len(used) == times
    layer(paddle.randn([0, 5, 6, 4]))
    CycleFC(4, 4, (1, 3))(paddle.randn([1, 5, 6, 4]))
    with pytest.raises(ValueError, match=r"it takes \[N, H, W, 4\]"):
        layer(paddle.randn([1, 5, 6, 5]))
    assert len(used) == times


def test_another_process_finds_it_and_has_the_golden_values(built_ops):
    code = (
        "import sys, pytest; from cyclemlp_backbones import compiled; assert compiled.available();"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/test_cyclenet.py', "
        "'-k', 'golden and not (logits and b5)']))"
    )
    environment = {**os.environ, "CYCLEMLP_OPS": "1", "CYCLEMLP_HOME": str(built_ops.parent.parent)}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 passed" in run.stdout


@pytest.mark.parametrize("attribute", ["_PADDLE", "SOURCE"])
def test_one_of_another_paddle_or_another_source_is_not_found(built_ops, monkeypatch, tmp_path, attribute):
    monkeypatch.setenv("CYCLEMLP_HOME", str(built_ops.parent.parent))
    assert compiled.library() == built_ops
    other = tmp_path / "other"
    other.write_text("another source")
    monkeypatch.setattr(compiled, attribute, other)
    assert compiled.library() != built_ops


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", "install g++ (apt install g++), or name another in"),
        ("false", "could not"),
    ],
)
def test_without_a_compiler_that_works_the_error_names_it(monkeypatch, tmp_path, capsys, compiler, message):
    monkeypatch.setenv("CYCLEMLP_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert main(["build-ops"]) == 1
    error = capsys.readouterr().err
    assert compiler in error
    assert message in error
    assert list(tmp_path.rglob("*.so")) == []


def test_a_library_that_computes_wrong_values_is_deleted(built_ops, monkeypatch):
    monkeypatch.setenv("CYCLEMLP_HOME", str(built_ops.parent.parent))
    kept = built_ops.read_bytes()
    shift = compiled.shift
    monkeypatch.setattr(compiled, "shift", lambda x, layer: shift(x, layer) + (x.shape[3] == 8))
    assert not compiled._is_right()
    monkeypatch.undo()
    assert compiled._is_right()
    assert built_ops.read_bytes() == kept
