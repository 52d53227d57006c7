"""`cyclemlp configs DIR`: copies the training configurations that ship with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import cyclemlp_backbones
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.files import write_atomically

FOLDERS = ("seg_configs", "det_configs", "classification/configs")


def shipped_configs() -> dict[str, Path]:
    """The folders of configurations by their names: inside an installed package, beside the package in a checkout."""
    package = Path(cyclemlp_backbones.__file__).parent
    places = ((name, root / name) for name in FOLDERS for root in (package.parent, package))
    return {name: folder for name, folder in places if folder.is_dir()}


def _copy(source: str, target: str) -> None:
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def main(argv: list[str]) -> int:
    parser = command_parser("configs", __doc__)
    parser.add_argument("dir", type=Path, help="folder to copy into; it gets " + ", ".join(FOLDERS))
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    arguments = parser.parse_args(argv)
    folders = shipped_configs()
    if not folders:
        raise FileNotFoundError("this installation holds no configurations; install cyclemlp-backbones again")
    standing = [arguments.dir / name for name in folders if (arguments.dir / name).exists()]
    if standing and not arguments.force:
        raise FileExistsError(f"{', '.join(map(str, standing))} exist; give another folder, or --force to overwrite")
    for name, folder in folders.items():
        target = arguments.dir / name
        left_out = shutil.ignore_patterns("__pycache__", "*.py")
        shutil.copytree(folder, target, dirs_exist_ok=True, ignore=left_out, copy_function=_copy)
        print(f"{len(list(target.rglob('*.yml')))} configurations in {target}")
    return 0
