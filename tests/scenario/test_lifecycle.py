"""Whole lives of jobs over real sockets, in both dialects."""

from __future__ import annotations

import asyncio

import pytest

from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.errors import (
    AuthenticationError,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    JobTimeout,
    NotFound,
    QuantumRuntimeError,
    UsageLimitReached,
)
from prefect_qruntime.models import Job, JobStatus
from tests.support.scenario import BACKEND, World


def test_a_whole_life_takes_three_requests_besides_the_looks(world: World) -> None:
    ref = world.submit()
    job = world.wait(ref)
    result = world.run(world.client.result(ref))
    assert (job.status, result.counts()) == (JobStatus.COMPLETED, {"00": 10})
    looks = world.asked("GET", f"/jobs/{ref.id}")
    assert len(world.asked()) - len(looks) == 3
    assert world.control.iam_calls() == 1
    assert world.control.tcp_connections() <= 2
    assert all("exclude_params=true" in look["path"] for look in looks)
    (kept,) = world.control.jobs()
    assert (kept["backend"], kept["tags"]) == (BACKEND, ["qr-key:test0", "qr-flow:test"])


def test_everything_about_a_job(world: World) -> None:
    ref = world.submit()
    world.wait(ref)
    client, run = world.client, world.run
    assert run(client.jobs_tagged("qr-key:test0"))[0].id == ref.id
    assert run(client.jobs(pending=True)) == []
    assert run(client.job_input(ref.id))
    assert isinstance(run(client.metrics(ref.id)), dict)
    assert isinstance(run(client.logs(ref.id)), str)
    assert run(client.usage()).consumed_seconds > 0
    run(client.replace_tags(ref.id, ["mine"]))
    assert run(client.job(ref.id)).tags == ("mine",)
    run(client.delete_job(ref.id))
    with pytest.raises(NotFound):
        run(client.job(ref.id))
    assert len(run(client.backends())) == 4


@pytest.mark.parametrize(
    ("script", "error", "retryable"),
    [
        ({"status": "Failed", "reason": "boom", "reason_code": 1006}, JobFailed, True),
        ({"status": "Failed", "reason": "not ISA", "reason_code": 7001}, JobFailed, False),
        ({"status": "Failed", "reason": ""}, JobFailed, False),
        ({"status": "Cancelled", "reason": "by somebody"}, JobCancelled, None),
        ({"status": "Ran too long"}, JobRanTooLong, False),
    ],
    ids=str,
)
def test_bad_ends(world: World, script: dict[str, object], error: type[QuantumRuntimeError], retryable: object) -> None:
    world.control.script_job(**script)
    ref = world.submit()
    job = world.wait(ref)
    found = job_error(job)
    assert type(found) is error
    assert found.job_id == ref.id
    assert found.code == script.get("reason_code", found.code)
    if retryable is not None:
        assert found.retryable is retryable
    with pytest.raises(error) as caught:
        world.run(world.client.result(ref))
    assert type(caught.value) is error


def test_the_text_of_a_failed_job(world: World) -> None:
    world.control.script_job(status="Failed", reason_code=1500, results_text="Traceback\nValueError: it was you")
    ref = world.submit()
    world.wait(ref)
    with pytest.raises(JobFailed) as caught:
        world.run(world.client.result(ref))
    assert caught.value.results_text == "Traceback\nValueError: it was you"


def test_cost_runs_out(world: World) -> None:
    world.control.set_option("clock_scale", 5.0)
    world.control.set_times(run_time=2.0)
    ref = world.submit(max_execution_time=1)
    assert isinstance(job_error(world.wait(ref)), JobRanTooLong)


def test_an_unknown_state_ends_at_the_deadline(world: World) -> None:
    world.control.script_job(status="Paused-By-Magic")
    ref = world.submit()
    with pytest.raises(JobTimeout) as caught:
        world.wait(ref, deadlines=Deadlines(total=0.2))
    assert caught.value.last_status == "Paused-By-Magic"


@pytest.mark.parametrize("limit", ["timeout", "queue_timeout"])
@pytest.mark.parametrize("on_timeout", ["leave", "cancel"])
def test_deadlines(world: World, limit: str, on_timeout: str) -> None:
    world.control.hold()
    ref = world.submit()
    deadlines = Deadlines(total=0.15) if limit == "timeout" else Deadlines(queue=0.15, total=20.0)
    with pytest.raises(JobTimeout) as caught:
        world.wait(ref, deadlines=deadlines, on_timeout=on_timeout)
    assert (caught.value.limit, caught.value.cancelled) == (limit, on_timeout == "cancel")
    world.control.release()
    if on_timeout == "leave":
        assert world.wait(ref).status is JobStatus.COMPLETED
    else:
        assert world.control.job(ref.id)["status"] == "Cancelled"


def test_cancel_waits_for_its_effect(world: World) -> None:
    world.control.set_option("cancel_lag", 0.2)
    world.control.set_times(run_time=60.0, queue_time=0.0)
    ref = world.submit()
    seen: list[Job] = []

    async def on_change(job: Job, waited: float) -> None:
        seen.append(job)

    with pytest.raises(JobTimeout):
        world.wait(ref, deadlines=Deadlines(total=0.3), on_change=on_change)
    assert seen[-1].status is JobStatus.RUNNING
    assert world.run(world.client.cancel(ref.id)).status is JobStatus.CANCELLED
    assert world.run(world.client.cancel(ref.id)).status is JobStatus.CANCELLED  # 409, and no error


def test_a_private_result_is_read_once(world: World) -> None:
    ref = world.submit(private=True)
    assert world.wait(ref).private
    assert world.run(world.client.result(ref)).counts() == {"00": 10}
    with pytest.raises(NotFound, match="read before"):
        world.run(world.client.result(ref))


def test_two_instances_cannot_see_each_other(world: World) -> None:
    ref = world.submit()
    world.wait(ref)
    stranger, colleague = world.another(2), world.another(1)
    assert stranger.connection.crn != world.client.connection.crn == colleague.connection.crn
    assert world.run(stranger.jobs()) == []
    for call in (stranger.job, stranger.cancel, stranger.result):
        with pytest.raises(NotFound):
            world.run(call(ref.id))
    assert world.run(stranger.usage()).consumed_seconds == 0
    assert world.control.job(ref.id)["status"] == "Completed"


def test_a_wrong_key(world: World) -> None:
    wrong = world.another(api_key="a-key-that-nobody-knows-1")
    with pytest.raises(AuthenticationError, match="API key not found"):
        world.run(wrong.jobs())
    assert world.control.iam_calls() == 1
    assert len(world.asked()) == 1


def test_the_limit_of_the_instance(world: World) -> None:
    world.control.set_usage(consumed=10.0, limit=10.0)
    with pytest.raises(UsageLimitReached):
        world.submit()
    assert (world.posts, world.control.jobs()) == (1, [])


def test_tokens_that_live_two_seconds(world: World) -> None:
    world.control.set_option("token_lifetime", 2.0)
    world.control.set_times(queue_time=0.0, run_time=4.0)
    refs = [world.submit(f"qr-key:{n}-") for n in range(50)]
    began = world.control.now()

    async def all_at_once() -> list[Job]:
        return await asyncio.gather(
            *(world.client.wait(ref.id, deadlines=Deadlines(total=20.0), stream="never") for ref in refs)
        )

    jobs = world.run(all_at_once())
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    looks = world.asked("GET", "/jobs") + world.asked("GET", "/jobs/*")
    assert max(look["t"] for look in looks) > began + 2.0, "no token grew old while it waited"
    seconds = world.control.now() - began + 2.0
    assert world.control.iam_calls() <= seconds / 2 + 2
