"""`cyclemlp doctor`: versions, the known conflicts between them, and the remedy for each."""

from __future__ import annotations

import dataclasses
import json
import os
import platform

from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.environment import PACKAGES, findings, support
from cyclemlp_backbones.files import installed_versions


def _built() -> bool:
    """Whether the compiled shift is there for this Paddle, if there is a Paddle."""
    try:
        from cyclemlp_backbones import compiled
    except ImportError:
        return False
    return compiled.library().exists()


def main(argv: list[str]) -> int:
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(argv)
    versions = installed_versions(PACKAGES)
    if arguments.json:
        found = [dataclasses.asdict(finding) for finding in findings(versions)]
        known = {"packages": versions, "build_ops": _built(), "support": support(versions)}
        print(json.dumps({"python": platform.python_version(), **known, "findings": found}, indent=1))
        return 1 if any(finding["level"] == "error" for finding in found) else 0
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for package, version in versions.items():
        print(f"  {package:<24} {version}")
    print(f"build-ops                  {'done' if _built() else 'not done: optional, networks run without'}")
    print("what docs/support.md says of this Python and this Paddle:")
    for part, verdict in support(versions).items():
        print(f"  {part:<24} {verdict}")
    print("checking imports …", flush=True)
    levels = []
    for finding in findings(versions):
        print(f"\n{finding.level}: {finding.problem}\n  remedy: {finding.remedy}")
        levels.append(finding.level)
    errors = levels.count("error")
    print("\nno conflict found" if not levels else f"\n{errors} errors, {len(levels) - errors} notes")
    return 1 if errors else 0
