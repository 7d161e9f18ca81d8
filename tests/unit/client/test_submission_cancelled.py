"""Whatever the service answers while the caller is being cancelled is remembered as for a caller who stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.service import Service
from prefect_qruntime.client.submission import Intent, submission_memory, submit_or_attach
from prefect_qruntime.client.submission_keys import Record
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.http import Transport
from prefect_qruntime.errors import QuantumRuntimeError
from tests.support.circuits import BELL
from tests.support.mock_client import TOKEN, connection
from tests.support.virtual_clock import clock, run

ANSWERS: dict[str, Callable[[], httpx.Response]] = {
    "a job": lambda: httpx.Response(200, json={"id": "d1"}),
    "a page with 200": lambda: httpx.Response(200, text="<html>ok</html>"),
    "nothing with 201": lambda: httpx.Response(201),
    "a job without id": lambda: httpx.Response(200, json={"session_id": "s1"}),
    "half a job": lambda: httpx.Response(200, text='{"id": "d1'),
    "a refusal": lambda: httpx.Response(400, json={"errors": [{"code": 1211, "message": "no such backend"}]}),
    "an outage of the service": lambda: httpx.Response(500, json={"errors": [{"code": 9999, "message": "internal"}]}),
    "a gateway's page with 502": lambda: httpx.Response(502, text="<html>bad gateway</html>"),
}


@dataclass
class Seen:
    """What is known after the only POST."""

    posts: int = 0
    bought: list[str] = field(default_factory=list)
    noted: list[str | None] = field(default_factory=list)
    sent: bool = False
    accepted: bool = False


def submit(answer: Callable[[], httpx.Response], *, cancel: bool) -> Seen:
    """Submit once with an answer that takes two seconds, and cancel the caller after one, if asked for."""
    seen = Seen()

    async def service_side(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/identity/token":
            return httpx.Response(200, json={"access_token": TOKEN, "expires_in": 36000})
        if request.method == "POST":
            seen.posts += 1
            await asyncio.sleep(2.0)
            return answer()
        return httpx.Response(200, json={"jobs": [], "count": 0})  # a list that lags

    async def note(key: str, job_id: str | None) -> None:
        await asyncio.sleep(0.5)
        seen.noted.append(job_id)

    async def main() -> None:
        service = Service(connection())
        async with httpx.AsyncClient(transport=httpx.MockTransport(service_side)) as http:
            tokens = TokenSource(service.connection, http, clock=clock)
            service.transport = Transport(service.connection, http, tokens, headers={})
            intent = Intent(make_spec([BELL], backend="b"), lambda generation: f"qr-key:{generation:032x}", attempts=1)
            hooks: dict[str, Any] = {"note_accepted": note, "on_bought": lambda ref: seen.bought.append(ref.id)}
            caller = asyncio.create_task(submit_or_attach(service, intent, clock=clock, **hooks))
            await asyncio.sleep(1.0)
            if cancel:
                caller.cancel()
            with contextlib.suppress(QuantumRuntimeError, asyncio.CancelledError):
                await caller
            assert caller.cancelled() == cancel
            known = submission_memory().get(("", f"qr-key:{0:032x}")) or Record()
            seen.sent, seen.accepted = known.sent is not None, known.accepted is not None or known.ref is not None

    run(main())
    return seen


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cancelled_caller_leaves_what_one_who_stays_knows(name: str) -> None:
    stays, cancelled = submit(ANSWERS[name], cancel=False), submit(ANSWERS[name], cancel=True)
    assert cancelled == stays
    assert stays.posts == 1
    if name != "a refusal":
        assert stays.sent or stays.accepted


def test_a_cancelled_caller_sends_nothing_again_after_a_429() -> None:
    limit = {"errors": [{"code": 9998, "message": "too many requests"}]}
    assert submit(lambda: httpx.Response(429, json=limit), cancel=True).posts == 1
