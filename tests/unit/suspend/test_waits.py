"""Of however many flow runs it is asked, none that was resumed or ended is missed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from prefect_qruntime import prefect_api
from prefect_qruntime.suspend.waits import no_longer_suspended


class Run:
    def __init__(self, number: int) -> None:
        self.id = UUID(int=number)


class Prefect:
    """Answers as the server does: at most 200 flow runs for a request."""

    async def read_flow_runs(self, *, flow_run_filter: Any, limit: int) -> list[Run]:
        assert limit <= 200
        assert flow_run_filter.state.type.not_any_ == ["PAUSED"]
        return [Run(one.int) for one in flow_run_filter.id.any_ if one.int % 3][:limit]


@pytest.mark.parametrize("number", [0, 1, 200, 201, 500])
async def test_all_that_are_no_longer_suspended_are_found(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    async def api() -> Any:
        return Prefect()

    monkeypatch.setattr(prefect_api, "api", api)
    found = await no_longer_suspended([UUID(int=one) for one in range(number)])
    assert sorted(one.int for one in found) == [one for one in range(number) if one % 3]
