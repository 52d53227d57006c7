"""An export takes its place whole or not at all: killed, without room, refused or damaged, the earlier one stays."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.deploy.manifest import (
    Manifest,
    Preprocessing,
    check_folder,
    read_manifest,
    staged_export,
    write_manifest,
)
from cyclemlp_backbones.files import isolated_python
from tests.deploy.conftest import ONNX, export_classifier

FILES = ("model.json", "model.pdiparams")
FORM = (("image",), ("logits",), Preprocessing(), ("ant", "bee"))


def install(folder: Path, name: str) -> None:
    """A model of which every part says its name."""
    with staged_export(folder) as staged:
        for file in FILES:
            (staged / file).write_text(f"{name} {file}")
        write_manifest(staged, Manifest("cls", "paddle", name, None, *FORM), FILES)


def installed(folder: Path) -> str:
    manifest = read_manifest(folder)
    contents = {(folder / file).read_text().split()[0] for file in manifest.files}
    assert contents == {manifest.architecture}
    return manifest.architecture


def killed_at(moment: int, folder: Path, name: str) -> bool:
    """Whether `install` was killed: at its `moment`-th step that has to do with files, if it has so many."""
    pid = os.fork()
    if not pid:
        steps = 0

        def count(event, arguments):
            nonlocal steps
            steps += event == "open" or event.startswith(("os.", "shutil."))
            if steps == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            install(folder, name)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("earlier", ["earlier", "empty", "absent"])
def test_a_kill_at_any_step_leaves_the_earlier_export_or_the_new_one(tmp_path, earlier):
    folder, seen, moment = tmp_path / "model", [], 0
    while True:
        moment += 1
        shutil.rmtree(folder, ignore_errors=True)
        if earlier == "earlier":
            install(folder, "earlier")
            (folder / "notes.txt").write_text("mine")
        elif earlier == "empty":
            folder.mkdir()
        killed = killed_at(moment, folder, "new")
        seen.append(installed(folder) if (folder / "cyclemlp.yml").exists() else "nothing")
        if not killed:
            break
        check_folder(folder, overwrite=True)
        install(folder, "later")  # what the killed one left is no hindrance, and goes
        assert installed(folder) == "later"
        notes = ["notes.txt"] if earlier == "earlier" else []
        assert sorted(path.name for path in folder.iterdir()) == ["cyclemlp.yml", *FILES, *notes]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert moment > 20
    assert seen == sorted(seen, key=["nothing", "earlier", "new"].index)
    assert set(seen) == {"earlier" if earlier == "earlier" else "nothing", "new"}


def test_a_folder_whose_parent_takes_no_files_is_exported_into(tmp_path):
    """As a mounted one, that can be neither renamed nor replaced."""
    folder = tmp_path / "parent" / "model"
    folder.mkdir(parents=True)
    inode = folder.stat().st_ino
    for name in ("one", "two"):
        install(folder, name)
        assert installed(folder) == name
    assert folder.stat().st_ino == inode


def test_a_copy_that_finds_no_room_leaves_the_earlier_export(tmp_path, monkeypatch):
    install(tmp_path / "model", "earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        install(tmp_path / "model", "new")
    assert installed(tmp_path / "model") == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def limited(limit, *arguments):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        return export_classifier(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.5, 0.999999])
def test_weights_that_paddle_wrote_in_part_are_an_error_and_the_earlier_export_stays(
    classifier, tmp_path, capfd, share
):
    """The last byte of the last tensor counts: Paddle's reader does not miss it."""
    folder = tmp_path / "model"
    shutil.copytree(classifier / "paddle", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limit = int(share * (folder / "model.pdiparams").stat().st_size)
    assert limited(limit, classifier / "b0.pdparams", folder, "--force") == 1
    assert f"model.pdiparams is cut at {limit} bytes" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_is_refused_leaves_the_earlier_one(classifier, tmp_path, capsys):
    folder, weights = tmp_path / "copy", classifier / "b0.pdparams"
    shutil.copytree(classifier / "paddle", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = tmp_path / "names.txt"
    for content, message in ((b"one\ntwo\n", "names 2 classes"), (b"\xff\xfe", "names.txt is no text")):
        names.write_bytes(content)
        assert export_classifier(weights, folder, "--force", "--class-names", str(names)) == 1
        assert message in capsys.readouterr().err
    if ONNX:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "0.png").write_bytes(b"no picture")
        flags = ["--format", "onnx", "--quantize", "static", "--calibration", str(tmp_path / "images")]
        assert export_classifier(weights, folder, "--force", *flags) == 1
        assert "can be read" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_something_else_is_not_overwritten(classifier, tmp_path, capsys):
    (tmp_path / "beach.jpg").write_bytes(b"")
    (tmp_path / "model.onnx").write_bytes(b"")
    assert export_classifier(classifier / "b0.pdparams", tmp_path, "--force") == 1
    assert "not overwritten" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beach.jpg", "model.onnx"]


def test_an_export_takes_the_place_of_one_in_another_format(classifier, tmp_path):
    if not ONNX:
        return
    folder = tmp_path / "model"
    shutil.copytree(classifier / "paddle", folder)
    Image.new("RGB", (9, 9)).save(folder / "mine.png")
    flags = ["--format", "onnx", "--quantize", "dynamic", "--force"]
    assert export_classifier(classifier / "b0.pdparams", folder, *flags) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["cyclemlp.yml", "mine.png", "model.onnx"]
    assert read_manifest(folder).quantization == "int8 dynamic"


def test_the_converter_imports_nothing_from_the_current_folder(classifier, tmp_path, monkeypatch):
    if not ONNX:
        return
    for module in ("paddle2onnx", "onnx", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert export_classifier(classifier / "b0.pdparams", tmp_path / "out", "--format", "onnx") == 0


@pytest.mark.slow
def test_a_python_of_its_own_imports_what_this_one_does(tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('taken from the current folder')")
    code = "import sys, yaml, cyclemlp_backbones; print(cyclemlp_backbones.__file__, sys.argv[1:])"
    run = subprocess.run(isolated_python(code, 1, "a b"), cwd=tmp_path, capture_output=True, text=True, check=True)
    package = Path(__file__).parents[2] / "cyclemlp_backbones" / "__init__.py"
    assert run.stdout.split(maxsplit=1) == [str(package), "['1', 'a b']\n"]


@pytest.mark.slow
def test_a_manifest_is_utf_8_whatever_the_locale(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.deploy.test_export import Manifest, write_manifest, FORM;"
        "form = (*FORM[:3], ('caf\\xe9', '\\u732b')); folder = Path(sys.argv[1]);"
        "write_manifest(folder, Manifest('cls', 'paddle', 'CycleNet', None, *form), [])"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in ("model", os.fsdecode(b"caf\xe9\n- x")):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "-c", code, str(folder)]
        subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[2])
        values = yaml.safe_load((folder / "cyclemlp.yml").read_text(encoding="utf-8"))
        assert values["classes"] == ["café", "猫"]
