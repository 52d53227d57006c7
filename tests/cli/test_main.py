"""What all commands share: how they end."""

import contextlib
import importlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cyclemlp_backbones import VARIANTS, build_backbone, build_classifier
from cyclemlp_backbones.cli import COMMANDS, EXAMPLES, main, variants
from cyclemlp_backbones.cli.cls import program
from tests.docs.test_commands import parse


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


def test_every_exit_status_is_documented_and_happens(monkeypatch, capsys):
    commands = importlib.import_module(f"{program()}.commands")

    def ends(error):
        def train(*_):
            raise error

        monkeypatch.setattr(commands, "train", train)
        return main(["cls", "train"])

    happened = {main(["--version"]), main(["info", "b7"]), main(["nothing"]), ends(KeyboardInterrupt())}
    happened |= {ends(type("Terminated", (Exception,), {})()), ends(ValueError()), 141}  # 141: the test above
    page = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    assert {int(status) for status in re.findall(r"^\| (\d+) \|", page, re.M)} == happened


def test_an_unknown_command_names_the_near_one(capsys):
    assert main(["exprot"]) == 2
    assert "unknown command 'exprot'; did you mean export or plot?" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_without_warnings(command):
    run = [sys.executable, "-m", "cyclemlp_backbones", command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"cyclemlp {command}" in done.stdout


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_help_of_a_command_and_of_an_action_ends_with_an_example_that_is_understood(line, monkeypatch, capsys):
    _, *words = shlex.split(line)
    actions = {"seg", "det", "plot", "weights", "data"}
    for asked in (words[:1], words[:2]) if words[0] in actions else (words[:1],):
        with contextlib.suppress(SystemExit):
            main([*asked, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert "example: cyclemlp " + " ".join(asked) in told
    assert line in told
    parse(words, monkeypatch)


def test_tables_are_there_for_programs_too(capsys):
    assert main(["variants", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {name: row["parameters"] for name, row in rows.items()} == {n: v.parameters for n, v in VARIANTS.items()}
    assert main(["info", "b1", "--size", "97x131", "--num-classes", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    model, pyramid = build_classifier("b1", num_classes=7), build_backbone("b1")
    for name, network in (("classifier", model), ("backbone", pyramid)):
        assert told[name]["parameters"] == sum(math.prod(p.shape) for p in network.parameters())
    assert told["maps"][1] == {"stride": 8, "channels": 128, "height": 12, "width": 17}
