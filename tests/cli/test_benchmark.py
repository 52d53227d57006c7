"""`cyclemlp benchmark`, as a user runs it."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(*arguments):
    command = [sys.executable, "-m", "cyclemlp_backbones", "benchmark", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("extra", [[], ["--train", "--batch", "2"]])
def test_both_networks_are_timed_and_the_ratio_is_of_their_times(tmp_path, extra):
    target = tmp_path / "figures.json"
    arguments = ["--variant", "b0", "--size", "33x64", "--compare", "squeezenet1_1", "--rounds", "1", "--threads", "1"]
    done = run(*arguments, "--json", str(target), *extra)
    assert done.returncode == 0, done.stderr
    data = json.loads(target.read_text())
    ours, other = (data["seconds"][name][0] for name in ("cyclemlp-b0", "squeezenet1_1"))
    assert data["ratio"]["minima"] == pytest.approx(ours / other)
    assert data["size"] == [33, 64]
    assert data["machine"]["threads"] == "1"
    assert data["what"] == ("training step" if extra else "forward")
    assert f"cyclemlp-b0 takes {ours / other:.3f} of squeezenet1_1's time" in done.stdout
    assert f"{1e3 * ours:.2f} ms" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--compare", "Layer"],
            "--compare Layer; it takes a variant, or a classifier of paddle.vision.models: alexnet",
        ),
        (["--precision", "bf16", "--device", "cpu"], "autocast does nothing on a CPU"),
        (["--size", "31"], "size '31'; it takes HEIGHTxWIDTH"),
        (["--rounds", "0"], "--rounds is 0; it takes an integer of at least 1"),
        (["--variant", "b9"], "b9"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("cyclemlp benchmark: error: "))
    assert message in error
