"""Every command of a page is run by a test from the page's text, or is parsed here by the program's own parser, and the
configuration that it names is read. A command that is in neither list fails."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cyclemlp_backbones.cli import COMMANDS, main
from cyclemlp_backbones.cli.cls import program
from cyclemlp_backbones.configurations import read_configuration
from tests.reference import GOLDEN

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN_WHOLE = {
    "own-data-segmentation.md": "tests/docs/test_own_data.py",
    "own-data-detection.md": "tests/docs/test_own_data.py",
    "own-data-classification.md": "tests/docs/test_own_data.py",
    "quickstart.md": "tests/test_documents.py",
    "paddlex.md": "tests/paddlex/test_page.py",
}
"""Pages whose every command a test runs, in their order; a page of the same name in docs/zh has the same commands."""

RUN_HERE = {
    "weights.md": ["cyclemlp convert", "cyclemlp weights list", "cyclemlp weights check"],
    "deployment.md": ["cyclemlp export best.pdparams"],
    "recipes.md": ["cyclemlp info"],
}
"""Commands of other pages that `test_commands_that_need_little_run` runs."""

FOREIGN = {
    "git": "network",
    "pip": "network",
    "tritonserver": "a server",
    "trtexec": "a GPU",
    "make": "its target is looked up below",
    "python -m paddle_serving_client.convert": "Paddle Serving",
    "python -m paddle_serving_server.serve": "Paddle Serving",
    "python docs/generate.py": "tests/test_documents.py compares what it writes",
    "python -m pytest": "tests of the project",
    "python -m benchmarks.memory": "tests/cli/test_variants_info_configs.py measures one",
    "python docs/draw.py": "the pictures of docs/architecture.md",
}
"""First words of commands that are not ours."""


class Parsed(Exception):
    """In place of what a command does after its arguments were understood."""


def blocks(page):
    """The page's blocks of commands: those of no language, or of a shell."""
    found = re.findall(r"^ *```(.*?)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.S | re.M)
    no_commands = ("@", "# seg.", "# det.", "# predict.py")  # a citation, and files that a page has one write
    return [body for language, body in found if language in ("", "sh") and not body.startswith(no_commands)]


def commands(page):
    """The page's commands, as words. A variable has its last value, a loop its first; `\\` goes on in the next line."""
    variables = {}
    for body in blocks(page):
        text = re.sub(r"\\\n", " ", body)
        text = re.sub(r"<<END\n.*?^END$", "", text, flags=re.S | re.M)
        for line in text.splitlines():
            line = re.sub(r'"\$\(cyclemlp (\w+) --launcher\)"', r"LAUNCHER", line)
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            while words and (assigned := re.fullmatch(r"([A-Z_]+)=(.*)", words[0], re.S)):
                variables[assigned[1]] = assigned[2]
                words = words[1:]
            if words[:1] == ["export"]:
                continue
            if words[:1] == ["for"]:
                variables[words[1]] = words[3].rstrip(";")
            elif words and words[0] not in ("do", "done"):
                yield words


def as_ours(words):
    """The arguments of `cyclemlp` that a command means, or None for another program's."""
    if words[0] == "cyclemlp":
        return words[1:]
    if words[:3] == ["python", "-m", "paddle.distributed.launch"]:
        rest = list(itertools.dropwhile(lambda word: word != "LAUNCHER" and not word.endswith(".py"), words))
        assert rest, f"nothing to launch in {words}"
        return rest[1:] if rest[0] == "LAUNCHER" else ["cls", Path(rest[0]).stem, *rest[1:]]
    return ["cls", *words[3:]] if words[:3] == ["python", "-m", "classification"] else None


def parse(argv, monkeypatch):
    """Has the program understand `argv`; its configuration, if it names one of ours, is read."""
    argv = [str(ROOT / word) if word.startswith("classification/configs/") else word for word in argv]
    if argv[0] in ("seg", "det") and argv[1].endswith(".py"):
        argv = [argv[0], *argv[2:]]
        argv.insert(1, "train")  # a checkout's script has the flags of its action
    unfinished = "…" in argv
    argv = [word for word in argv if word != "…"]
    if unfinished and argv[-1] in ("--config", "-c"):
        argv.append("my_config.yml")
    if unfinished and argv[0] == "export":
        argv[1:1] = ["model.pdparams", "out", "--task", "cls"]

    def parsed(method):
        def parse(self, args=None, namespace=None):
            raise Parsed(method(self, args, namespace))

        return parse

    def joined(config):
        raise Parsed(config)

    with monkeypatch.context() as patched:
        if argv[0] == "cls" and argv[1] not in ("lists",):
            patched.setattr(importlib.import_module(f"{program()}.commands"), "_join", joined)
        else:
            for name in ("parse_args", "parse_intermixed_args"):
                patched.setattr(argparse.ArgumentParser, name, parsed(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed) as understood:
            main(argv)
    config = getattr(understood.value.args[0], "config", None)
    if isinstance(config, str) and config.startswith(("seg_configs/", "det_configs/")):
        assert read_configuration(ROOT / config)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_understood(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[0].split())
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    for words in commands(page) if page.name not in RUN_WHOLE else ():
        if (argv := as_ours(words)) is not None:
            assert argv[0] in COMMANDS, words
            parse(argv, monkeypatch)
        else:
            known = [foreign for foreign in FOREIGN if " ".join(words).startswith(foreign)]
            assert known, f"{page.name}: nothing runs, parses or knows {words}"
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets
            for named in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
                assert set(named.split(",")) <= extras


def test_pages_that_are_said_to_run_are_named_by_their_test():
    for name, test in RUN_WHOLE.items():
        assert name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_commands_that_need_little_run(page, tmp_path):
    """In their order, on a checkpoint of ten classes under the names that the page gives."""
    shutil.copy(GOLDEN / "tiny_zip.pth", tmp_path / "CycleMLP_B1.pth")
    assert main(["convert", str(GOLDEN / "tiny_zip.pth"), str(tmp_path / "best.pdparams"), "--layout", "torch"]) == 0
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(10))))
    wanted = [shlex.join(words) for words in commands(ROOT / "docs" / page)]
    chosen = [text for text in wanted if text.startswith(tuple(RUN_HERE[page]))]
    assert {start for start in RUN_HERE[page] if not any(text.startswith(start) for text in chosen)} == set()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CYCLEMLP_HOME": str(tmp_path / "home")}
    script = f'cyclemlp() {{ "{sys.executable}" -m cyclemlp_backbones "$@"; }}\n' + "\n".join(chosen)
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
