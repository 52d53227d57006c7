"""The commands that describe the network and hand out the configurations."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from benchmarks.memory import beside_estimate
from cyclemlp_backbones import VARIANTS, CycleFC, __version__, build_backbone, build_classifier
from cyclemlp_backbones.cli import COMMANDS, main
from cyclemlp_backbones.complexity import memory, multiply_adds, stage_sizes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("variant", "size"), [("b0", (64, 96)), ("b1", (97, 131)), ("b5", (32, 32)), ("t", (65, 131))])
def test_multiply_adds_equal_what_the_layers_do(variant, size):
    """Counted by hooks on the layers of a real forward pass."""
    model = build_classifier(variant, num_classes=11)
    counted = []

    def count(layer, inputs, output):
        if isinstance(layer, paddle.nn.Conv2D):
            counted.append(output.size * layer.weight.size // layer.weight.shape[0])
        else:
            in_features = layer.in_channels if isinstance(layer, CycleFC) else layer.weight.shape[0]
            counted.append(output.size * in_features)

    for layer in model.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear, CycleFC)):
            layer.register_forward_post_hook(count)
    model.eval()
    with paddle.no_grad():
        model(paddle.randn([1, 3, *size]))
    assert sum(counted) == multiply_adds(VARIANTS[variant], *size, num_classes=11)


def test_stage_sizes_equal_the_networks():
    model = build_backbone("b0")
    model.eval()
    with paddle.no_grad():
        assert [tuple(y.shape[2:]) for y in model(paddle.randn([1, 3, 101, 38]))] == stage_sizes(101, 38)


def test_variants_prints_a_row_per_variant_with_its_provenance(capsys):
    assert main(["variants"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if re.match(r"\w\w?  ", line)}
    assert set(rows) == set(VARIANTS)
    assert rows["b1"][1:3] == ["15.16M", "2.12G"]
    assert rows["b4"][-1] == "83.0"
    assert rows["b0"][-1] == "-"
    assert "not trained here" in out
    assert "b0 is ours" in out
    assert "t, s, b: reconstruction from the published sizes; names of the weights unknown" in out


def test_info_tells_sizes_and_costs(capsys):
    assert main(["info", "b2", "--size", "512x1024"]) == 0
    out = capsys.readouterr().out
    assert "[N, 64, 128, 256]" in out
    assert "[N, 512, 16, 32]" in out
    assert "26.803 M" in out
    backbone = sum(p.size for p in build_backbone("b2").parameters())
    assert f"{backbone / 1e6:.3f} M parameters" in out


def test_estimated_memory_is_near_a_steps(capsys):
    """The peak of a real step of the plain form, in a process of its own: gradients and activations."""
    measured, estimated = map(float, re.search(r": (\d+) MB, estimated (\d+)", beside_estimate("b0:224:6")).groups())
    assert 0.75 < measured / estimated < 1.25
    assert main(["info", "b1", "--memory", "--batch", "8"]) == 0
    assert "0.23 GiB for weights, gradients and AdamW, 0.53 GiB for what backward needs" in capsys.readouterr().out
    one, two = (memory(VARIANTS["t"], 224, 224, batch) for batch in (1, 2))
    assert (two["state"], two["activations"]) == (one["state"], 2 * one["activations"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "b1", "--memory", "--batch", "0"], "--batch is 0"),
        (["info", "b7"], "b0, b1, b2, b3, b4, b5, t, s, b"),
        (["info", "b1", "--size", "16x512"], "32 or more"),
        (["info", "b1", "--size", "wide"], "HEIGHTxWIDTH"),
        (["info", "b1", "--num-classes", "0"], "at least 1"),
    ],
)
def test_a_wrong_value_is_one_line_of_error(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_command_lists_the_commands(capsys):
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "'trian'" in error
    assert all(command in error for command in COMMANDS)
    assert main([]) == 2
    assert main(["--help"]) == 0


def test_version_tells_the_toolkits_too(capsys):
    assert main(["--version"]) == 0
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert told["cyclemlp-backbones"] == __version__
    assert told["paddlepaddle"] == paddle.__version__
    assert told.keys() >= {"paddleseg", "paddledet"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    try:
        status = main([command, "--help"])
    except SystemExit as exit_:  # argparse's way
        status = exit_.code
    assert status == 0
    assert f"cyclemlp {command}" in capsys.readouterr().out


@pytest.mark.slow
def test_describing_commands_do_not_import_paddle():
    code = (
        "import sys; from cyclemlp_backbones.cli import main; main(['variants']); main(['info', 'b1']); "
        "main(['--version']); main(['seg']); main(['det', '--help']); "
        "assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_importing_the_package_needs_nothing_of_the_toolkits():
    code = (
        "import sys; import cyclemlp_backbones as package; [getattr(package, name) for name in package.__all__]; "
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"paddleseg", "ppdet", "sklearn", "matplotlib", "torch"} & set(re.findall(r"'([^']+)'", done.stdout))


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from cyclemlp_backbones.cli import main
copy, copies = shutil.copyfile, iter(range(100))
def half(source, target):
    if next(copies) < int(sys.argv[1]):
        return copy(source, target)
    Path(target).write_bytes(Path(source).read_bytes()[:20])
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfile = half
main(["configs", sys.argv[2]])
"""


@pytest.mark.parametrize("copies", [0, 7])
def test_a_killed_copy_of_the_configs_leaves_whole_files_and_the_next_sweeps(tmp_path, copies):
    run = subprocess.run([sys.executable, "-c", KILLED, str(copies), str(tmp_path)], cwd=ROOT, timeout=60)
    assert run.returncode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    (half,) = (path for path in left if path.suffix == ".tmp")
    assert half.stat().st_size == 20
    assert len(left) == copies + 1
    for path in left:
        assert path == half or path.read_bytes() == (ROOT / path.relative_to(tmp_path)).read_bytes()
    assert main(["configs", str(tmp_path), "--force"]) == 0
    assert not [*tmp_path.rglob("*.tmp")]


def test_configs_are_copied_and_not_overwritten(tmp_path, capsys):
    assert main(["configs", str(tmp_path)]) == 0
    here = {path.relative_to(ROOT) for path in (ROOT / "seg_configs").rglob("*.yml")}
    assert {path.relative_to(tmp_path) for path in (tmp_path / "seg_configs").rglob("*.yml")} == here
    changed = tmp_path / sorted(here)[0]
    changed.write_text("mine")
    capsys.readouterr()
    assert main(["configs", str(tmp_path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert changed.read_text() == "mine"
    assert main(["configs", str(tmp_path), "--force"]) == 0
    assert changed.read_text() != "mine"
