"""IBM's official client, unmodified, against the sandbox; run by `make interop` in an environment of its own.

Only documented parameters and the client's own environment variables point it here: `url` with `url_resolver` for the
API, `IAM_URL` for the tokens, and `QISKIT_FUNCTIONS_EXPERIMENTAL`, which makes it take the given instance instead of
searching IBM's catalogue for instances.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from prefect_qruntime.sandbox import Control, Sandbox

# Where the client is not installed, which is everywhere but in its own environment, there is nothing to collect.
collect_ignore_glob = [] if find_spec("qiskit_ibm_runtime") else ["test_*.py"]

NOISY, IDEAL = "sandbox_noisy", "sandbox_ideal"


@pytest.fixture
def control(qruntime_sandbox: Sandbox) -> Control:
    qruntime_sandbox.control.set_times(queue_time=0, run_time=0)
    return qruntime_sandbox.control


@pytest.fixture
def account(qruntime_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that gives what the client wants to know, with the keys that are valid by then."""
    monkeypatch.setenv("IAM_URL", qruntime_sandbox.iam_url)
    monkeypatch.setenv("QISKIT_FUNCTIONS_EXPERIMENTAL", "1")

    def parameters(api_key: str | None = None) -> dict[str, Any]:
        return {
            "channel": "ibm_quantum_platform",
            "token": api_key or qruntime_sandbox.api_key,
            "instance": qruntime_sandbox.crn,
            "url": qruntime_sandbox.base_url(),
            "url_resolver": lambda url, *_: url,
        }

    return parameters


@pytest.fixture
def connect(account: Callable[..., dict[str, Any]], control: Control) -> Callable[..., Any]:
    """Return a function that makes a service, as a user does."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    return lambda: QiskitRuntimeService(**account())


@pytest.fixture
def transport(account: Callable[..., dict[str, Any]], control: Control) -> Callable[..., Any]:
    """Return a function that makes the client's transport alone."""
    from qiskit_ibm_runtime.api.client import RuntimeClient
    from qiskit_ibm_runtime.api.client_parameters import ClientParameters

    return lambda api_key=None: RuntimeClient(ClientParameters(**account(api_key)))


@pytest.fixture
def service(connect: Callable[..., Any]) -> Any:
    return connect()


@pytest.fixture
def noisy(service: Any) -> Any:
    return service.backend(NOISY)


@pytest.fixture
def ideal(service: Any) -> Any:
    return service.backend(IDEAL)
