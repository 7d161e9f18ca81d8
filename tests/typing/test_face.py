"""The package says that it is typed; what type checkers know of it is in face.py, which `make types` checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import prefect_qruntime

FOLDER = Path(__file__).parent


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(prefect_qruntime.__file__).with_name("py.typed").is_file()


def test_mypy_checks_the_face() -> None:
    root = FOLDER.parents[1]
    assert (root / "Makefile").read_text().count(f"{FOLDER.relative_to(root).as_posix()}\n") == 1
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"]  # which reports an ignore that nothing needs
