"""A create whose caller is cancelled: withdrawn while nothing is out, settled once it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.http import Transport
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.client.transport.retrying import IN_FLIGHT, RetryDeadlines, complete_or_withdraw
from prefect_qruntime.errors import QuantumRuntimeError
from tests.support.mock_client import connection
from tests.support.virtual_clock import clock, run

Script = Callable[[int], Awaitable[httpx.Response]]


class Host:
    """IAM and the service; `script(n)` answers the n-th POST."""

    def __init__(self, script: Script, iam_seconds: float = 0.0) -> None:
        self.posts: list[float] = []
        self.tokens = 0
        self._script = script
        self._iam_seconds = iam_seconds

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/identity/token":
            self.tokens += 1
            await asyncio.sleep(self._iam_seconds)
            return httpx.Response(200, json={"access_token": f"token-{self.tokens:06}", "expires_in": 3600})
        self.posts.append(clock())
        return await self._script(len(self.posts))


def cancelled_after(seconds: float, host: Host, *, phase: str = "submit") -> tuple[list[Reply], float]:
    """Cancel a POST after `seconds`. Returns (answers that arrived nevertheless, seconds until the caller got away)."""
    replies: list[Reply] = []

    async def main() -> float:
        async with httpx.AsyncClient(transport=httpx.MockTransport(host.handle)) as http:
            mine = connection()
            transport = Transport(mine, http, TokenSource(mine, http), headers={}, patience=RetryDeadlines())

            async def post() -> None:
                replies.append(await transport.request("POST", "/jobs", phase=phase, body={}))  # type: ignore[arg-type]

            task = asyncio.create_task(complete_or_withdraw(post()))
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gone = clock()
            await asyncio.sleep(3600)  # whatever is left behind would show now
            return gone

    return replies, run(main())


async def slowly(number: int) -> httpx.Response:
    await asyncio.sleep(4.0)
    return httpx.Response(200, json={"id": "d1"})


async def busy(number: int) -> httpx.Response:
    await asyncio.sleep(1.0)
    return httpx.Response(429 if number == 1 else 200, headers={"Retry-After": "5"}, json={"id": "d1"})


async def refused(number: int) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def unauthorised(number: int) -> httpx.Response:
    await asyncio.sleep(1.0)
    return httpx.Response(401 if number == 1 else 200, json={"id": "d1"})


@pytest.mark.parametrize("phase", ["submit", "open"])
def test_once_it_is_out_its_answer_is_awaited(phase: str) -> None:
    host = Host(slowly)
    replies, gone = cancelled_after(1.0, host, phase=phase)
    assert [reply.status for reply in replies] == [200]
    assert (gone, len(host.posts)) == (4.0, 1)


@pytest.mark.parametrize("phase", ["submit", "open"])
def test_during_the_pause_after_a_429_it_is_withdrawn_at_once(phase: str) -> None:
    host = Host(busy)
    replies, gone = cancelled_after(3.0, host, phase=phase)
    assert (replies, gone, len(host.posts)) == ([], 3.0, 1)


def test_a_429_that_comes_after_the_cancellation_is_not_tried_again() -> None:
    host = Host(busy)
    replies, gone = cancelled_after(0.5, host)
    assert (replies, gone, len(host.posts)) == ([], 1.0, 1)


def test_a_401_that_comes_after_the_cancellation_is_not_tried_again() -> None:
    host = Host(unauthorised)
    replies, gone = cancelled_after(0.5, host)
    assert (replies, gone, len(host.posts)) == ([], 1.0, 1)


def test_while_the_service_cannot_be_reached_it_is_withdrawn_at_once() -> None:
    host = Host(refused)
    replies, gone = cancelled_after(10.0, host)
    assert (replies, gone) == ([], 10.0)
    assert host.posts[-1] <= 10.0


def test_while_waiting_for_a_token_it_is_withdrawn_at_once() -> None:
    host = Host(slowly, iam_seconds=30.0)
    replies, gone = cancelled_after(10.0, host)
    assert (replies, gone, host.posts, host.tokens) == ([], 10.0, [], 1)


def test_without_cancellation_it_is_not_in_the_way() -> None:
    async def main() -> None:
        async def work() -> int:
            assert IN_FLIGHT.get() is not None
            return 7

        assert await complete_or_withdraw(work()) == 7
        assert IN_FLIGHT.get() is None

        async def fail() -> None:
            raise QuantumRuntimeError("x")

        with pytest.raises(QuantumRuntimeError):
            await complete_or_withdraw(fail())

    run(main())


def test_reads_are_no_errands() -> None:
    host = Host(busy)

    async def main() -> int:
        async with httpx.AsyncClient(transport=httpx.MockTransport(host.handle)) as http:
            mine = connection()
            transport = Transport(mine, http, TokenSource(mine, http), headers={})
            reply = await transport.request("GET", "/instance", phase="read")
            return reply.status

    assert run(main()) == 200
    assert len(host.posts) == 2
