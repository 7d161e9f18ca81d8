"""Whatever Prefect starts again around a submission (tasks, subflows, one in the other), nothing is bought twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow, task, unmapped

from prefect_qruntime import JobFailed, JobRef, QuantumRuntimeCredentials, asubmit_job, run_job, submit_job
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, STAY, posts

pytestmark = pytest.mark.server
NESTS = ["f", "t", "ff", "ft", "tt", "tf", "ftt"]
"""Bodies inside each other, the outermost first: flows and tasks of the user's own."""
Body = Callable[[], list[str]]


def called(credentials: QuantumRuntimeCredentials) -> list[str]:
    return [submit_job(credentials, [one], backend=BACKEND).id for one in (FLIP, FLIP, STAY)]


def submitted(credentials: QuantumRuntimeCredentials) -> list[str]:
    jobs = [submit_job.submit(credentials, [one], backend=BACKEND) for one in (FLIP, FLIP, STAY)]
    return [job.result().id for job in jobs]


def mapped(credentials: QuantumRuntimeCredentials) -> list[str]:
    jobs = submit_job.map(unmapped(credentials), [[FLIP], [FLIP], [STAY]], backend=BACKEND)
    return [job.id for job in jobs.result()]


def layer(inner: Body, once: list[int] | None) -> Body:
    """A body that runs another; with `once` it breaks after that the first time."""

    def run() -> list[str]:
        got = inner()
        if once == []:
            once.append(1)
            raise RuntimeError("something after it broke")
        return got

    return run


def wrapped(body: Body, nest: str, failing: int) -> Body:
    """The body inside the nest; the failing layer, counted from outside, breaks after it once, and is retried."""
    for place in reversed(range(len(nest))):
        make: Any = flow if nest[place] == "f" else task
        more = {"retries": 1, "retry_delay_seconds": 0} if place == failing else {}
        body = make(layer(body, [] if place == failing else None), name=f"layer {place}", **more)
    return body


@pytest.mark.parametrize("way", [called, submitted, mapped])
@pytest.mark.parametrize(("nest", "failing"), [(nest, place) for nest in NESTS for place in range(len(nest))])
def test_a_body_that_is_started_again_finds_its_jobs(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, nest: str, failing: int, way: Any
) -> None:
    seen: list[list[str]] = []

    def body() -> list[str]:
        seen.append(way(credentials))
        return seen[-1]

    whole = wrapped(body, nest, failing)

    @flow
    def parent() -> list[str]:
        before = submit_job(credentials, [FLIP], backend=BACKEND).id
        return [before, *whole(), submit_job(credentials, [FLIP], backend=BACKEND).id]

    jobs = parent()
    assert len(seen) == 2, "or nothing was repeated"
    assert seen[0] == seen[1]
    assert len(set(jobs)) == posts(sandbox) == 5


@pytest.mark.parametrize("nest", ["t", "tt"])
def test_a_task_outside_flows_finds_its_jobs(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, nest: str
) -> None:
    for failing in range(len(nest)):
        sandbox.reset()
        assert len(set(wrapped(lambda: called(credentials), nest, failing)())) == posts(sandbox) == 3


async def test_an_async_task_that_is_started_again_finds_its_jobs(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[JobRef] = []

    @task(retries=1, retry_delay_seconds=0)
    async def step() -> JobRef:
        tries.append(await asubmit_job(credentials, [FLIP], backend=BACKEND))
        if len(tries) == 1:
            raise RuntimeError("something after it broke")
        return tries[-1]

    @flow
    async def parent() -> JobRef:
        return await step()

    assert (await parent()).attached
    assert posts(sandbox) == 1


@pytest.mark.parametrize("kind", ["t", "f"])
def test_what_failed_is_submitted_anew_by_the_retry_around_it(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, kind: str
) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)
    make: Any = flow if kind == "f" else task

    @make(retries=1, retry_delay_seconds=0)
    def step() -> dict[str, int]:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5).counts()

    @flow
    def parent() -> dict[str, int]:
        return step()

    assert parent() == {"1": 5}
    assert posts(sandbox) == 2

    @flow
    def unlucky() -> None:
        run_job(credentials, [STAY], backend=BACKEND, shots=5)

    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)
    with pytest.raises(JobFailed):
        unlucky()
    assert posts(sandbox) == 3
