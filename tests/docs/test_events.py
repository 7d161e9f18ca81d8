"""The page on events says what their payloads hold."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_qruntime.admission import budget
from prefect_qruntime.admission.budget_core import Remaining, exhausted
from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.suspend import alarms
from prefect_qruntime.suspend.alarms import Alarm, InstanceView, InstanceWatch
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "how-to" / "automations.md").read_text()
NAME = re.compile(r"""[`"](qruntime\.[a-z]+\.[a-z]+)[`"]""")

ALARMS = NAME.findall(Path(alarms.__file__).read_text())


def table(first: str) -> dict[str, str]:
    """A table of the page, by the events of its first column."""
    rows = PAGE.split(f"| event | {first} |")[1].split("\n\n")[0].splitlines()
    return {
        name: row.split("|")[2] for row in rows if row.startswith("| `") for name in NAME.findall(row.split("|")[1])
    }


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The payloads of the events that are emitted meanwhile."""
    found: dict[str, dict[str, Any]] = {}

    async def nothing(*_: Any, **__: Any) -> None: ...

    for module in (notifications, budget, alarms):
        monkeypatch.setattr(module, "emit", lambda event, _, payload, **__: found.update({event: payload}))
    for module in (notifications, budget):
        monkeypatch.setattr(module, "log_to_run", lambda *_, **__: None)
    monkeypatch.setattr(budget, "in_run", lambda: True)
    monkeypatch.setattr(notifications, "note_submitted", nothing)
    monkeypatch.setattr(alarms, "upsert", nothing)
    return found


class Alarmed(InstanceWatch):
    """A watch that meets each alarm."""

    async def _view(self, *_: Any) -> InstanceView:
        return InstanceView("i1", "ibm", datetime.now(UTC), None)

    async def _untold(self, _: Any) -> list[Alarm]:
        return [Alarm(name, ("instance", "i1"), "", "A sentence.", {}) for name in ALARMS]


def test_each_payload_holds_what_the_page_says(emitted: dict[str, dict[str, Any]]) -> None:
    for attached in (False, True):
        ref = JobRef(id="d1", attached=attached)
        asyncio.run(notifications.job_submitted(ref, block=None, instance="i1", flow_run_id=None))
    for status in set(JobStatus) - {JobStatus.QUEUED}:
        notifications.job_event(Job(id="d1", status=status))
    for word in ("opened", "closed", "swept"):
        notifications.session_event(word, SessionRef(id="s1"))
    room = Remaining("nightly", "max_seconds_per_run", 10.0, 5.0)
    budget.report_level(room, 50, about="run", flow_run_id=None)
    budget.report_exhausted(exhausted(room, 60), flow_run_id=None)
    asyncio.run(Alarmed("ibm").look())
    told = {name: set(re.findall(r"`([a-z_]+)`", cell)) for name, cell in table("payload").items()}
    assert told.keys() == emitted.keys() == table("when").keys()
    held = {name: payload.keys() for name, payload in emitted.items()}
    assert not {name: told[name] - held[name] for name in told if told[name] - held[name]}
    # What only some of them hold, such as how a session was closed, need not be on the page.
    assert all(told[name] for name in told)
