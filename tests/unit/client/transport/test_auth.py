"""Tokens: one exchange for all, early renewal, discarding without races."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import AuthenticationError, PolicyRefused, ServiceUnavailable
from prefect_qruntime.redact import MASK, redact, register_secret
from tests.support.mock_client import QUICK, connection


class Iam:
    """Counts exchanges; answers when let."""

    def __init__(self) -> None:
        self.calls = 0
        self.now = 0.0
        self.ahead = 5_000.0  # our wall clock, of our monotonic one
        self.life: Any = 3600.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: list[httpx.Response | Exception] = []

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        number = self.calls
        await self.gate.wait()
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return httpx.Response(200, json={"access_token": f"token-number-{number}", "expires_in": self.life})


@asynccontextmanager
async def source_of(iam: Iam, patience: RetryDeadlines = QUICK) -> AsyncIterator[TokenSource]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(iam.handle)) as http:
        clock, wall = lambda: iam.now, lambda: iam.now + iam.ahead
        yield TokenSource(connection(), http, patience=patience, clock=clock, wall=wall)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for in the code under test
            await asyncio.sleep(0)


async def test_fifty_callers_one_exchange() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.gate.clear()
        callers = [asyncio.create_task(source.get()) for _ in range(50)]
        await until(lambda: iam.calls == 1)
        iam.gate.set()
        assert set(await asyncio.gather(*callers)) == {"token-number-1"}
        assert iam.calls == 1


async def test_a_token_in_use_stays_masked_whatever_number_of_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_qruntime.redact._KEEP", 3)
    async with source_of(Iam()) as source:
        for number in range(9):
            token = await source.get()
            register_secret(f"signature-{number}", passing=True)
            register_secret(f"other-signature-{number}", passing=True)
            assert redact(token) == MASK


async def test_a_cancelled_caller_takes_the_token_from_nobody() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.gate.clear()
        first, second = (asyncio.create_task(source.get()) for _ in range(2))
        await until(lambda: iam.calls == 1)
        first.cancel()
        await asyncio.wait([first])
        iam.gate.set()
        assert await second == "token-number-1"
        assert first.cancelled()
        assert iam.calls == 1


async def test_the_life_of_a_token() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        assert source.seconds_left is None
        assert await source.get() == "token-number-1"
        iam.now = 2879.0  # 80 % of an hour less a second
        assert await source.get() == "token-number-1"
        assert (iam.calls, source.seconds_left) == (1, 721.0)
        iam.now = 2881.0  # renewed early, in the background: the old one serves meanwhile
        iam.gate.clear()
        assert [await source.get() for _ in range(20)] == ["token-number-1"] * 20
        await until(lambda: iam.calls == 2)
        iam.gate.set()
        await until(lambda: (source.seconds_left or 0) > 3000)
        assert await source.get() == "token-number-2"
        iam.now += 3599.0  # too late for a new request, without early renewal in between
        assert await source.get() == "token-number-3"
        assert iam.calls == 3


async def test_a_failed_early_renewal_is_nobody_s_error_and_is_tried_again() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        await source.get()
        iam.now = 3000.0
        iam.answers = [httpx.Response(400, json={"errorCode": "BXNIM0415E"})]
        async with asyncio.timeout(60):
            while iam.calls < 3:
                assert await source.get() == "token-number-1"
                await asyncio.sleep(0)
        await until(lambda: (source.seconds_left or 0) > 3000)
        assert await source.get() == "token-number-3"


async def test_short_lives_are_used_to_their_end() -> None:
    iam = Iam()
    iam.life = 2.0
    async with source_of(iam) as source:
        for tenth in range(100):  # ten seconds
            iam.now = tenth / 10
            await source.get()
        assert iam.calls <= 10 / 2 + 2


async def test_discarding_only_hits_the_refused_token() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        old = await source.get()
        source.discard("another")
        assert await source.get() == old
        # Fifty requests met the same 401; the late ones must not throw away the new token.
        source.discard(old)
        new = await source.get()
        for _ in range(49):
            source.discard(old)
            assert await source.get() == new
        assert iam.calls == 2


async def test_outages_are_repeated_and_a_bad_key_is_not() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.answers = [
            httpx.Response(503),
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("slow"),
            httpx.Response(200, text="<html>"),
        ]
        assert await source.get() == "token-number-5"
    bad = Iam()
    async with source_of(bad) as source:
        bad.answers = [httpx.Response(400, json={"errorCode": "BXNIM0415E", "errorMessage": "x"})]
        with pytest.raises(AuthenticationError, match="API key not found"):
            await source.get()
        assert bad.calls == 1
        assert await source.get() == "token-number-2"  # the key may have been made since


async def test_the_clock_of_iam_is_known_however_ours_is_set() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        seen = [(source.clock_skew, source.wall_clock)]
        iam.answers = [
            httpx.Response(200, json={"access_token": "token-number-0", "expires_in": 3600, "expiration": 8_700})
        ]
        await source.get()
        seen.append((source.clock_skew, source.wall_clock))
        iam.now, iam.ahead = 60.0, 9_000.0  # a minute later ours was set forward by 4000 s
        seen.append((source.clock_skew, source.wall_clock))
    assert seen == [(None, 5_000.0), (100.0, 5_100.0), (-3_900.0, 5_160.0)]


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("step", [2_000.0, -4_000.0, 1.0])
async def test_a_step_of_our_clock_or_a_suspended_machine_asks_iam_once_what_time_it_is(
    dated: bool, step: float
) -> None:
    """Before: a budget took a session for younger by the time that a laptop slept."""
    iam = Iam()
    date = {"expiration": 8_600} if dated else {}  # issued at 5,000
    iam.answers = [
        httpx.Response(200, json={"access_token": f"token-number-{number}", "expires_in": 3600, **date})
        for number in range(2)
    ]
    async with source_of(iam) as source:
        await source.get()
        iam.now, iam.ahead = 10.0, iam.ahead + step
        for _ in range(3):
            await source.get()
        iam.now, iam.ahead = iam.now + 2_000, iam.ahead + 1.0
        await source.get()
        assert iam.calls == (1 if step == 1.0 else 2)
        if dated and step != 1.0:
            assert source.clock_skew == -(10.0 + step) - 1.0


@pytest.mark.parametrize("trouble", ["out of reach", "in pieces", "silent", "refusing"])
async def test_after_a_step_of_our_clock_the_token_serves_on_while_iam_is_down(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: each request failed after a minute, although the token was good."""
    monkeypatch.setattr("prefect_qruntime.client.transport.auth._STEP_PATIENCE", 0.05)
    iam = Iam()
    async with source_of(iam) as source:
        assert await source.get() == "token-number-1"
        iam.now, iam.ahead = 10.0, iam.ahead + 2_000
        if trouble == "silent":
            iam.gate.clear()
        answer = {
            "out of reach": httpx.ConnectError("down"),
            "in pieces": httpx.Response(502, text="<html>bad gateway</html>"),
            "refusing": httpx.Response(400, json={"errorCode": "BXNIM0415E", "errorMessage": "key not found"}),
        }.get(trouble)
        iam.answers = [answer] * 1000 if answer is not None else []
        assert {await source.get() for _ in range(3)} == {"token-number-1"}
        monkeypatch.setattr("prefect_qruntime.client.transport.auth._STEP_PATIENCE", math.inf)
        async with asyncio.timeout(60):  # one waited in vain, so the others do not
            assert await source.get() == "token-number-1"
        iam.answers.clear()
        iam.gate.set()
        async with asyncio.timeout(60):
            while await source.get() == "token-number-1":  # noqa: ASYNC110 - IAM is asked in the background
                await asyncio.sleep(0.01)
        calls = iam.calls
        await source.get()
        assert iam.calls == calls
        iam.answers = [httpx.ConnectError("down")] * 1000
        iam.now += 3_600  # it is too old by our clock
        with pytest.raises(ServiceUnavailable):
            await source.get()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"access_token": ""},
        {"access_token": None},
        {"access_token": "a\r\nX: y"},
        {"access_token": "two words"},
        {"access_token": "é" * 9},
        {"access_token": "t-123456", "expires_in": 0},
        {"access_token": "t-123456", "expires_in": True},
        {"access_token": "t-123456", "expires_in": "3600"},
        [],
    ],
)
async def test_an_answer_without_a_usable_token_is_an_outage(body: Any) -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.answers = [httpx.Response(200, json=body)] * 50
        with pytest.raises(ServiceUnavailable) as caught:
            await source.get()
        assert "t-123456" not in str(caught.value)
    async with source_of(iam, replace(QUICK, token=60.0)) as source:  # a busy machine is not quick
        iam.answers = [httpx.Response(200, json=body)]
        assert (await source.get()).startswith("token-number-")


async def test_a_missing_life_is_an_hour() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.answers = [httpx.Response(200, json={"access_token": "token-number-0"})]
        await source.get()
        assert source.seconds_left == 3600.0


async def test_the_wall_clock_does_not_matter() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        iam.answers = [
            httpx.Response(200, json={"access_token": "token-number-0", "expires_in": 3600, "expiration": 12})
        ]
        await source.get()
        iam.now = 1000.0
        assert await source.get() == "token-number-0"


async def test_a_token_is_known_to_redaction_and_shown_nowhere() -> None:
    iam = Iam()
    async with source_of(iam) as source:
        token = await source.get()
        assert redact(f"x {token}") == f"x {MASK}"
        assert token not in repr(source.__dict__)


async def test_errors_hold_no_key() -> None:
    iam = Iam()
    async with httpx.AsyncClient(transport=httpx.MockTransport(iam.handle)) as http:
        mine = connection(api_key="the-key-of-this-test")
        source = TokenSource(mine, http, patience=QUICK)
        echo = httpx.Response(
            400, json={"errorCode": "BXNIM0415E", "errorMessage": "apikey the-key-of-this-test is bad"}
        )
        for trouble in (httpx.UnsupportedProtocol("the-key-of-this-test"), echo):
            iam.answers = [trouble] * 50
            with pytest.raises((ServiceUnavailable, AuthenticationError)) as caught:
                await source.get()
            assert "the-key-of-this-test" not in f"{caught.value} {caught.value!r} {caught.value.fields}"
            assert caught.value.__context__ is None


async def test_the_guard_is_asked_before_the_key_goes_out_and_again_later() -> None:
    iam, asked, refusing = Iam(), list[float](), [True]

    async def guard(_: Connection) -> None:
        asked.append(iam.now)
        if refusing:
            raise PolicyRefused("not there")

    async with httpx.AsyncClient(transport=httpx.MockTransport(iam.handle)) as http:
        mine = replace(connection(), guard=guard)
        source = TokenSource(mine, http, patience=QUICK, clock=lambda: iam.now, wall=lambda: iam.now)
        for _ in range(2):
            with pytest.raises(PolicyRefused):
                await source.get()
        assert (iam.calls, len(asked)) == (0, 2), "a refusal is not remembered"
        refusing.clear()
        assert await source.get() == await source.get() == "token-number-1"
        assert len(asked) == 3
        refusing.append(True)
        iam.now = 100.0
        with pytest.raises(PolicyRefused):  # although the token is still valid
            await source.get()
