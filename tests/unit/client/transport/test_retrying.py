"""What goes out again, and what never does: per phase."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.transport.http import tls_context
from prefect_qruntime.client.transport.retrying import RetryDeadlines, repeat
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ServiceUnavailable,
    UsageLimitReached,
    after,
)
from tests.support.mock_client import sent

Connect = Callable[..., QuantumRuntimeClient]
Call = Callable[[QuantumRuntimeClient], Any]
SPEC = make_spec(["OPENQASM 3.0; qubit q; bit[1] c; c[0] = measure q;"], backend="b")
JOB = {"id": "d1", "state": {"status": "Running"}}
OVER = {"id": "d1", "state": {"status": "Completed"}}


def create(client: QuantumRuntimeClient) -> Any:
    return client.post_job(SPEC, ("qr-key:1",), None)


def begin(client: QuantumRuntimeClient) -> Any:
    return client.post_session("b", mode="dedicated", max_ttl=None)


CREATES = pytest.mark.parametrize("call", [create, begin], ids=["job", "session"])
REPEATED: list[tuple[str, Call, str]] = [
    ("read", lambda c: c.usage(), "GET"),
    ("list", lambda c: c.jobs(), "GET"),
    ("wait", lambda c: c.fetch_job("d1"), "GET"),
    ("cancel", lambda c: c.cancel("d1"), "POST"),
    ("delete", lambda c: c.delete_job("d1"), "DELETE"),
    ("patch", lambda c: c.stop_accepting("s1"), "PATCH"),
    ("drop", lambda c: c.drop_session("s1"), "DELETE"),
    ("tags", lambda c: c.replace_tags("d1", []), "PUT"),
]
ANSWER = {"jobs": [], "usage_consumed_seconds": 1.0, **OVER}


@pytest.mark.parametrize(
    "trouble",
    [500, 502, 503, 504, 520, 524, 429, httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.ReadError("x")],
    ids=str,
)
@pytest.mark.parametrize(("name", "call", "method"), REPEATED, ids=[r[0] for r in REPEATED])
def test_idempotent_calls_go_out_again(
    iam: HTTPXMock, connect: Connect, name: str, call: Call, method: str, trouble: Any
) -> None:
    for _ in range(2):
        if isinstance(trouble, int):
            iam.add_response(method=method, status_code=trouble)
        else:
            iam.add_exception(trouble, method=method)
    iam.add_response(json=ANSWER, is_reusable=True)
    client = connect(patience=RetryDeadlines(first_pause=0.01))
    client.run(call(client))
    assert [r.method for r in sent(iam)][:3] == [method] * 3


@CREATES
@pytest.mark.parametrize(
    "trouble",
    [
        *(500, 502, 503, 504, 520, 524, 501, 408),
        httpx.ReadTimeout("x"),
        httpx.ReadError("x"),
        httpx.WriteError("x"),
        httpx.RemoteProtocolError("x"),
    ],
    ids=str,
)
def test_a_create_whose_answer_is_lost_goes_out_once(
    iam: HTTPXMock, connect: Connect, call: Call, trouble: Any
) -> None:
    if isinstance(trouble, int):
        iam.add_response(status_code=trouble)
    else:
        iam.add_exception(trouble)
    client = connect()
    with pytest.raises(ServiceUnavailable) as caught:
        client.run(call(client))
    assert caught.value.advice.kind == "search-first"
    assert len(sent(iam)) == 1


@CREATES
@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>ok</html>"},
        {"content": b'{"id":"d1'},
        {"json": []},
        {"json": {}},
        {"json": {"id": None}},
        {"status_code": 204},
    ],
    ids=str,
)
def test_an_accepted_create_with_an_unreadable_answer_is_a_lost_one(
    iam: HTTPXMock, connect: Connect, call: Call, answer: dict[str, Any]
) -> None:
    iam.add_response(**answer)
    client = connect()
    with pytest.raises(ServiceUnavailable) as caught:
        client.run(call(client))
    assert caught.value.advice.kind == "search-first"
    assert len(sent(iam)) == 1


@CREATES
@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")])
def test_a_create_that_never_left_goes_out_again(
    iam: HTTPXMock, connect: Connect, call: Call, trouble: Exception
) -> None:
    iam.add_exception(trouble)
    iam.add_exception(trouble)
    iam.add_response(json={"id": "d1"})
    client = connect()
    assert client.run(call(client)).id == "d1"
    assert len(sent(iam)) == 3


@CREATES
def test_a_create_refused_for_its_pace_goes_out_again(iam: HTTPXMock, connect: Connect, call: Call) -> None:
    iam.add_response(status_code=429, headers={"Retry-After": "0"}, json={"errors": [{"code": 1202, "message": "m"}]})
    iam.add_response(status_code=429, headers={"Retry-After": "0.2"})
    iam.add_response(json={"id": "d1"})
    client = connect()
    began = time.monotonic()
    assert client.run(call(client)).id == "d1"
    assert time.monotonic() - began >= 0.2
    assert len(sent(iam)) == 3


@CREATES
def test_a_pause_longer_than_our_patience_is_not_begun(iam: HTTPXMock, connect: Connect, call: Call) -> None:
    iam.add_response(status_code=429)  # at least 12 s
    client = connect()
    with pytest.raises(RateLimited) as caught:
        client.run(call(client))
    assert str(caught.value.advice) == "after 12 s"
    assert len(sent(iam)) == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"errors": [{"code": 1208, "message": "m"}]}, InvalidInput),
        (403, {"errors": [{"code": 1200, "message": "m"}]}, PermissionDenied),
        (404, {"errors": [{"code": 1004, "message": "backend"}]}, NotFound),
        (409, {"errors": [{"code": "limit", "message": "usage"}]}, UsageLimitReached),
        (405, {"errors": [{"code": "method_not_allowed", "message": "m"}]}, QuantumRuntimeError),
    ],
)
def test_refused_creates_are_final(
    iam: HTTPXMock, connect: Connect, status: int, body: Any, error: type[QuantumRuntimeError]
) -> None:
    iam.add_response(status_code=status, json=body)
    client = connect()
    with pytest.raises(error) as caught:
        client.run(create(client))
    assert type(caught.value) is error
    assert str(caught.value.advice) == "never"
    assert len(sent(iam)) == 1


@pytest.mark.parametrize("method", ["read", "create"])
def test_401_gets_one_fresh_token(httpx_mock: HTTPXMock, connect: Connect, method: str) -> None:
    for token in ("first-token-x", "second-token-x"):
        httpx_mock.add_response(
            url="https://iam.cloud.ibm.com/identity/token", json={"access_token": token, "expires_in": 3600}
        )
    for token, status in (("first-token-x", 401), ("second-token-x", 200)):
        httpx_mock.add_response(
            match_headers={"Authorization": f"Bearer {token}"},
            status_code=status,
            json={"id": "d1", "status": "Queued"} if status == 200 else {"errors": [{"code": 1200, "message": "m"}]},
        )
    client = connect()
    call = client.job("d1") if method == "read" else create(client)
    assert client.run(call).id == "d1"
    assert len(sent(httpx_mock)) == 2


def test_401_with_a_fresh_token_is_final(iam: HTTPXMock, connect: Connect) -> None:
    jobs = "https://quantum.cloud.ibm.com/api/v1/jobs"
    iam.add_response(url=jobs, status_code=401, is_reusable=True, json={"errors": [{"code": 1200, "message": "no"}]})
    client = connect()
    with pytest.raises(AuthenticationError):
        client.run(create(client))
    assert len(sent(iam)) == 2
    assert len(iam.get_requests()) == 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(iam: HTTPXMock, connect: Connect, status: int) -> None:
    iam.add_response(status_code=status, headers={"Location": "https://evil.example/jobs"}, is_reusable=True)
    client = connect()
    for call in (client.usage(), create(client)):
        with pytest.raises(ServiceUnavailable, match="redirects elsewhere"):
            client.run(call)
    assert len(sent(iam, "jobs")) == 1, "a create goes out once"
    assert {r.url.host for r in iam.get_requests()} == {"quantum.cloud.ibm.com", "iam.cloud.ibm.com"}


async def test_backoff_grows_with_jitter_up_to_its_ceiling() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def fail() -> None:
        if len(pauses) < 9:
            raise ServiceUnavailable("x")

    patience = RetryDeadlines(first_pause=1.0, longest_pause=20.0, read=1e6)
    await repeat(fail, phase="read", patience=patience, what="x", sleep=sleep)
    for n, pause in enumerate(pauses):
        assert 0.5 * min(2.0**n, 20.0) <= pause <= min(2.0**n, 20.0)


@pytest.mark.parametrize(("asked", "least", "most"), [(12.0, 12.0, 13.0), (0.0, 0.2, 2.0), (120.0, 120.0, 121.0)])
async def test_the_service_s_own_pause_is_kept_and_zero_is_no_leave_to_hammer(
    asked: float, least: float, most: float
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def fail() -> None:
        if len(pauses) < 3:
            raise RateLimited("x", advice=after(asked))

    await repeat(fail, phase="submit", patience=RetryDeadlines(), what="x", sleep=sleep)
    assert len(pauses) == 3
    assert all(least <= pause <= most for pause in pauses)


async def test_a_cancelled_repeat_ends_at_once() -> None:
    failed = asyncio.Event()

    async def fail() -> None:
        assert not failed.is_set()
        failed.set()
        raise ServiceUnavailable("x")

    patience = RetryDeadlines(first_pause=30.0, longest_pause=30.0)
    task = asyncio.create_task(repeat(fail, phase="read", patience=patience, what="x"))
    await failed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("field", "name"),
    [("ca_file", name) for name in ("ca.pem", "missing.pem", ".", "a\0b", "\ud800")]
    + [("SSL_CERT_FILE", name) for name in ("ca.pem", "missing.pem", ".")],
)
def test_a_ca_file_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, tmp_path: Any, field: str, name: str
) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    path = f"{tmp_path}/{name}"
    if field == "ca_file":
        client = connect(ca_file=path)
    else:
        monkeypatch.setenv(field, path)
        tls_context.cache_clear()
        client = connect()
    with pytest.raises(InvalidInput) as caught:
        client.run(client.usage())
    assert caught.value.field == field


@pytest.mark.parametrize("named", [0.0, 0.1, 5.0])
def test_a_retry_after_of_nothing_does_not_allow_a_request_every_moment(named: float) -> None:
    """Before: a service that answers 429 with `Retry-After: 0` got two creates a second, for a quarter of an hour."""
    pauses: list[float] = []

    async def refused() -> None:
        if len(pauses) < 10:
            raise RateLimited("slower", advice=after(named))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    asyncio.run(repeat(refused, phase="submit", patience=RetryDeadlines(), what="POST /jobs", sleep=sleep))
    assert all(pause >= named for pause in pauses)
    assert (max(pauses) >= 10.0) is (named < 0.5)
    assert (max(pauses) <= named + 1.0) is (named >= 0.5)
