"""`python docs/generate.py` writes into the documents what comes of the code and of the cards, docs/models/*.yml:

docs/models.md, docs/configuration.md, and the READMEs' tables of models.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from benchmarks.documents import Part  # noqa: E402
from cyclemlp_backbones.variants import VARIANTS  # noqa: E402

PART = Part("models", "python docs/generate.py")
READMES = {"en": DOCS.parent / "README.md", "zh": DOCS.parent / "README_zh.md"}
HEADS = {
    "en": ("", "parameters", "multiply-adds, 224 px", "top-1, paper", "top-1, earlier Paddle port", "top-1, here"),
    "zh": ("", "参数量", "乘加次数（224 px）", "top-1，论文", "top-1，早期 Paddle 移植", "top-1，本项目"),
}
NONE = {"en": ("no claim", "not trained"), "zh": ("无结论", "未训练")}


def cards() -> list[dict[str, Any]]:
    """The cards, in the order of the variants."""
    paths = sorted((DOCS / "models").glob("*.yml"), key=lambda path: list(VARIANTS).index(path.stem))
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]


def table(language: str, *, reconstructions: bool = False) -> str:
    """A row a variant: its cost, and ImageNet-1k top-1 in percent by whoever measured it."""
    claim, here = NONE[language]
    lines = [f"| {' | '.join(HEADS[language])} |", "|---" * len(HEADS[language]) + "|"]
    for card in cards():
        if "reconstruction" in card and not reconstructions:
            continue
        top1 = card["imagenet_top1"]
        cells = [card["variant"], f"{card['parameters'] / 1e6:.2f} M", f"{card['multiply_adds'] / 1e9:.2f} G"]
        authors = " (the authors' own network)" if "reconstruction" in card else ""
        cells += [f"{top1['paper'] or claim}{authors}", str(top1["predecessor"] or "–"), str(top1["here"] or here)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def details() -> str:
    """docs/models.md: what is published, how to evaluate it, what was run."""
    lines = [
        "# Models",
        "",
        "By `python docs/generate.py` from `docs/models/*.yml`.",
        "",
        table("en", reconstructions=True),
        "",
    ]
    lines += ["Top-1 is ImageNet-1k's, in percent; [pretraining.md](pretraining.md) says by which protocol.", ""]
    for card in cards():
        lines += [f"## {card['variant']}", ""]
        megabytes = card["parameters"] * 4 / 1e6
        for file in card["published"]:
            where = file.get("url") or "in CycleMLP_pretrained.zip of the earlier Paddle port, a manual download"
            lines.append(
                f"- `{file['file']}`: {where}, about {megabytes:.0f} MB by its parameters; not downloaded here"
            )
        if coco := card.get("coco_box_ap"):
            where = f"{coco['head']}, {coco['schedule']}"
            lines.append(f"- COCO box AP with {where}: {coco['paper']} (the paper's; not trained here).")
        if "reconstruction" in card:
            lines += [
                f"- A reconstruction {card['reconstruction']}. Top-1 is the authors', and no claim about this network."
            ]
            lines.append(
                "- `cyclemlp weights check FILE` prints the names in a file of the authors', if they fit or not."
            )
        elif not card["published"]:
            lines.append("- No weights are published: ours, not the paper's.")
        if by := card.get("measured_here"):
            paddle = next(version for name, version in by["versions"].items() if name.startswith("paddlepaddle"))
            lines.append(
                f"- Measured here: top-1 {by['top1']:.3f} %, top-5 {by['top5']:.3f} % of {by['images']} images, "
                f"{by['started'][:10]}, Paddle {paddle} on {by['device']}, commit {by['commit']}, "
                f"`{by['weights']['file']}` of sha256 {by['weights']['sha256']}, by `{' '.join(by['command'])}`."
            )
        lines.append(f"- Run here: {'; '.join(card['run_here'])}.")
        lines.append(f"- Not run here: {'; '.join(card['not_run_here'])}.")
        lines += ["", "```", card["evaluate"], "```", ""]
    return "\n".join(lines)


def configuration() -> str:
    """docs/configuration.md: every setting of the pretraining program, and of the network in the toolkits."""
    import importlib
    import inspect

    from cyclemlp_backbones.cli.cls import program
    from cyclemlp_backbones.cyclenet import CycleNet

    describe_settings = importlib.import_module(f"{program()}.config_files").describe_settings
    network = inspect.getdoc(CycleNet) or ""
    return "\n".join([
        "# Configuration reference", "", "By `python docs/generate.py` from the code.", "", "## Pretraining", "",
        "`cyclemlp cls config …` prints the configuration that arguments mean; a file needs only what it",
        "changes.",
        "", "```text", describe_settings().split("\n", 2)[2].rstrip(), "```", "", "## The backbone in a toolkit", "",
        "`CycleMLP_B0` … `CycleMLP_B5`, `CycleMLP_T`, `CycleMLP_S` and `CycleMLP_B` (PaddleSeg), `CycleMLP`",
        "with `arch: b1` (PaddleDetection) and `build_backbone` take `pretrained`, `in_channels` and what the network",
        "takes:", "", "```text", network, "```", "",
    ])  # fmt: skip


if __name__ == "__main__":
    (DOCS / "models.md").write_text(details(), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    for language, readme in READMES.items():
        PART.write(readme, table(language))
