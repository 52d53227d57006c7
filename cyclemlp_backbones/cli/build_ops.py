"""`cyclemlp build-ops`: CycleFC's shift compiled for CPUs. Never needed; docs/performance.md says what it brings."""

from __future__ import annotations

from cyclemlp_backbones.cli import parser as command_parser


def main(argv: list[str]) -> int:
    command_parser("build-ops", __doc__).parse_args(argv)
    from cyclemlp_backbones import compiled

    print("compiling, for about half a minute …", flush=True)
    path = compiled.build()
    print(
        f"{path}\nequals the plain form; every network on a CPU uses it from now on, with this Paddle. "
        "CYCLEMLP_OPS=0 in the environment, or deleting the file, goes back"
    )
    return 0
