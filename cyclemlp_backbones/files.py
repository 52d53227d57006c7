"""What every part of the project does with files: whole or not at all, told apart by hash. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_CHUNK = 1 << 20


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has `write(temporary)` write a file beside `path`, brings it to the disk, and only then gives it its name.

    Whatever happens on the way, `path` is as it was before or whole, with the permissions of any new file. What a
    killed process left behind of the same file is removed.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        temporary.touch(exist_ok=False)  # nobody's file, and no link to one
        mode = temporary.stat().st_mode & 0o777
        write(temporary)
        temporary.chmod(mode)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        to_disk(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when all went well, and of which nothing is left otherwise.

    FileExistsError unless `folder` is not there, or empty.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FileExistsError(f"{folder} is there and not empty; give a folder that is new or empty")
    staged = temporary_beside(folder)
    staged.mkdir(parents=True)
    try:
        yield staged
        for path in staged.rglob("*") if os.name == "posix" else ():
            if not path.is_symlink():
                to_disk(path)
        if folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """A new name beside `path`, for a file or folder that is to take its place.

    What killed processes of this machine have left under such names is removed.
    """
    _sweep(path)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}.{secrets.token_hex(4)}.tmp")


def to_disk(path: Path) -> None:
    """Returns when what was written to a file, or into a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Removes what processes of this machine that are no more have left of `path`."""
    host = f"{socket.gethostname()}-"
    for left in path.parent.glob(f".{path.name}.{host}*.tmp"):
        pid = left.name.removeprefix(f".{path.name}.{host}").split(".")[0]
        if pid.isdecimal() and not _runs(int(pid)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def cache_folder() -> Path:
    """The environment's CYCLEMLP_HOME, else ~/.cache/cyclemlp."""
    return Path(os.environ.get("CYCLEMLP_HOME") or "~/.cache/cyclemlp").expanduser()


def isolated_python(code: str, *arguments: object) -> list[str]:
    """The command that runs `code` with `arguments` in a Python of its own, which imports what this one does, and
    nothing from the current folder."""
    paths = [path for path in sys.path if path]
    start = "import sys; sys.path[:] = sys.argv.pop(1).splitlines()"
    return [sys.executable, "-I", "-c", f"{start}\n{code}", "\n".join(paths), *map(str, arguments)]


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of `packages`, names as pip has them, that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout that this package lies in, with "+" if it has changes; "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return run.stdout.strip() or "unknown"
