"""`python -m cyclemlp_backbones` is the command `cyclemlp`; also the file that paddle.distributed.launch runs."""

import sys
from pathlib import Path

if not __package__:  # run as a file: Python then searches this folder first, whose modules are not top-level ones
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cyclemlp_backbones.cli import main

if __name__ == "__main__":
    sys.exit(main())
