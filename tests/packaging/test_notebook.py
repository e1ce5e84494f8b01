"""docs/quickstart.ipynb, executed as Jupyter does it."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_its_networks_gain(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    done = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    damaged, restored, before, after, own = map(float, re.findall(r"([\d.]+) dB", said))
    assert restored > damaged + 0.5 and after > before and own > damaged
    assert any("image/png" in output.get("data", {}) for output in outputs)
