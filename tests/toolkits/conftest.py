"""Tests of the toolkits' checkouts, which the folder CYCLEMLP_TOOLKITS holds; without it there are none."""

import os

if not os.environ.get("CYCLEMLP_TOOLKITS"):
    collect_ignore_glob = ["test_*.py"]
