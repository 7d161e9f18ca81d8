"""Sessions that finished flow runs left open where no saved block leads to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import Completed

from prefect_qruntime.observability.artifacts import Record
from prefect_qruntime.operations import instance_sweep, sweep as module
from prefect_qruntime.operations.instance_sweep import Owners

RUN = "0d1f2d3c-0000-4000-8000-000000000001"


@pytest.mark.parametrize("reads", [0, 1, 3])
@pytest.mark.parametrize("seconds", [2, 90])
def test_a_flow_run_that_has_just_ended_may_still_write_that_it_closed_its_session(
    monkeypatch: pytest.MonkeyPatch, seconds: int, reads: int
) -> None:
    now, asked = datetime.now(UTC), list[str]()

    def record(state: str) -> Record:
        return Record(uuid4(), "qruntime-session-a", {"flow_run": RUN, "state": state, "block": "b"}, UUID(RUN), now)

    async def find_records(kind: str) -> list[Record]:
        asked.append(kind)
        return [record("closed" if len(asked) > reads else "opening")]

    async def api() -> Any:
        async def read_flow_run(_: UUID) -> Any:
            return SimpleNamespace(state=Completed(timestamp=now - timedelta(seconds=seconds)))

        return SimpleNamespace(read_flow_run=read_flow_run)

    async def gone(_: Any) -> str | None:
        return None

    monkeypatch.setattr(module, "find_records", find_records)
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0)
    monkeypatch.setattr(instance_sweep, "api", api)
    told = asyncio.run(module._out_of_reach([record("opening")], [], [], Owners({RUN}, gone), ()))
    assert len(told) == (seconds > 60 and reads > 0)
    assert len(asked) == (reads + 1 if seconds < 60 else 1)
    reads = 1000
    asyncio.run(module._out_of_reach([record("opening")], [], [], Owners({RUN}, gone), ()))
    assert len(asked) < 100, "it stops looking"
