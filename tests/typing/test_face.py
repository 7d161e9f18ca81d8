"""Type checkers know the public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import prefect_qruntime

ROOT = Path(__file__).parents[2]
FACE = Path(__file__).with_name("face.py")


def test_mypy_knows_the_public_names_and_refuses_what_is_wrong() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(FACE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(prefect_qruntime.__file__).with_name("py.typed").is_file()
