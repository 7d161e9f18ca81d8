"""The network and the service at their worst: what is bought, what is repeated, what is raised."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ResultNotReady,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import JobRef, JobStatus
from tests.support.scenario import World

LOST: list[dict[str, Any]] = [
    {"drop": "after"},
    {"drop": "middle"},
    {"status": 503, "after_handler": True},
    {"status": 500, "after_handler": True, "body": "<html>gateway</html>"},
    {"status": 504, "after_handler": True},
    {"status": 200, "after_handler": True, "body": "<html>welcome</html>"},
]


@pytest.mark.parametrize("fault", LOST, ids=str)
def test_a_lost_answer_buys_no_second_job(world: World, fault: dict[str, Any]) -> None:
    world.control.add_fault("POST", "/jobs", **fault)
    ref = world.submit()
    assert ref.attached
    assert [job["id"] for job in world.control.jobs()] == [ref.id]
    assert world.posts == 1
    assert world.wait(ref).status is JobStatus.COMPLETED


def test_a_lost_answer_and_a_list_that_lags(world: World) -> None:
    world.control.set_option("list_lag", 0.4)
    world.control.add_fault("POST", "/jobs", drop="after")
    ref = world.submit(grace=3.0)
    assert (ref.attached, world.posts, len(world.control.jobs())) == (True, 1, 1)
    assert len(world.asked("GET", "/jobs")) > 1


def test_a_lost_answer_by_timeout(world: World) -> None:
    world.client = world.another(request_timeout=0.5)
    world.control.add_fault("POST", "/jobs", after_handler=True, status=200, delay=3.0)
    ref = world.submit(grace=2.0)
    assert (ref.attached, world.posts, len(world.control.jobs())) == (True, 1, 1)


@pytest.mark.parametrize("fault", [{"drop": "before"}, {"status": 503}], ids=str)
def test_a_create_that_was_not_accepted_is_bought_after_the_grace(world: World, fault: dict[str, Any]) -> None:
    world.control.add_fault("POST", "/jobs", **fault)
    ref = world.submit(grace=0.3)
    assert (ref.attached, world.posts, len(world.control.jobs())) == (False, 2, 1)


def test_a_lost_answer_and_no_list_is_uncertain(world: World) -> None:
    world.client = world.another(patience=RetryDeadlines(read=0.2, first_pause=0.02))
    world.control.add_fault("POST", "/jobs", drop="after")
    world.control.add_fault("GET", "/jobs", status=503, times=None)
    with pytest.raises(SubmissionUncertain) as caught:
        world.submit()
    assert caught.value.submission_key == "qr-key:test0"
    assert (world.posts, len(world.control.jobs())) == (1, 1)


def test_a_rerun_attaches_renews_and_keeps_its_keys_apart(world: World) -> None:
    first = world.submit()
    again = world.submit(search_until=0.0)
    assert (again.id, again.attached, again.submission_key) == (first.id, True, "qr-key:test0")
    other = world.submit("qr-key:other", search_until=0.0)
    assert other.id != first.id
    world.control.script_job(status="Failed", reason_code=1006)
    dead = world.submit("qr-key:dead")
    world.wait(dead)
    renewed = world.submit("qr-key:dead", search_until=0.0, renew_failed=lambda job: True)
    assert (renewed.attached, renewed.submission_key) == (False, "qr-key:dead1")
    assert len(world.control.jobs()) == world.posts == 4


def test_nobody_listens(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and deaf: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for fields in ({"base_url": address}, {"iam_url": address}):
            client = world.another(patience=RetryDeadlines(submit=0.3, token=0.2, first_pause=0.02), **fields)
            with pytest.raises(ServiceUnavailable) as caught:
                world.run(client.submit(world.intent()))
            assert caught.value.advice.kind == "same-request"
            assert caught.value.sent is False
    assert world.posts == 0


def test_a_service_that_comes_up_late_gets_its_one_create(world: World) -> None:
    world.control.add_fault("POST", "/identity/token", drop="before", times=3)
    ref = world.submit()
    assert (ref.attached, world.posts, len(world.control.jobs())) == (False, 1, 1)


@pytest.mark.parametrize("retry_after", ["0.3", None])
def test_too_many_creates(world: World, retry_after: str | None) -> None:
    world.control.add_fault("POST", "/jobs", status=429, retry_after=retry_after)
    if retry_after is None:  # then at least twelve seconds, which this patience does not have
        with pytest.raises(RateLimited) as caught:
            world.submit()
        assert str(caught.value.advice) == "after 12 s"
        assert (world.posts, world.control.jobs()) == (1, [])
    else:
        ref = world.submit()
        assert (ref.attached, world.posts, len(world.control.jobs())) == (False, 2, 1)
        first, second = world.asked("POST", "/jobs")
        assert second["t"] - first["t"] >= 0.3


def test_five_creates_a_minute(world: World) -> None:
    world.control.set_option("create_limit", 5)
    world.control.set_option("clock_scale", 60.0)  # so that a minute passes in a second
    refs = [world.submit(f"qr-key:{n}-") for n in range(6)]
    assert len({ref.id for ref in refs}) == len(world.control.jobs()) == 6
    statuses = [entry["status"] for entry in world.asked("POST", "/jobs")]
    assert statuses[:5] == [200] * 5
    assert statuses[-1] == 200
    assert set(statuses[5:-1]) == {429}
    assert len(statuses) <= 9


@pytest.mark.parametrize("index", range(4))
def test_an_outage_at_any_look_changes_nothing(world: World, index: int) -> None:
    world.control.set_times(queue_time=0.1, run_time=0.1)
    world.control.add_fault("GET", "/jobs/*", status=503, skip=index, times=3)
    ref = world.submit()
    assert world.wait(ref).status is JobStatus.COMPLETED
    assert world.run(world.client.result(ref)).counts() == {"00": 10}
    assert (world.posts, len(world.control.jobs())) == (1, 1)


@pytest.mark.parametrize(
    "fault",
    [{"drop": "before"}, {"drop": "middle"}, {"status": 429, "retry_after": "0.1"}],
    ids=str,
)
def test_trouble_at_every_kind_of_read(world: World, fault: dict[str, Any]) -> None:
    ref = world.submit()
    for path in ("/jobs/*", "/jobs/*/results", "/jobs", "/backends", "/identity/token"):
        world.control.add_fault("POST" if "token" in path else "GET", path, times=2, **fault)
    world.client = world.another(application="another")  # without a token
    assert world.wait(ref).status is JobStatus.COMPLETED
    assert world.run(world.client.result(ref)).counts() == {"00": 10}
    assert [job.id for job in world.run(world.client.jobs())] == [ref.id]
    assert len(world.run(world.client.backends())) == 4
    assert world.control.faults() == []


def test_an_outage_of_iam_during_the_wait_is_sat_out(world: World) -> None:
    world.client = world.another(patience=RetryDeadlines(token=0.1, wait=0.1, first_pause=0.02))
    world.control.hold()
    ref = world.submit()
    world.control.revoke_tokens()
    world.control.add_fault("POST", "/identity/token", status=503, times=20)
    world.control.release()
    assert world.wait(ref).status is JobStatus.COMPLETED
    assert world.control.faults() == []


def test_revoked_tokens_are_replaced_once(world: World) -> None:
    ref = world.submit()
    world.control.revoke_tokens()
    assert world.wait(ref).status is JobStatus.COMPLETED
    assert world.control.iam_calls() == 2
    world.control.revoke_tokens()
    assert world.submit("qr-key:next").attached is False
    assert len(world.control.jobs()) == 2


def test_a_service_that_refuses_every_token(world: World) -> None:
    world.control.add_fault("POST", "/jobs", status=401, times=None)
    with pytest.raises(AuthenticationError):
        world.submit()
    assert (world.posts, world.control.iam_calls()) == (2, 2)


def test_a_job_that_shows_late(world: World) -> None:
    world.control.set_option("get_lag", 0.3)
    ref = world.submit()
    assert world.wait(ref).status is JobStatus.COMPLETED
    assert [entry for entry in world.asked("GET", f"/jobs/{ref.id}") if entry["status"] == 404]
    with pytest.raises(NotFound):
        world.wait(JobRef(id="d0000000000000000000"), deadlines=Deadlines(total=5.0, unseen=0.2))


def test_results_that_show_late(world: World) -> None:
    world.control.set_option("results_lag", 60.0)
    ref = world.submit()
    world.wait(ref)
    with pytest.raises(ResultNotReady):
        world.run(world.client.result(ref, grace=0.05))
    world.control.set_clock_scale(100.0)
    assert world.run(world.client.result(ref, grace=5.0)).counts() == {"00": 10}
    statuses = [entry["status"] for entry in world.asked("GET", "/jobs/*/results")]
    assert statuses[-1] == 200
    assert set(statuses[:-1]) == {204}


def test_the_result_of_a_job_under_way(world: World) -> None:
    world.control.hold()
    ref = world.submit()
    with pytest.raises(ResultNotReady):
        world.run(world.client.result(ref))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidInput),
        (403, PermissionDenied),
        (404, NotFound),
        (405, QuantumRuntimeError),
    ],
)
def test_refusals_are_final(world: World, status: int, error: type[QuantumRuntimeError]) -> None:
    world.control.add_fault("POST", "/jobs", status=status, times=None, headers={"Location": "http://127.0.0.1:9/jobs"})
    with pytest.raises(error) as caught:
        world.submit()
    assert type(caught.value) is error
    assert (world.posts, len(world.asked("GET"))) == (1, 0)


def test_cancelled_in_the_middle_of_the_post(world: World) -> None:
    world.control.add_fault("POST", "/jobs", status=None, delay=0.4)
    bought: list[str] = []
    intent: Intent = world.intent()

    async def main() -> None:
        work = asyncio.create_task(world.client.submit(intent, on_bought=lambda ref: bought.append(ref.id)))
        while not world.posts:  # noqa: ASYNC110 - the journal is all there is
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert [job["id"] for job in world.control.jobs()] == bought
    assert len(bought) == 1


def test_cancelled_during_the_pause_of_a_429_nothing_is_bought(world: World) -> None:
    world.client = world.another(patience=RetryDeadlines())
    world.control.add_fault("POST", "/jobs", status=429, retry_after="0.4")

    async def main() -> None:
        work = asyncio.create_task(world.client.submit(world.intent()))
        while not [entry for entry in world.asked("POST", "/jobs") if entry["status"]]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0.5)  # longer than the service asked to wait

    asyncio.run(main())
    assert (world.posts, world.control.jobs()) == (1, [])
