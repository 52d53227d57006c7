"""`cyclemlp variants`: the table of sizes."""

from __future__ import annotations

import dataclasses
import json

from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.complexity import multiply_adds
from cyclemlp_backbones.variants import VARIANTS


def main(argv: list[str]) -> int:
    parser = command_parser(
        "variants",
        "The sizes of CycleMLP: parameters (1000 classes), multiply-adds at 224 x 224, channels and blocks per stage "
        "(strides 4, 8, 16, 32), and the paper's ImageNet top-1 accuracy.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    if parser.parse_args(argv).json:
        rows = {
            name: {**dataclasses.asdict(variant), "multiply_adds": multiply_adds(variant)}
            for name, variant in VARIANTS.items()
        }
        print(json.dumps(rows, indent=1))
        return 0
    columns = f"{'channels':<16} {'blocks':<10} {'mlp ratios':<10} {'crop':>6} {'top-1*':>7}"
    print(f"{'':3} {'params':>8} {'MACs@224':>9}  {columns}")
    for name, variant in VARIANTS.items():
        row = [
            f"{name:3}",
            f"{variant.parameters / 1e6:7.2f}M",
            f"{multiply_adds(variant) / 1e9:8.2f}G",
            f" {' '.join(map(str, variant.embed_dims)):<16}",
            f"{' '.join(map(str, variant.depths)):<10}",
            f"{' '.join(map(str, variant.mlp_ratios)):<10}",
            f"{variant.crop_pct:>6}",
            f"{variant.paper_top1 or '-':>7}",
        ]
        print(" ".join(row))
    print("\nStrides of the four maps: 4, 8, 16, 32.")
    print(
        "* percent, as the paper prints it (arXiv 2107.10224); not trained here. b0 is ours, not the paper's: no claim."
        "\nt, s, b: reconstruction from the published sizes; names of the weights unknown; the top-1 is the authors'."
    )
    return 0
