"""With PaddleX's wheel and the checkouts in CYCLEMLP_TOOLKITS: else none: make test-paddlex."""

import importlib.util
import os

if not (os.environ.get("CYCLEMLP_TOOLKITS") and importlib.util.find_spec("paddlex")):
    collect_ignore_glob = ["test_*.py"]
