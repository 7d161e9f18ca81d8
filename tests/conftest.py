"""What every test may rely on: no settings and no proxy of this machine, no secret left from the test before.

Nothing heavy is imported here, so that the test of a pure module starts at once; tests/unit/test_lightness.py holds it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServer

# At import, before any test module imports Prefect: a session's own server may set some of these later.
for _name in list(os.environ):
    if _name.startswith("PREFECT_") or _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        del os.environ[_name]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Load the profile of property tests before a module that has some is imported."""
    if "hypothesis" in module_path.read_text(encoding="utf-8"):
        from hypothesis import settings

        # How long one example takes says more about the machine than about the code.
        settings.register_profile("calm", deadline=None)
        settings.load_profile("calm")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """Start one Prefect server for the session; this process uses it, too."""
    from tests.support.prefect_server import running_server

    with running_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_secrets_left() -> Iterator[None]:
    """Forget every secret that the test before registered for redaction."""
    yield
    if redact := sys.modules.get("prefect_qruntime.redact"):
        redact.forget_all()
