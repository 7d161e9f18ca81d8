"""The watcher's parameters."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import httpx
import pytest

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.suspend import watcher
from prefect_qruntime.suspend.watcher import run_watch

NO_SECONDS = [0, -1.0, True, "10", math.nan, -math.inf, 10**400]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("interval", math.inf), *((field, wrong) for field in ("interval", "duration") for wrong in NO_SECONDS)],
    ids=lambda value: str(value)[:9],
)
def test_a_time_that_is_no_number_of_seconds_is_refused(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="positive number of seconds") as caught:
        run_watch([], **{field: wrong})
    assert caught.value.field == field


REQUEST = httpx.Request("GET", "http://127.0.0.1:4200/api/flow_runs/filter")


@pytest.mark.parametrize(
    "error",
    [
        *(httpx.HTTPStatusError(f"no\n{n}", request=REQUEST, response=httpx.Response(n)) for n in (401, 403, 500)),
        httpx.ConnectError("All connection attempts failed", request=REQUEST),
        TimeoutError(),
    ],
    ids=repr,
)
def test_a_prefect_that_refuses_or_is_silent_is_one_line_each_time(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(watcher._Watcher, "_look_at_all", fails)
    monkeypatch.setattr(watcher, "load_each", fails)
    caplog.set_level(logging.INFO)

    async def look() -> list[str]:
        watching = watcher._Watcher(None, once=False)
        for _ in range(2):
            await watching.look()
        await watching._look_after_instances()
        return watching.report().problems

    (problem,) = asyncio.run(look())
    told = httpx.codes(error.response.status_code).name if isinstance(error, httpx.HTTPStatusError) else ""
    assert problem.count("\n") == 0
    assert told.replace("_", " ").lower() in problem.lower()
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 3
    assert all(record.exc_info is None and "\n" not in record.getMessage() for record in lines)


def test_a_slow_check_is_a_problem_only_if_it_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_LAST", 0.0)

    async def ended() -> list[str]:
        watching = watcher._Watcher(None, once=False)
        watching._checking |= {"crn:known": "known", "crn:new": "new"}
        watching._checked.add("crn:known")
        await watching.last_answers()
        return watching.report().problems

    (problem,) = asyncio.run(ended())
    assert "instance of new " in problem
