"""`cyclemlp verify FOLDER`: whether an exported model computes on this machine what its network did at export."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cyclemlp verify", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what `cyclemlp export` wrote")
    arguments = parser.parse_args(argv)
    from cyclemlp_backbones.deploy.runtime import DeployedModel
    from cyclemlp_backbones.deploy.verify import verify

    for (batch, height, width), found in verify(DeployedModel(arguments.folder)):
        differences = ", ".join(f"{name} {share:.1e}" for name, share in found.items())
        print(
            f"batch {batch}, {height:3} x {width:3}: largest difference, as a share of the largest value: {differences}"
        )
    return 0
