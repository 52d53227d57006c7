"""What is measured, and with what it is compared. `make bench` runs all; docs/performance.md shows the figures."""

import os

os.environ.setdefault("CYCLEMLP_OPS", "0")  # what a user has who did not run `cyclemlp build-ops`
