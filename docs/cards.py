"""Writes the model cards, docs/models/*.yml, into docs/models.md and the READMEs' tables: `python docs/cards.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from benchmarks.documents import Part  # noqa: E402

PART = Part("models", "python docs/cards.py")
READMES = {"en": DOCS.parent / "README.md", "zh": DOCS.parent / "README_zh.md"}
HEADS = {
    "en": ("", "parameters", "multiply-adds, 224 px", "top-1, paper", "top-1, earlier Paddle port", "top-1, here"),
    "zh": ("", "参数量", "乘加次数（224 px）", "top-1，论文", "top-1，早期 Paddle 移植", "top-1，本项目"),
}
NONE = {"en": ("no claim", "not trained"), "zh": ("无结论", "未训练")}


def cards() -> list[dict[str, Any]]:
    """The cards, smallest network first."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "models").glob("*.yml"))]


def table(language: str) -> str:
    """A row a variant: its cost, and ImageNet-1k top-1 in percent by whoever measured it."""
    claim, here = NONE[language]
    lines = [f"| {' | '.join(HEADS[language])} |", "|---" * len(HEADS[language]) + "|"]
    for card in cards():
        top1 = card["imagenet_top1"]
        cells = [card["variant"], f"{card['parameters'] / 1e6:.2f} M", f"{card['multiply_adds'] / 1e9:.2f} G"]
        cells += [str(top1["paper"] or claim), str(top1["predecessor"] or "–"), str(top1["here"] or here)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def details() -> str:
    """docs/models.md: what is published, how to evaluate it, what was run."""
    lines = ["# Models", "", "By `python docs/cards.py` from `docs/models/*.yml`.", "", table("en"), ""]
    lines += ["Top-1 is ImageNet-1k's, in percent; [pretraining.md](pretraining.md) says by which protocol.", ""]
    for card in cards():
        lines += [f"## {card['variant']}", ""]
        megabytes = card["parameters"] * 4 / 1e6
        for file in card["published"]:
            where = file.get("url") or "in CycleMLP_pretrained.zip of the earlier Paddle port, a manual download"
            lines.append(
                f"- `{file['file']}`: {where}, about {megabytes:.0f} MB by its parameters; not downloaded here"
            )
        if not card["published"]:
            lines.append("- No weights are published: ours, not the paper's.")
        lines.append(f"- Run here: {'; '.join(card['run_here'])}.")
        lines.append(f"- Not run here: {'; '.join(card['not_run_here'])}.")
        lines += ["", "```", card["evaluate"], "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (DOCS / "models.md").write_text(details(), encoding="utf-8")
    for language, readme in READMES.items():
        PART.write(readme, table(language))
