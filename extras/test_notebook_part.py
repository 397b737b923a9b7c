# SPDX-License-Identifier: MIT
"""docs/contrast.ipynb teaches the loss that mtcd.py has, and runs from an empty kernel."""
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs/contrast.ipynb"
AGAIN = ("jupyter nbconvert --to notebook --execute --ExecutePreprocessor.record_timing=False "
         "--inplace docs/contrast.ipynb")
MARKS = "# >>> copy from here", "# <<< to here"


def read_notebook():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def test_notebook_has_the_loss_of_mtcd():
    source = (ROOT / "mtcd.py").read_text(encoding="utf-8")
    block = source[source.index(MARKS[0]) : source.index(MARKS[1]) + len(MARKS[1])]
    pasted = [cell.source for cell in read_notebook().cells if cell.source.startswith(MARKS[0])]
    assert pasted == [block], (
        f"{NOTEBOOK} has another loss than mtcd.py: replace its cell by what stands in mtcd.py "
        f"from '{MARKS[0]}' to '{MARKS[1]}', then {AGAIN}")


def test_notebook_is_stored_with_its_outputs_and_small():
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        f"docs/contrast.ipynb lacks outputs: {AGAIN}")
    assert sum("image/png" in str(cell.outputs) for cell in cells) >= 6
    assert NOTEBOOK.stat().st_size < 2e6


def test_notebook_runs(monkeypatch):
    nbclient, *_ = map(pytest.importorskip, ("nbclient", "ipykernel", "matplotlib"))
    monkeypatch.setenv("MTCD_NOTEBOOK_ITERS", "10")
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(read_notebook(), timeout=600, resources=folder).execute()
