"""Whatever Prefect starts again around a submission (tasks, subflows, one in the other), nothing is bought twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from prefect import Task, allow_failure, flow, task, unmapped
from prefect.client.orchestration import PrefectClient
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Paused, Running
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.utilities.annotations import quote

from prefect_qruntime import JobFailed, JobRef, QuantumRuntimeCredentials, asubmit_job, run_job, submit_job
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks.submit import SubmitTask
from tests.support.flow_runs import BACKEND, FLIP, STAY, posts
from tests.support.prefect_calls import asked

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


@pytest.mark.parametrize("nest", ["tt", "ft", "tf", "ff"])
def test_the_runs_beside_one_that_was_started_again_keep_their_jobs(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, nest: str
) -> None:
    """The inner run is retried first and the outer one later, so that the inner one is made anew."""
    seen: list[list[str]] = []
    broke: list[str] = []
    outer, inner = ({"f": flow, "t": task}[kind] for kind in nest)

    def breaks_once(what: str) -> None:
        if what not in broke:
            broke.append(what)
            raise RuntimeError(what)

    @inner(retries=1, retry_delay_seconds=0)  # type: ignore[operator]
    def retried() -> str:
        job = submit_job(credentials, [FLIP], backend=BACKEND).id
        breaks_once("inner")
        return job

    @task
    def beside() -> str:
        return submit_job(credentials, [FLIP], backend=BACKEND).id

    @outer(retries=1, retry_delay_seconds=0)  # type: ignore[operator]
    def both() -> None:
        seen.append([retried(), beside()])
        breaks_once("outer")

    flow(lambda: both(), name="parent")()
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == posts(sandbox) == 2


def test_the_retry_of_an_outer_run_renews_what_the_last_retry_of_an_inner_one_submitted(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000, times=2)
    tries: list[int] = []

    @task(retries=1, retry_delay_seconds=0)
    def step() -> dict[str, int]:
        tries.append(1)
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5).counts()

    assert flow(lambda: step(), name="parent", retries=1, retry_delay_seconds=0)() == {"1": 5}
    assert len(tries) == posts(sandbox) == 3


def test_circuits_that_come_in_another_order_the_second_time_find_their_jobs(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[list[str]] = []

    @task
    def make(circuit: str) -> list[str]:
        return [circuit]

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> None:
        # As `as_completed` yields them: whichever is ready first.
        circuits = [make.submit(circuit) for circuit in ((STAY, FLIP, FLIP) if tries else (FLIP, STAY, FLIP))]
        jobs = [submit_job.submit(credentials, circuit, backend=BACKEND) for circuit in circuits]
        tries.append(sorted(job.result().id for job in jobs))
        if len(tries) == 1:
            raise RuntimeError("something after it broke")

    parent()
    assert tries[0] == tries[1]
    assert posts(sandbox) == 3


def test_one_circuit_of_a_task_has_its_job_on_each_backend_when_the_calls_run_in_another_order(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[list[str]] = []

    @task
    def after(seconds: float) -> None:
        time.sleep(seconds)

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> None:
        circuit = one_circuit.submit()
        backends = ["sandbox_ideal", "sandbox_noisy", "sandbox_ideal"]
        jobs = [
            submit_job.submit(
                credentials, [circuit], backend=name, wait_for=[after.submit(float(bool(tries) is (name == BACKEND)))]
            )
            for name in backends
        ]
        found = [job.result() for job in jobs]
        assert [job.backend for job in found] == backends
        tries.append(sorted(job.id for job in found))
        if len(tries) == 1:
            raise RuntimeError("something after it broke")

    parent()
    assert tries[0] == tries[1]
    assert posts(sandbox) == 3


@task
def one_circuit() -> str:
    return FLIP


@task
def two_lists() -> list[list[str]]:
    return [[FLIP], [FLIP]]


@pytest.mark.parametrize(
    ("method", "pubs"),
    [
        ("submit", lambda: [FLIP]),
        ("submit", lambda: quote([FLIP])),
        ("submit", lambda: [one_circuit.submit()]),
        ("submit", lambda: [one_circuit(return_state=True)]),
        ("submit", lambda: [allow_failure(one_circuit.submit())]),
        ("submit", lambda: allow_failure(two_lists.submit())),
        ("submit", lambda: two_lists(return_state=True)),
        ("map", lambda: [[FLIP], [FLIP]]),
        ("map", lambda: allow_failure([[FLIP], [FLIP]])),
        ("map", lambda: [[one_circuit.submit()], [one_circuit(return_state=True)]]),
        ("map", two_lists.submit),
        ("map", lambda: two_lists(return_state=True)),
    ],
)
def test_equal_calls_for_other_processes_are_numbered_however_their_circuits_are_given(
    credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch, method: str, pubs: Callable[[], Any]
) -> None:
    numbers: list[Any] = []

    def record(self: Task[..., Any], *args: Any, call_index: Any, **kwargs: Any) -> None:
        numbers.extend(call_index if isinstance(call_index, list) else [call_index])

    @flow
    def parent() -> None:
        for given in [pubs() for _ in range(2 if method == "submit" else 1)]:
            with monkeypatch.context() as patch, ProcessPoolTaskRunner() as elsewhere:
                context: Any = FlowRunContext.get()
                patch.setattr(context, "task_runner", elsewhere)
                patch.setattr(Task, method, record)
                submit = getattr(SubmitTask, method)
                submit(submit_job, unmapped(credentials), given, backend=BACKEND)

    parent()
    assert len({number for number in numbers if isinstance(number, int)}) == len(numbers) == 2


def test_a_flow_run_that_was_paused_counts_on_with_its_subflows(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    def submit() -> str:
        return submit_job(credentials, [FLIP], backend=BACKEND).id

    async def pause_and_resume(client: PrefectClient) -> None:
        assert flow_run.id is not None
        for state in (Paused(timeout_seconds=60), Running()):
            await client.set_flow_run_state(UUID(flow_run.id), state, force=True)

    @flow
    def parent() -> list[str]:
        before = submit()
        asked(pause_and_resume)
        return [before, flow(submit, name="child")(), submit()]

    assert len(set(parent())) == posts(sandbox) == 3
