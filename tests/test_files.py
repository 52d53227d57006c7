"""Files come whole or not at all, follow no link, and what killed processes left is swept."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cyclemlp_backbones import files, read_checkpoint, write_checkpoint

KILLED = """
import os, signal, sys
import numpy as np
from cyclemlp_backbones.weights.formats import write_checkpoint
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint(sys.argv[1], {"a": np.ones(9, "float32")})
"""


def write(path: Path, text: str = "new") -> None:
    files.write_atomically(path, lambda temporary: temporary.write_text(text))


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_what_a_killed_process_left_is_swept_by_the_next_that_writes_the_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_checkpoint(path, {"a": np.zeros(9, "float32")})
    run = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True)
    assert run.returncode == -9, run.stderr
    assert len(os.listdir(tmp_path)) == 2
    assert not read_checkpoint(path)["a"].any()
    living = files.temporary_beside(path)
    assert len(os.listdir(tmp_path)) == 1
    living.touch()
    write_checkpoint(path, {"a": np.ones(9, "float32")})
    assert {*tmp_path.iterdir()} == {path, living}
    assert read_checkpoint(path)["a"].all()


def test_temporary_names_cannot_be_guessed_and_no_link_is_followed(tmp_path, monkeypatch):
    path, other = tmp_path / "x", tmp_path / "other"
    assert files.temporary_beside(path) != files.temporary_beside(path)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    files.temporary_beside(path).symlink_to(other)
    with pytest.raises(FileExistsError):
        write(path)
    assert not other.exists()
    assert not path.exists()


def test_a_file_has_the_permissions_of_any_new_one(tmp_path):
    (tmp_path / "new").touch()
    write(tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    steps, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append(Path(f"/proc/self/fd/{file}").resolve()), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append(paths[1]), replace(*paths)))
    write(tmp_path / "x")
    assert steps[0].name.startswith(".x.")
    assert steps[1:] == [tmp_path / "x", tmp_path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "x", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        files.write_atomically(tmp_path / "x", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_comes_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"

    def fail() -> None:
        with files.new_folder(folder) as staged:
            (staged / "x").touch()
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert os.listdir(tmp_path) == []
    with files.new_folder(folder) as staged:
        (staged / "x").touch()
        assert not folder.exists()
    assert os.listdir(folder) == ["x"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (folder, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="is there and not empty"), files.new_folder(taken):
            pass
