"""`python -m classification train | eval | predict | lists | benchmark | config`."""

from __future__ import annotations

import sys
import zlib  # noqa: F401  before paddle, see cyclemlp_backbones

from .commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="python -m classification"))
