"""The example notebooks run from top to bottom in a kernel, and what is kept of their outputs can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = notebooks.notebooks()
MACHINE = re.compile(r"/(?:home|root|tmp|usr|var|work|Users)/|[A-Z]:\\\\|site-packages|Traceback|Warning")


def names(path: Path) -> str:
    return path.stem


def shown(notebook: Any) -> str:
    """All that a reader sees of the outputs, pictures left out."""
    found = []
    for output in notebooks.outputs(notebook):
        found.append(output.get("text", ""))
        found += [str(text) for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(found)


def test_there_is_one_for_each_reader() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["admin", "data_engineer", "researcher"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_what_is_kept_is_small_complete_and_says_nothing_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 100_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not MACHINE.search(shown(notebook))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom"
    assert all(output.output_type != "error" for output in notebooks.outputs(notebook))
    assert f"notebooks/{path.name}" in (ROOT / "docs/how-to/notebook.md").read_text()


@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_it_runs_and_warns_of_nothing(path: Path, prefect_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in prefect_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = nbformat.read(path, as_version=4)
    done = notebooks.run(path)
    assert not MACHINE.search(shown(done))
    kinds = [[output.output_type for output in cell.get("outputs", ())] for cell in done.cells]
    kept = [[output.output_type for output in cell.get("outputs", ())] for cell in before.cells]
    assert kinds == kept, f"not as it is kept:\n{done.cells}"
