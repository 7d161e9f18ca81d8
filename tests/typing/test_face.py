"""The package says that it is typed; what type checkers know of it is in face.py."""

from __future__ import annotations

from pathlib import Path

import prefect_qruntime


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(prefect_qruntime.__file__).with_name("py.typed").is_file()
