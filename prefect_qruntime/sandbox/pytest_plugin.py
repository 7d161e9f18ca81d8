"""Pytest fixtures for tests against the sandbox; nothing heavy is imported until one is used.

The server is started once per module, since that takes longest, and reset before every test: no job, session,
fault, journal entry, usage or changed option is left, and the API keys are new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prefect_qruntime.sandbox.server import Sandbox


@pytest.fixture(scope="module")
def _qruntime_sandbox_server() -> Iterator[Sandbox]:
    from prefect_qruntime.sandbox.server import Sandbox

    with Sandbox(seed=1) as sandbox:
        sandbox.warm_up()
        yield sandbox


@pytest.fixture
def qruntime_sandbox(_qruntime_sandbox_server: Sandbox) -> Sandbox:
    """Return a running `Sandbox` in its initial state."""
    _qruntime_sandbox_server.reset()
    return _qruntime_sandbox_server


@pytest.fixture
def qruntime_credentials(qruntime_sandbox: Sandbox) -> Any:
    """Return a `QuantumRuntimeCredentials` block (cloud dialect) for the sandbox of this test."""
    return qruntime_sandbox.credentials()
