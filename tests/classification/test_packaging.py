"""What a user without a checkout gets: the wheel, in an environment that knows nothing else of this repository."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import classification
from cyclemlp_backbones.cli import cls, configs
from tests.classification.tiny import ROOT, arguments


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Installed into an empty folder; runs `cyclemlp` from there."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", built], check=True)

    def run(*command):
        code = "import sys; from cyclemlp_backbones.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {"PYTHONPATH": str(folder / "site"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        environment |= {name: os.environ[name] for name in ("HOME", "MKL_DEBUG_CPU_TYPE") if name in os.environ}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, command)],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    run.site = folder / "site" / "cyclemlp_backbones"
    return run


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_says_that_it_is_typed(wheel, tmp_path):
    run = wheel("configs", tmp_path)
    assert run.returncode == 0, run.stderr
    for name in configs.FOLDERS:
        expected = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*.yml")}
        assert {path.relative_to(tmp_path) for path in (tmp_path / name).rglob("*.yml")} == expected
        assert expected
    assert (wheel.site / "py.typed").is_file()


@pytest.mark.slow
def test_the_wheel_pretrains(wheel, digits, tmp_path):
    options = ["--config", "cyclemlp_b0.yml", *arguments(digits, tmp_path, schedule__epochs=1, mix__mixup=0.2)]
    run = wheel("cls", "train", *options)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 5
    described = json.loads((tmp_path / "environment.json").read_text())
    assert described["versions"]["cyclemlp-backbones"]
    assert described["commit"] == "unknown"
    run = wheel("cls", "eval", *options, "--weights", tmp_path / "none.pdparams")
    assert run.returncode == 1
    assert "cyclemlp cls eval: error: there is no weights file" in run.stderr
    launcher = Path(wheel("cls", "--launcher").stdout.strip())
    assert launcher == wheel.site / "__main__.py"


def test_one_process_never_loads_the_program_under_both_its_names():
    assert cls.program() == "classification"  # since it is loaded by that name here
    spec = importlib.util.spec_from_file_location("cyclemlp_backbones.classification", classification.__file__)
    with pytest.raises(ImportError, match="loaded already, as classification"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.slow
def test_a_checkout_has_the_same_command(tmp_path):
    """Installed as editable, the package finds the folder by itself; else the repository's root is searched."""
    run = subprocess.run(
        [sys.executable, "-m", "cyclemlp_backbones", "cls", "train", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: cyclemlp cls train")
