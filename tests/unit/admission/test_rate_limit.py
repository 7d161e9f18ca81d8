"""The pace of creates: no window of a minute above five, whoever submits from wherever."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from prefect_qruntime.admission.rate_limit import RateLimiter, Shared, limit_name, pace
from prefect_qruntime.client.connection import Connection
from tests.support.prefect_limits import PrefectLimits
from tests.support.virtual_clock import clock, run

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"


def pacer(prefect: PrefectLimits | None) -> RateLimiter:
    """A process's pacer; each is another process to Prefect."""

    async def find(crn: str) -> Shared | None:
        if prefect is None:
            return None
        if prefect.trouble is not None:
            raise prefect.trouble
        client: Any = prefect
        return Shared(tuple(prefect.limits), 63.0, client) if prefect.limits else None

    return RateLimiter(CRN, find)


class Service:
    """Notes when creates arrive; each takes `seconds`, and arrives somewhere on the way."""

    def __init__(self, seed: int = 0, longest: float = 0.2) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self._random = random.Random(seed)
        self._longest = longest

    async def create(self, pacer: RateLimiter, number: int) -> None:
        turn = await pacer.take(5, 60.0)
        seconds = self._random.uniform(0, self._longest)
        before = self._random.uniform(0, seconds)
        await asyncio.sleep(before)
        self.arrivals.append((clock(), number))
        await asyncio.sleep(seconds - before)
        await turn.sent()

    def most_in_a_minute(self) -> int:
        moments = sorted(moment for moment, _ in self.arrivals)
        return max(sum(start <= other < start + 60 for other in moments) for start in moments)


def submit(service: Service, pacers: list[RateLimiter], number: int) -> float:
    """Submit so many jobs at once from all processes; returns how long it took."""

    async def main() -> float:
        await asyncio.gather(*(service.create(pacers[i % len(pacers)], i) for i in range(number)))
        return clock()

    return run(main())


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="prefect_qruntime"):
        yield


@pytest.mark.parametrize("longest", [0.2, 8.0])
@pytest.mark.parametrize("seed", range(5))
def test_in_one_process(seed: int, longest: float) -> None:
    service = Service(seed, longest)
    lasted = submit(service, [pacer(None)], 22)
    assert service.most_in_a_minute() == 5
    assert sorted(service.arrivals)[4][0] <= longest, "the first five do not wait"
    assert lasted < 4 * (60 + longest) + longest


@pytest.mark.parametrize("longest", [0.2, 8.0])
@pytest.mark.parametrize("seed", range(5))
def test_among_three_processes(seed: int, longest: float) -> None:
    prefect, service = PrefectLimits(5), Service(seed, longest)
    lasted = submit(service, [pacer(prefect) for _ in range(3)], 40)
    assert service.most_in_a_minute() == 5
    assert sorted(service.arrivals)[4][0] <= longest
    # Eight rounds, seven pauses: a limit that is free is taken soon.
    assert lasted < 7 * (63 + longest + 5) + longest
    assert prefect.refusals < 40
    assert prefect.reads < 40 * 12


def test_the_order_of_calls_is_kept() -> None:
    service = Service(longest=0.0)
    submit(service, [pacer(PrefectLimits(5))], 12)
    assert [number for _, number in service.arrivals] == list(range(12))


def test_more_can_be_set_up_than_the_settings_say() -> None:
    service = Service()
    assert submit(service, [pacer(PrefectLimits(9))], 9) < 1


@pytest.mark.usefixtures("_quiet")
def test_not_set_up_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    submit(Service(), [pacer(PrefectLimits(0))], 12)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "prefect-qruntime setup" in warnings[0]
    assert any("waiting for the service's create limit" in record.message for record in caplog.records)


@pytest.mark.usefixtures("_quiet")
def test_prefect_out_of_reach_from_the_start(caplog: pytest.LogCaptureFixture) -> None:
    prefect, service = PrefectLimits(5), Service()
    prefect.trouble = httpx.ConnectError("no route")
    submit(service, [pacer(prefect)], 12)
    assert service.most_in_a_minute() == 5
    assert sum("no route" in record.message for record in caplog.records) == 1


def test_prefect_gone_in_the_middle_costs_no_submission() -> None:
    prefect, service = PrefectLimits(5), Service()

    async def main() -> None:
        one = pacer(prefect)
        work = asyncio.gather(*(service.create(one, i) for i in range(17)))
        await asyncio.sleep(70)
        prefect.trouble = httpx.ConnectError("no route")
        await work

    run(main())
    assert len(service.arrivals) == 17
    assert service.most_in_a_minute() == 5


@pytest.mark.usefixtures("_quiet")
def test_a_hiccup_of_prefect_is_sat_out(caplog: pytest.LogCaptureFixture) -> None:
    prefect, service = PrefectLimits(5), Service()
    prefect.hiccups = [httpx.ReadTimeout("slow"), httpx.ReadTimeout("slow")]
    submit(service, [pacer(prefect) for _ in range(2)], 14)
    assert service.most_in_a_minute() == 5
    assert not prefect.hiccups
    assert not any("within this process only" in record.message for record in caplog.records)


@pytest.mark.parametrize("trouble", ["removed", "switched off"])
def test_limits_that_go_away(trouble: str) -> None:
    prefect, service = PrefectLimits(5), Service()

    async def main() -> None:
        one = pacer(prefect)
        work = asyncio.gather(*(service.create(one, i) for i in range(12)))
        await asyncio.sleep(20)
        if trouble == "removed":
            prefect.limits.clear()
        for limit in prefect.limits.values():
            limit.active = False
        await work

    run(main())
    assert service.most_in_a_minute() == 5


@pytest.mark.parametrize("shared", [True, False])
def test_a_cancelled_wait_leaves_nothing_behind(shared: bool) -> None:
    prefect = PrefectLimits(5 if shared else 0)

    async def main() -> list[float]:
        one, service = pacer(prefect), Service(longest=0.0)
        await asyncio.gather(*(service.create(one, i) for i in range(5)))
        waiting = [asyncio.ensure_future(service.create(one, i)) for i in range(5, 20)]
        await asyncio.sleep(10)
        for task in waiting[:-1]:
            task.cancel()
        await waiting[-1]
        return [moment for moment, _ in service.arrivals]

    moments = run(main())
    assert len(moments) == 6
    assert 60 <= moments[-1] < 70, "the last one waits for nobody who left"


def test_a_cancelled_first_read_of_the_limits_leaves_them_shared() -> None:
    prefect, service = PrefectLimits(5), Service()

    async def main() -> None:
        pacers = [pacer(prefect) for _ in range(3)]
        for one in pacers:
            find, one.find = one.find, lambda crn: asyncio.sleep(3600)
            first = asyncio.ensure_future(one.take(5, 60.0))
            await asyncio.sleep(0.1)
            first.cancel()
            one.find = find
        await asyncio.gather(*(service.create(pacers[i % 3], i) for i in range(12)))

    run(main())
    assert service.most_in_a_minute() == 5


def test_a_turn_that_was_not_used_is_free_again() -> None:
    async def main() -> float:
        one = pacer(None)
        for _ in range(5):
            (await one.take(5, 60.0)).drop(sent=False)
        (await one.take(5, 60.0)).drop(sent=True)
        return clock()

    assert run(main()) == 0


def connection(base_url: str) -> Connection:
    return Connection(api_key="unit-test-key", crn=CRN, base_url=base_url)


def test_this_machine_is_limited_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox, service = connection("http://127.0.0.1:8765/api/v1"), connection("")
    assert pace(sandbox) is None
    assert pace(service) == (5, 60.0)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "3")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "6")
    assert pace(sandbox) == pace(service) == (3, 6.0)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "0")
    assert pace(sandbox) is None
    assert pace(service) is None


def test_the_name_stands_for_the_account() -> None:
    same = "crn:v1:bluemix:public:quantum-computing:eu-de:a/0123abcd:33cc-44dd::"
    other = "crn:v1:bluemix:public:quantum-computing:us-east:a/99887766:11aa-22bb::"
    assert limit_name(CRN) == limit_name(same) != limit_name(other)
    assert "0123abcd" not in limit_name(CRN)
