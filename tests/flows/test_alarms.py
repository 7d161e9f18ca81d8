"""An alarm that stands is given once: a watcher that starts later finds its event in Prefect."""

from __future__ import annotations

from uuid import uuid4

import pytest

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability import telemetry
from prefect_qruntime.observability.telemetry import emit
from prefect_qruntime.suspend.alarms import Alarm, InstanceWatch
from tests.support.flow_runs import events, until

pytestmark = pytest.mark.server


def test_a_watcher_that_starts_later_finds_the_events_of_the_alarms() -> None:
    raised = [Alarm("qruntime.job.unowned", ("job", f"d{uuid4().hex[:12]}"), "", "text") for _ in range(60)]

    def untold() -> list[Alarm]:
        return network_loop().run(InstanceWatch("ibm")._untold(raised))

    assert untold() == raised
    for one in raised[1:]:
        emit(one.event, {"prefect.resource.id": f"qruntime.job.{one.about[1]}"}, {}, event_id=one.id)
    assert events(f"qruntime.job.{raised[-1].about[1]}")
    assert until(lambda: len(untold()) == 1)
    assert untold() == raised[:1]


def test_an_alarm_whose_event_was_lost_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = Alarm("qruntime.job.unowned", ("job", f"d{uuid4().hex[:12]}"), "", "text")
    resource = {"prefect.resource.id": f"qruntime.job.{alarm.about[1]}"}
    watch = InstanceWatch("ibm")
    with monkeypatch.context() as patch:
        patch.setattr(telemetry, "emit_event", lambda *_, **__: None)
        emit(alarm.event, resource, {}, event_id=alarm.id)
    for _ in range(2):
        assert network_loop().run(watch._untold([alarm])) == [alarm]
        emit(alarm.event, resource, {}, event_id=alarm.id)
    assert [event["id"] for event in events(resource["prefect.resource.id"])] == [str(alarm.id)]
