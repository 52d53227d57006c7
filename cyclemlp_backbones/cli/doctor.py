"""`cyclemlp doctor`: versions, the known conflicts between them, and the remedy for each."""

from __future__ import annotations

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
    command_parser("doctor", __doc__).parse_args(argv)
    versions = installed_versions(PACKAGES)
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for package, version in versions.items():
        print(f"  {package:<24} {version}")
    print(f"build-ops                  {'done' if _built() else 'not done: optional, networks run without'}")
    print("what docs/support.md says of this Python and this Paddle:")
    for part, verdict in support(versions).items():
        print(f"  {part:<24} {verdict}")
    print("checking imports …", flush=True)
    found = list(findings(versions))
    for finding in found:
        print(f"\n{finding.level}: {finding.problem}\n  remedy: {finding.remedy}")
    errors = sum(finding.level == "error" for finding in found)
    print("\nno conflict found" if not found else f"\n{errors} errors, {len(found) - errors} notes")
    return 1 if errors else 0
