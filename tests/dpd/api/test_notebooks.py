"""The notebooks run from the first cell to the last, on small budgets."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[3] / "docs" / "notebooks"
SMALL = (
    'SETTINGS = {"n_envs": 4, "n_steps": 32, "minibatch_size": 64, "hidden": [8, 8], "evals": 2, '
    '"eval_episodes": 1, "final_episodes": 2, "threads": 1}\nENV = "Swimmer-v5"\n'
)
BUDGETS = {
    "peers": SMALL + "STEPS, SEEDS = 512, 2",
    "distil": SMALL.replace('"hidden": [8, 8], ', "")
    + "TEACHER_STEPS, STUDENT_STEPS, STATES, EPISODES = 256, 768, 200, 1",
}


def test_every_notebook_has_a_small_budget() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_notebook_runs_to_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # the notebook's kernel is this Python, and finds this checkout
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (at,) = [k for k, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    assert all(not c.get("outputs") for c in notebook.cells)  # committed without outputs
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(BUDGETS[name]))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o for o in outputs if o.output_type == "error"] == []
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds  # figures and tables are shown
