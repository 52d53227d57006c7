"""docs/quickstart.ipynb runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def shown(notebook):
    """The text that the cells print, and their pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    data = [value for output in outputs for kind, value in output.get("data", {}).items() if kind.startswith("image/")]
    return text, [Image.open(io.BytesIO(base64.b64decode(value))) for value in data]


@pytest.mark.slow
def test_the_notebook_goes_from_data_to_a_picture(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert sum(cell.cell_type == "code" for cell in notebook.cells) == 10
    stored = shown(notebook)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False).execute()
    for text, pictures in (shown(notebook), stored):
        assert "no fault found" in text
        assert "24 masks" in text
        assert float(re.search(r"mIoU: (\d\.\d+)", text)[1]) > 0.15  # 0.08 for background everywhere
        confusion, result, overlay = pictures
        assert min(confusion.size) > 300
        assert result.size == (8 * 48 * 3, 3 * 48 * 3)
        rows = np.asarray(result.convert("RGB")).reshape(3, -1)
        assert all(row.std() > 5 for row in rows)
        assert overlay.width == 360  # enlarged, so that its legend can be read
