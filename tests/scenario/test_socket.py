"""The websocket over real sockets: it only makes the end known sooner, and never decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.models import JobStatus
from tests.support.scenario import World


def followed(world: World, *, stream: str = "always", run_time: float = 0.35, **options: Any) -> tuple[Any, int]:
    """The job at its end, and how many looks it took; polling alone would need some seconds' worth."""
    world.control.set_times(queue_time=0.0, run_time=run_time)
    ref = world.submit()
    job = world.run(
        world.client.wait(ref.id, deadlines=Deadlines(total=20.0), stream=stream, **options)  # type: ignore[arg-type]
    )
    return job, len(world.asked("GET", f"/jobs/{ref.id}"))


def test_the_end_is_known_at_once(world: World) -> None:
    job, looks = followed(world)
    ended = world.control.job(job.id)["ended"]
    assert job.status is JobStatus.COMPLETED
    assert world.control.now() - ended < 0.3
    assert looks <= 4
    (connect,) = world.asked("WS")
    assert connect["path"] == f"/stream/jobs/{job.id}"


def test_auto_asks_only_where_a_socket_is_known_to_be(world: World) -> None:
    followed(world, stream="auto", run_time=0.4)
    assert len(world.asked("WS")) == (1 if world.dialect == "legacy" else 0)


def test_a_host_without_sockets_is_asked_once(world: World) -> None:
    world.control.set_option("websocket", False)
    assert followed(world, run_time=0.4)[0].status is JobStatus.COMPLETED
    ref = world.submit("qr-key:next")
    world.wait(ref, stream="always")
    assert [entry["status"] for entry in world.asked("WS")] == [404]


@pytest.mark.parametrize("status", [401, 403, 410])
def test_refused_for_good(world: World, status: int) -> None:
    world.control.add_fault("WS", "/stream/jobs/*", status=status, times=None)
    world.control.set_times(run_time=0.4)  # not over before the socket is tried
    for key in ("qr-key:a", "qr-key:b"):
        ref = world.submit(key)
        assert world.wait(ref, stream="always").status is JobStatus.COMPLETED
    assert len(world.asked("WS")) == (2 if status == 401 else 1)  # one try with a fresh token


def test_a_refusal_is_forgotten_after_some_minutes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.control.add_fault("WS", "/stream/jobs/*", status=404, times=1)
    world.control.set_times(run_time=0.4)
    assert world.wait(world.submit("qr-key:a"), stream="always").status is JobStatus.COMPLETED
    monkeypatch.setattr("prefect_qruntime.client.client._REFUSED_FOR", 0.0)
    assert world.wait(world.submit("qr-key:b"), stream="always").status is JobStatus.COMPLETED
    assert [entry["status"] for entry in world.asked("WS")] == [404, 101]


def test_closed_1000_too_early_ends_nothing(world: World) -> None:
    world.control.set_option("ws_lead", 0.25)
    job, _ = followed(world)
    assert job.status is JobStatus.COMPLETED
    assert world.control.job(job.id)["status"] == "Completed"


@pytest.mark.parametrize("code", [1000, 1011, 4002])
def test_closes_of_all_kinds(world: World, code: int) -> None:
    world.control.add_fault("WS", "/stream/jobs/*", ws_close=code)
    final = code in (1000, 4002)
    job, _ = followed(world, run_time=0.2 if final else 0.7)
    assert job.status is JobStatus.COMPLETED
    assert len(world.asked("WS")) == (1 if final else 2)


def test_a_token_that_expires_on_its_way_is_replaced(world: World) -> None:
    world.control.hold()
    ref = world.submit()
    world.control.add_fault("WS", "/stream/jobs/*", delay=2.0)

    async def reached(what: Callable[[], bool]) -> None:
        while not what():  # noqa: ASYNC110 - the sandbox is asked, and has no event for it
            await asyncio.sleep(0.01)

    async def story() -> Any:
        waiting = asyncio.create_task(world.client.wait(ref.id, deadlines=Deadlines(total=60.0), stream="always"))
        await reached(lambda: not world.control.faults())  # the handshake has arrived and is held up
        world.control.revoke_tokens()
        await reached(lambda: [entry["status"] for entry in world.asked("WS")] == [401, 101])
        world.control.release()
        return await waiting

    assert world.run(story()).status is JobStatus.COMPLETED


def test_a_revoked_token_at_the_handshake_is_replaced(world: World) -> None:
    world.control.add_fault("WS", "/stream/jobs/*", status=401)
    job, looks = followed(world)
    assert job.status is JobStatus.COMPLETED
    assert world.control.iam_calls() == 2
    assert looks <= 4


def test_a_silent_socket_holds_nobody_up(world: World) -> None:
    world.control.add_fault("WS", "/stream/jobs/*", ws_silence=True, times=None)
    world.control.set_times(queue_time=0.0, run_time=0.3)
    began = time.monotonic()
    job = world.wait(world.submit(), stream="always")
    assert job.status is JobStatus.COMPLETED
    assert len(world.control.journal("WS")) == 1
    assert time.monotonic() - began < 30  # without an end the wait would last a minute


def test_a_job_that_is_over_already(world: World) -> None:
    ref = world.submit()
    world.wait(ref)
    world.control.clear_journal()
    assert world.run(world.client.wait(ref.id, stream="always")).status is JobStatus.COMPLETED
    assert len(world.asked("GET")) == 1


def test_failed_jobs_are_noticed_too(world: World) -> None:
    world.control.script_job(status="Failed", reason_code=1006)
    job, looks = followed(world)
    assert job.status is JobStatus.FAILED
    assert looks <= 4
