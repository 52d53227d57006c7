"""`python -m cyclemlp_backbones` is the command `cyclemlp`; also the file that paddle.distributed.launch runs."""

import sys

from cyclemlp_backbones.cli import main

if __name__ == "__main__":
    sys.exit(main())
