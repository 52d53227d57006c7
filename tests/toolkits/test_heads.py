"""Every model of the toolkits with CycleMLP-B0 as its backbone: one step and one evaluation, by `heads.py`.

A row of `heads.yml` names a configuration of the checkout, what a user sets in it, and, where the model does not fit,
the error and the reason. Answers are kept in output/heads for as long as nothing they depend on changes; with
--write-table they become docs/heads.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cyclemlp_backbones.files import installed_versions, write_atomically
from tests.adapters.tiny_seg import REPOSITORY

SCRIPT = Path(__file__).with_name("heads.py")
TABLE = yaml.safe_load(SCRIPT.with_suffix(".yml").read_text())
PAGE = REPOSITORY / "docs" / "heads.md"
FOLDERS = {"PaddleSeg": "paddleseg", "PaddleDetection": "paddledet"}
SHORT = ("SegFormer", "MaskFormer", "GFL", "DINO", "RT-DETR")
ROOTS = [
    root
    for root in sorted(Path(os.environ["CYCLEMLP_TOOLKITS"]).resolve().iterdir())
    if (root / "paddleseg").is_dir() or root.name == "PaddleDetection-develop"
]


def toolkit(root: Path) -> str:
    return "PaddleSeg" if (root / "paddleseg").is_dir() else "PaddleDetection"


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """The rows whose configurations the checkout has."""

    def has(row: dict[str, Any]) -> bool:
        parts = row["config"] if isinstance(row["config"], list) else [row["config"]]
        return all((root / "configs" / part).is_file() for part in parts)

    return {name: row for name, row in TABLE[toolkit(root)].items() if has(row)}


class Checkout:
    """What `heads.py` answers for one checkout; its process starts with the first question."""

    def __init__(self, root: Path):
        self.root, self.process = root, None
        package = REPOSITORY / "cyclemlp_backbones"
        sources = [
            package / "cyclenet.py",
            *sorted((package / "adapters" / FOLDERS[toolkit(root)]).glob("*.py")),
            SCRIPT,
        ]
        depends = b"".join(path.read_bytes() for path in sources) + json.dumps(VERSIONS).encode()
        self.folder = REPOSITORY / "output" / "heads" / root.name / hashlib.sha256(depends).hexdigest()[:16]

    def ask(self, row: Any) -> Any:
        line = json.dumps(row, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(line.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            return json.loads(path.read_text())
        if self.process is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, self.root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self.folder / "log.txt").open("a"),
                text=True,
            )
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if not str(answer).startswith("no end within"):  # a busy machine may be the reason
            path.write_text(json.dumps(answer))
        return answer


VERSIONS = installed_versions(("paddlepaddle", "numpy", "opencv-python"))
CHECKOUTS = {root: Checkout(root) for root in ROOTS}
results: dict[tuple[Path, str], str] = {}


@pytest.fixture(scope="module", autouse=True)
def page(request):
    yield
    if request.config.getoption("--write-table") and len(results) == len(CASES):
        text = render()
        write_atomically(PAGE, lambda file: Path(file).write_text(text))
    for checkout in CHECKOUTS.values():
        if checkout.process:
            checkout.process.communicate(timeout=60)


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_every_model_has_a_row(root):
    known = CHECKOUTS[root].ask("models")
    takes_backbone = {name for name, takes in known.items() if takes}
    if toolkit(root) == "PaddleSeg":
        assert takes_backbone == set(rows(root))
    else:  # several rows may have one architecture
        assert takes_backbone <= set(rows(root)), takes_backbone - set(rows(root))


CASES = [
    pytest.param(root, name, id=f"{root.name}-{name}", marks=[pytest.mark.short] * (name in SHORT))
    for root in ROOTS
    for name in rows(root)
]


@pytest.mark.parametrize(("root", "name"), CASES)
def test_model_trains_and_evaluates_or_fails_as_its_row_says(root, name):
    row = TABLE[toolkit(root)][name]
    error = CHECKOUTS[root].ask(row)
    if "fails" not in row:
        assert not error
    else:
        assert re.search(re.escape(row["fails"]), error), error or "it works: take `fails` and `why` out of its row"
        if row.get("theirs"):  # the toolkit's own backbone meets it too
            assert re.search(re.escape(row["fails"]), CHECKOUTS[root].ask({**row, "model": {}, "own": True}))
    results[root, name] = "no" if error else "yes"


@pytest.mark.parametrize("root", [root for root in ROOTS if toolkit(root) == "PaddleDetection"])
def test_without_its_repair_ttfnet_meets_the_defect(root):
    assert "must be list of Tensors" in CHECKOUTS[root].ask({**TABLE["PaddleDetection"]["TTFNet"], "off": "ttf_counts"})


def render() -> str:
    """The page: a table for each toolkit, a row a model, a column a checkout."""
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    lines = [INTRODUCTION.format(versions=versions)]
    for kind in ("PaddleSeg", "PaddleDetection"):
        roots = [root for root in ROOTS if toolkit(root) == kind]
        lines += [f"## {kind}", ""]
        header = ["model", *(root.name for root in roots), "what to set beside the backbone, or why not"]
        names = sorted({name for root in roots for name in rows(root)}, key=str.lower)
        for cells in (header, ["---"] * len(header), *(cells_of(kind, name, roots) for name in names)):
            lines.append("| " + " | ".join(cells) + " |")
        whole = {name for root in roots for name, takes in CHECKOUTS[root].ask("models").items() if not takes}
        if whole:
            lines += ["", f"Whole networks, which take no backbone: {', '.join(sorted(whole, key=str.lower))}."]
        lines.append("")
    return "\n".join(lines)


def cells_of(kind: str, name: str, roots: list[Path]) -> list[str]:
    row = TABLE[kind][name]
    works = [results[root, name] if name in rows(root) else "–" for root in roots]
    settings = yaml.safe_dump(row["model"], default_flow_style=True, width=1000).strip() if "model" in row else ""
    padded = "images padded to a multiple of 32" if row.get("pad") and "why" not in row else ""
    fixed = "`eval_size` that of the images" if "eval_size" in row.get("test", {}) and "why" not in row else ""
    return [
        name,
        *works,
        "; ".join(filter(None, [row.get("why"), f"`{settings}`" if settings else "", padded, fixed, row.get("note")])),
    ]


INTRODUCTION = """# Heads

Which models of the toolkits take CycleMLP as their backbone. `make test-heads TOOLKITS=DIR` builds each from a
configuration of the checkout's own with CycleMLP-B0 in place of its backbone, does a training step (a finite loss, a
gradient that reaches the backbone's first layer) and evaluates an image of 97 x 65, and writes this page with
{versions}.

Sizes in a row are B0's: 32, 64, 160, 256 channels. In PaddleDetection `out_indices` is [1, 2, 3] where a row says
nothing. Weights of other backbones that a configuration names (`pretrain_weights`, `pretrained`) have to be null.
"""
