"""The notebooks run from the first cell to the last, and hold no output of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import program

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(notebook: Path, tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells)
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    done = program(text, tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
