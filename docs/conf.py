"""Sphinx: `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cyclemlp_backbones import __version__  # noqa: E402

project, release, language = "cyclemlp-backbones", __version__, "en"
author = "the cyclemlp-backbones maintainers"
copyright = "2026, the cyclemlp-backbones maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", "CycleMLP backbones"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
