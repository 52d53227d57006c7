"""`cyclemlp configs DIR`: copies the training configurations that ship with the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cyclemlp_backbones

FOLDERS = ("seg_configs", "det_configs")


def shipped_configs() -> list[Path]:
    """The folders of configurations: inside an installed package, beside the package in a checkout."""
    package = Path(cyclemlp_backbones.__file__).parent
    found = [
        next((folder for folder in (package / name, package.parent / name) if folder.is_dir()), None)
        for name in FOLDERS
    ]
    return [folder for folder in found if folder]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cyclemlp configs", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder to copy into; it gets " + " and ".join(FOLDERS))
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    arguments = parser.parse_args(argv)
    folders = shipped_configs()
    if not folders:
        raise FileNotFoundError("this installation holds no configurations; install cyclemlp-backbones again")
    standing = [arguments.dir / folder.name for folder in folders if (arguments.dir / folder.name).exists()]
    if standing and not arguments.force:
        raise FileExistsError(f"{', '.join(map(str, standing))} exist; give another folder, or --force to overwrite")
    for folder in folders:
        target = arguments.dir / folder.name
        shutil.copytree(folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        print(f"{len(list(target.rglob('*.yml')))} configurations in {target}")
    return 0
