"""What every test may rely on: no settings and no proxy of this machine, no secret left from the test before."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long one example takes says more about the machine than about the code.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

# At import, before any test module imports Prefect: a session's own server may set some of these later.
for _name in list(os.environ):
    if _name.startswith("PREFECT_") or _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        del os.environ[_name]

# One fixture for all folders, so that there is one server; only now, because it imports Prefect.
from tests.prefect_server import prefect_server as prefect_server  # noqa: E402


@pytest.fixture(autouse=True)
def _no_secrets_left() -> Iterator[None]:
    from prefect_qruntime.redact import forget_all

    yield
    forget_all()
