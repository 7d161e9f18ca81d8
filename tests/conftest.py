"""What every test may rely on: no settings and no proxy of this machine, no secret left from the test before."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# At import, before any test module imports Prefect: a session's own server may set some of these later.
for _name in list(os.environ):
    if _name.startswith("PREFECT_") or _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def _no_secrets_left() -> Iterator[None]:
    from prefect_qruntime.redact import forget_all

    yield
    forget_all()
