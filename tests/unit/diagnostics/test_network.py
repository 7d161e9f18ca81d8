"""What doctor finds on the way to the service before anything is sent there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.diagnostics.network import check_proxy_reached

REMOTE = Connection(api_key="not-a-key-0123456789", crn="crn:v1:bluemix:public:quantum-computing:us-east:a/0:0::")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    with socket.socket() as held:  # bound, never listening
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def found(connection: Connection = REMOTE) -> list[tuple[str, str]]:
    return [(one.level, str(one)) for one in asyncio.run(check_proxy_reached(connection))]


def test_without_a_proxy_there_is_nothing_to_say() -> None:
    assert found() == []


def test_a_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{listening}")
    ((level, said),) = found()
    assert level == "ok"
    assert f"sets the proxy 127.0.0.1:{listening} to" in said
    assert "iam.cloud.ibm.com" in said
    assert "secret" not in said


def test_one_that_cannot_be_reached_is_a_problem(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed}")
    ((level, said),) = found()
    assert level == "problem"
    assert "HTTPS_PROXY" in said
    assert "NO_PROXY" in said


def test_what_no_proxy_lists_goes_directly(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("NO_PROXY", "fd00::/8, .ibm.com")
    assert found() == []


def test_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed}")
    here = Connection(
        api_key=REMOTE.api_key, crn=REMOTE.crn, base_url="http://127.0.0.1:1/api/v1", iam_url="http://127.0.0.1:1"
    )
    assert found(here) == []
