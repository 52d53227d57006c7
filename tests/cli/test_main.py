"""What all commands share: how they end."""

import os
import subprocess
import sys

import pytest

from cyclemlp_backbones.cli import COMMANDS, main, variants


def test_a_reader_that_leaves_early_gets_no_message():
    reading, writing = os.pipe()
    os.close(reading)
    run = [sys.executable, "-m", "cyclemlp_backbones", "variants"]
    done = subprocess.run(run, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(variants, "main", interrupted)
    assert main(["variants"]) == 130
    assert capsys.readouterr().err == "cyclemlp variants: interrupted\n"


def test_an_unknown_command_names_the_near_one(capsys):
    assert main(["exprot"]) == 2
    assert "unknown command 'exprot'; did you mean export?" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_without_warnings(command):
    run = [sys.executable, "-m", "cyclemlp_backbones", command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"cyclemlp {command}" in done.stdout
