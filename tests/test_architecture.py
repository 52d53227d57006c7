"""docs/architecture.md is true: its rooms are all there is, and imports point upward only."""

import ast
import re
from pathlib import Path

import cyclemlp_backbones

PACKAGE = Path(cyclemlp_backbones.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {"cyclemlp_backbones", "checks", "configurations", "files", "interrupts", "pictures", "variants"}


def rooms():
    """Module or folder -> number of its row."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("<!-- rooms: begin -->")[1]
    rows = [
        line for line in table.split("<!-- rooms: end -->")[0].splitlines() if line.startswith("| ") and "`" in line
    ]
    return {name: number for number, row in enumerate(rows) for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])}


def imports(path):
    """The first names below cyclemlp_backbones that a file imports, "cyclemlp_backbones" for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == PACKAGE.name:
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names if (PACKAGE / alias.name).is_dir()}
            names = {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").is_file()}
            found |= names if not parts else set()
            found |= {"cyclemlp_backbones"} if not parts and len(names) < len(node.names) else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")}
    return found


def test_every_module_has_its_room():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(rooms()) == modules | folders


def test_imports_point_upward_only():
    room_of = rooms()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            continue
        for other in imports(path) - {"cyclemlp_backbones"}:
            if room_of[other] > room_of[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert wrong == []


def test_nobody_imports_the_commands_and_only_its_folder_a_toolkit():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        text = path.read_text(encoding="utf-8")
        if relative.parts[0] not in ("cli", "__main__.py"):
            assert "cli" not in imports(path), relative
        for toolkit, folder in (("paddleseg", "paddleseg"), ("ppdet", "paddledet"), ("paddlex", "paddlex.py")):
            if relative.parts[:2] != ("adapters", folder):
                assert not re.search(rf"^\s*(from|import) {toolkit}\b", text, re.M), relative


def test_the_pretraining_program_imports_public_names_only():
    for path in sorted((ROOT / "classification").glob("*.py")):
        assert imports(path) <= PUBLIC, path.name
