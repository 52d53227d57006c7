"""`cyclemlp verify FOLDER`: checks that an exported model computes on this machine what its network did at export."""

from __future__ import annotations

from pathlib import Path

from cyclemlp_backbones.cli import parser as command_parser


def main(argv: list[str]) -> int:
    parser = command_parser("verify", __doc__)
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
