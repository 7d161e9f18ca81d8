"""Run the example notebooks in docs/notebooks and keep their outputs, or check that they still run.

`python tools/notebooks.py` runs them anew and writes them; `--check` runs them and writes nothing. Each is run by a
kernel of its own in an empty folder, on the Prefect server of the environment, or on one that Prefect starts.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SECONDS = 600  # most for one cell, on a slow machine that starts a server
# Lines that differ from run to run and teach nothing.
_NOISE = re.compile(r"Starting temporary server|Stopping temporary server|dedicated Prefect server|^\s*$")

# What the package says of a Prefect server that answers slowly, as it does on a busy machine.
_SLOW = re.compile(r"could not be given back yet")


def notebooks() -> list[Path]:
    """All example notebooks."""
    return sorted(FOLDER.glob("*.ipynb"))


def run(path: Path) -> Any:
    """Run a notebook in a kernel of its own.

    Args:
        path: The notebook.

    Returns:
        The notebook with new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
        for output in outputs(notebook):
            tidy(output, folder)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if says_something(output)]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def outputs(notebook: Any) -> Iterator[Any]:
    """All outputs of a notebook's cells."""
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def says_something(output: Any) -> bool:
    """Whether an output is more than a line that was taken away again, or a word about a slow machine."""
    data = output.get("data", {})
    if _SLOW.search(str(data.get("text/plain", ""))):
        return False
    return bool(output.get("text", "kept")) and data.get("text/html", "kept") != ""


def tidy(output: Any, folder: str) -> None:
    """Take out of an output what is only true of the machine and the moment it was made on."""
    if output.output_type == "stream":
        kept = [line for line in output.text.splitlines(keepends=True) if not _NOISE.search(line)]
        output.text = "".join(kept).replace(folder, ".")


def main() -> None:
    """Run all notebooks, and write them unless `--check` is given."""
    for path in notebooks():
        done = run(path)
        if "--check" not in sys.argv[1:]:
            nbformat.write(done, path)
        sys.stdout.write(f"{path.name}: {sum(cell.cell_type == 'code' for cell in done.cells)} cells run\n")


if __name__ == "__main__":
    main()
