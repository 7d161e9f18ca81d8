"""Cancelling many waits at once, cancelling that fails, and what the run page tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st
from prefect import flow, runtime
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

import prefect_qruntime as qr
from prefect_qruntime import cancellation, hooks
from prefect_qruntime.admission import guard
from prefect_qruntime.cancellation import CancellationWork, belongs, cancel_jobs_of
from prefect_qruntime.client import service
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import PermissionDenied
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.watcher import run_watch
from tests.flows.test_suspend import block as block, deployed, detached, waits
from tests.support.command_line import exit_code
from tests.support.flow_runs import BACKEND, FLIP, STAY, events, ran, records, requests, start, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


def bought(credentials: Any, number: int) -> tuple[str, list[str]]:
    """A finished flow run that left so many jobs in the queue."""

    @flow
    def leaves() -> list[str]:
        return [qr.submit_job(credentials, [FLIP], backend=BACKEND).id for _ in range(number)]

    flow_run, state = ran(leaves)
    return str(flow_run.id), asyncio.run(state.aresult())


def test_waits_that_are_cancelled_together_cancel_each_job_once(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 4)

    async def twenty_at_once() -> list[list[qr.Job]]:
        client = credentials.get_client()
        return await asyncio.gather(*(cancel_jobs_of(client, flow_run_id, [jobs[n % 4]]) for n in range(20)))

    for done in network_loop().run(twenty_at_once()):
        assert {job.id for job in done} == set(jobs)
        assert all(job.status is qr.JobStatus.CANCELLED for job in done)
    assert requests(sandbox, "POST", "/jobs/*/cancel") == 4
    assert len(events(f"qruntime.job.{jobs[0]}", last="qruntime.job.cancelled")) == 2
    assert not network_loop().state(CancellationWork).batches


def test_a_job_that_the_service_does_not_know_yet_is_cancelled_too(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 1)
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=404)
    done = network_loop().run(cancel_jobs_of(credentials.get_client(), flow_run_id, jobs))
    assert [job.status for job in done] == [qr.JobStatus.CANCELLED]


def test_a_job_that_cannot_be_cancelled_holds_up_no_other_and_is_told_of(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    flow_run_id, jobs = bought(credentials, 3)
    sandbox.control.add_fault("POST", f"/jobs/{jobs[1]}/cancel", status=403, times=None)
    with pytest.raises(PermissionDenied):
        network_loop().run(cancel_jobs_of(credentials.get_client(), flow_run_id, jobs))
    assert [sandbox.control.job(job)["status"] for job in jobs] == ["Cancelled", "Queued", "Cancelled"]


def test_a_watcher_tries_again_to_cancel_what_it_could_not(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(waits, credentials_block=block)
    start(waits, flow_run)
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=403, times=None)
    assert run_watch([block], once=True).cancelled == 0
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]
    sandbox.control.clear_faults()
    assert run_watch([block], once=True).cancelled == 1
    assert [job["status"] for job in sandbox.control.jobs()] == ["Cancelled"]


def test_a_detached_job_is_left_alone(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(detached, credentials_block=block)
    start(detached, flow_run)
    asked(lambda client: client.set_flow_run_state(flow_run.id, Cancelling()))
    assert run_watch([block], once=True).cancelled == 1
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


def test_a_job_cancelled_at_the_deadline_is_told_of(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()

    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [STAY], backend=BACKEND)
        return qr.wait_for_completion.with_options(retries=0)(credentials, job, timeout=0.3, on_timeout="cancel")

    flow_run, state = ran(one)
    with pytest.raises(qr.JobTimeout) as caught:
        asyncio.run(state.aresult())
    job_id = str(caught.value.job_id)
    assert events(f"qruntime.job.{job_id}", last="qruntime.job.cancelled")
    (record,) = records("job", flow_run.id)
    assert record.meta["state"] == "Cancelled"
    assert until(lambda: records("job", flow_run.id)[0].meta.get("usage_final") == "true")


def test_the_end_of_a_job_is_told_once_a_flow_run_and_stays_on_its_page(sandbox: Sandbox, credentials: Any) -> None:
    seen: list[str | None] = []

    @flow(retries=1)
    def again() -> None:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        seen.extend(record.meta.get("state") for record in records("job", UUID(runtime.flow_run.id)))
        qr.wait_for_completion(credentials, job)
        qr.wait_for_completion(credentials, job)
        if len(seen) == 1:
            raise RuntimeError("something downstream broke")

    ran(again)
    assert seen == ["submitted", "Completed"]
    (job,) = sandbox.control.jobs()
    resource = f"qruntime.job.{job['id']}"
    names = [event["event"].rpartition(".")[2] for event in events(resource, last="qruntime.job.attached")]
    assert [name for name in names if name != "running"] == ["submitted", "completed", "attached"]


@pytest.mark.parametrize("answer", [204, 409])
@pytest.mark.parametrize("door", ["task", "flow run", "hook", "sweep", "command"])
def test_a_job_that_lives_on_after_a_cancel_is_not_called_cancelled(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    door: str,
    answer: int,
) -> None:
    """The service takes the request, or says that it cannot be, and the job stays as it is."""
    monkeypatch.setattr(service, "_CANCEL_LOOKS", (0.01,))
    caplog.set_level(logging.INFO, "prefect_qruntime")
    sandbox.control.hold()
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("cancelling", overwrite=True)
    credentials = qr.load_credentials("cancelling")
    flow_run_id, (job,) = bought(credentials, 1)
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=answer, times=None)
    said = ""
    if door == "task":
        assert qr.cancel_job(credentials, job).status is qr.JobStatus.QUEUED
    elif door == "flow run":
        with pytest.raises(qr.QuantumRuntimeError, match="still 'Queued'"):
            network_loop().run(cancel_jobs_of(credentials.get_client(), flow_run_id, [job]))
    elif door == "hook":
        flow_run = asked(lambda client: client.read_flow_run(UUID(flow_run_id)))
        network_loop().run(hooks.clean_up(flow_run, cancel_jobs=True, drain=False))
    elif door == "sweep":
        report = run_sweep(["cancelling"], cancel_jobs=True)
        assert not report.is_clean
        said = " ".join(one.action for one in report.jobs)
    else:
        assert exit_code("cancel", job, "--block", "cancelling") == 1
        said = capsys.readouterr().out.replace("is Queued", "is still 'Queued'")
    said += caplog.text
    assert "still 'Queued'" in said
    assert not re.search(r"job \S+ is cancelled|1 live job cancelled|1 job with it", said)


@pytest.mark.parametrize("deleted", ["itself", "around"])
@pytest.mark.parametrize("create", ["submit", "open"])
def test_nothing_is_bought_by_a_run_that_was_deleted(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, create: str, deleted: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.05")
    sandbox.control.hold()
    refused: list[str] = []

    def creates() -> None:
        run_ids = {"itself": runtime.flow_run.id, "around": runtime.flow_run.parent_flow_run_id}
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        asked(lambda client: client.delete_flow_run(UUID(run_ids[deleted])))
        answered = time.monotonic() + 0.1
        until(lambda: time.monotonic() > answered)  # an answer of before is kept for a while
        try:
            if create == "submit":
                qr.submit_job(credentials, [STAY], backend=BACKEND)
            else:
                qr.open_session(credentials, BACKEND)
        except qr.QuantumRuntimeError as error:
            refused.append(error.message)

    @flow
    def outer() -> None:
        flow(creates)()

    with contextlib.suppress(ObjectNotFound):  # Prefect's, of the run's end
        outer()
    assert ["deleted in Prefect" in text for text in refused] == [True]
    assert len(sandbox.control.jobs()) == 1
    assert sandbox.control.sessions() == []


@pytest.mark.parametrize(("around", "more"), [(0, True), (1, True), (2, True), (0, False)])
def test_nothing_is_bought_by_a_run_that_goes_on_after_a_cancel_between_its_tries(
    sandbox: Sandbox, credentials: Any, around: int, more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect cancels a run without infrastructure at once, and its process starts it again nevertheless."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.2")
    sandbox.control.hold()
    tries: list[str] = []

    @flow(retries=2, retry_delay_seconds=2, **hooks.cancel)
    def thrice() -> None:
        tries.append(runtime.flow_run.id)
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        if len(tries) == 1 or not more:  # not even waited for: the submission that attaches cancels it
            raise ArithmeticError("mine")
        qr.submit_job(credentials, [STAY], backend=BACKEND)

    def state() -> Any:
        return tries and asked(lambda client: client.read_flow_run(UUID(tries[0]))).state

    def within(inner: Any) -> Any:
        @flow
        def outer() -> None:
            inner()

        return outer

    nested: Any = thrice
    for _ in range(around):
        nested = within(nested)
    thread = threading.Thread(target=lambda: nested(return_state=True), daemon=True)
    thread.start()
    assert until(lambda: state() and state().name == "AwaitingRetry")
    asked(lambda client: client.set_flow_run_state(UUID(tries[0]), Cancelling()))
    thread.join(120)
    assert len(tries) == 3
    assert [job["status"] for job in sandbox.control.jobs()] == ["Cancelled"]


@pytest.mark.parametrize("in_session", [True, False])
def test_a_job_whose_answer_was_lost_a_moment_before_the_cancel_is_cancelled(
    sandbox: Sandbox, dialect: Any, in_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service accepted it, and its list shows it late."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "30")
    sandbox.control.hold()
    qr.QuantumRuntimeCredentials(**sandbox.connection(dialect)).save("cancelling", overwrite=True)
    credentials = qr.load_credentials("cancelling")
    network_loop().run(credentials.get_client().jobs(limit=1))  # so that it is no 401 that is lost

    @flow(**hooks.cancel)
    async def cancelled() -> None:
        opened = qr.aruntime_session(credentials, BACKEND, max_ttl=300) if in_session else contextlib.nullcontext()
        async with opened as session:
            sandbox.control.set_option("list_lag", 2.0)
            sandbox.control.add_fault("POST", "/jobs", drop="after", delay=0.5)
            sends = asyncio.ensure_future(qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session))
            assert await asyncio.to_thread(until, lambda: requests(sandbox, "POST", "/jobs"))
            mine = UUID(runtime.flow_run.id)
            await asyncio.to_thread(asked, lambda client: client.set_flow_run_state(mine, Cancelling()))
            sends.cancel()
            await sends

    with contextlib.suppress(asyncio.CancelledError):
        ran(cancelled)
    sandbox.control.set_option("list_lag", 0)
    assert [job["status"] in ("Cancelled", "Failed") for job in sandbox.control.jobs()] == [True]
    assert sandbox.control.open_sessions() == []


@pytest.mark.parametrize("use", [hooks.cancel, hooks.detach], ids=["cancel", "detach"])
def test_a_cancel_that_the_next_request_notices_does_not_forget_the_answer_that_was_lost(
    sandbox: Sandbox, credentials: Any, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal comes: Prefect is asked when the search has found nothing and the job is about to be sent again."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "1")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.1")
    sandbox.control.hold()
    network_loop().run(credentials.get_client().jobs(limit=1))  # so that it is no 401 that is lost
    sandbox.control.set_option("list_lag", 4.0)
    sandbox.control.add_fault("POST", "/jobs", drop="after", delay=0.5)
    refused: list[str] = []
    turns, looked_in_turn = list[bool](), list[bool]()

    @contextlib.asynccontextmanager
    async def turn(*_: Any) -> AsyncIterator[None]:
        turns.append(True)
        try:
            yield
        finally:
            turns.pop()

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **more: Any) -> Any:
            looked_in_turn.append(bool(turns))
            return work(*args, **more)

        return noting

    monkeypatch.setattr(guard, "share_turn", turn)
    for name in ("_cancel_with", "_cancel_lost"):  # they may take long, and other submissions wait for the turn
        monkeypatch.setattr(cancellation, name, noted(getattr(cancellation, name)))

    @flow(**use)
    def submits() -> None:
        mine = UUID(runtime.flow_run.id)

        def cancel() -> None:
            assert until(lambda: requests(sandbox, "POST", "/jobs"))
            asked(lambda client: client.set_flow_run_state(mine, Cancelling()))

        presses = threading.Thread(target=cancel)
        presses.start()
        try:
            qr.submit_job(credentials, [FLIP], backend=BACKEND)
        except qr.JobCancelled as error:
            refused.append(str(error))
        presses.join()

    ran(submits)
    sandbox.control.set_option("list_lag", 0)
    (job,) = sandbox.control.jobs()
    assert job["status"] == ("Cancelled" if use is hooks.cancel else "Queued")
    (key,) = [tag for tag in job["tags"] if tag.startswith("qr-key:")]
    assert [key in text and "Nothing was sent" not in text for text in refused] == [True]
    assert looked_in_turn == ([False, False] if use is hooks.cancel else [])


def test_a_refusal_before_the_job_is_sent_again_does_not_hide_the_answer_that_was_lost(
    sandbox: Sandbox, credentials: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "1")
    sandbox.control.hold()
    network_loop().run(credentials.get_client().jobs(limit=1))  # so that it is no 401 that is lost
    sandbox.control.set_option("list_lag", 4.0)
    sandbox.control.add_fault("POST", "/jobs", drop="after")
    asked_before, errors = list[bool](), list[qr.QuantumRuntimeError]()

    async def refuses(*_: Any) -> None:
        asked_before.append(True)
        if len(asked_before) == 2:
            raise qr.errors.PolicyRefused("changed meanwhile")

    monkeypatch.setattr(guard.AdmissionGuard, "_ceiling", refuses)

    @flow
    def submits() -> None:
        try:
            qr.submit_job(credentials, [FLIP], backend=BACKEND)
        except qr.QuantumRuntimeError as error:
            errors.append(error)

    ran(submits)
    assert [type(error) for error in errors] == [qr.SubmissionUncertain]
    assert "changed meanwhile" in str(errors[0])
    sandbox.control.set_option("list_lag", 0)
    (job,) = sandbox.control.jobs()
    (key,) = [tag for tag in job["tags"] if tag.startswith("qr-key:")]
    assert f"Look for the tag {key}" in caplog.text


# ---- subflows ------------------------------------------------------------------------------------------------------

TREE = {"top": None, "left": "top", "leaf": "left", "right": "top"}
"""Flows and the flow that calls each."""


def within(name: str) -> set[str]:
    """A flow and those that run in it."""
    found = {name}
    while more := {one for one, parent in TREE.items() if parent in found} - found:
        found |= more
    return found


def tree(credentials: Any, runs: dict[str, str], jobs: dict[str, str], *, waits: bool) -> Any:
    """A flow that submits a job, as does each of its subflows; those of one flow run together."""

    async def body(name: str) -> None:
        runs[name] = runtime.flow_run.id
        job = await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, tags=[name])
        jobs[name] = job.id
        below = [flow(name=one)(body)(one) for one, parent in TREE.items() if parent == name]
        waited = [qr.await_for_completion(credentials, job)] if waits else []
        await asyncio.gather(*below, *waited, return_exceptions=True)

    return flow(name="top", **hooks.cancel)(body)


def cancelled(sandbox: Sandbox, jobs: dict[str, str]) -> set[str]:
    return {name for name, job in jobs.items() if sandbox.control.job(job)["status"] == "Cancelled"}


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("way", ["process", "another process", "prefect is away", "hook"])
def test_a_cancelled_flow_run_cancels_its_own_jobs_and_those_of_its_subflows(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    """Whoever cancels: the process that submitted, one that took over, one without Prefect, or the hook."""
    sandbox.control.hold()
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("tree", overwrite=True)
    credentials = qr.load_credentials("tree")
    runs, jobs = dict[str, str](), dict[str, str]()
    ran(tree(credentials, runs, jobs, waits=False), "top")
    assert set(jobs) == set(TREE)
    if way in ("another process", "hook"):
        network_loop().forget(cancellation._FlowRuns)
    if way == "hook":
        flow_run = asked(lambda client: client.read_flow_run(UUID(runs[name])))
        network_loop().run(hooks.clean_up(flow_run, cancel_jobs=True, drain=False))
    else:
        if way == "prefect is away":

            async def away(*args: Any, **more: Any) -> Any:
                raise ConnectionError("no route")

            monkeypatch.setattr(cancellation, "find_records", away)
        network_loop().run(cancel_jobs_of(credentials.get_client(), runs[name], top=runs["top"]))
    assert cancelled(sandbox, jobs) == within(name)


@pytest.mark.parametrize("name", TREE)
def test_a_cancel_of_one_flow_run_reaches_its_waits_alone(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.2")
    sandbox.control.hold()
    runs, jobs = dict[str, str](), dict[str, str]()
    whole = tree(credentials, runs, jobs, waits=True)
    thread = threading.Thread(target=lambda: asyncio.run(whole("top", return_state=True)), daemon=True)
    thread.start()
    assert until(lambda: len(jobs) == len(TREE))
    asked(lambda client: client.set_flow_run_state(UUID(runs[name]), Cancelling()))
    assert until(lambda: cancelled(sandbox, jobs) >= within(name))
    assert not until(lambda: cancelled(sandbox, jobs) != within(name), 1.5)
    sandbox.control.release()
    thread.join(120)
    assert not thread.is_alive()
    assert cancelled(sandbox, jobs) == within(name)
    assert not network_loop().state(CancellationWork).pollers


def test_a_wait_for_the_parent_s_job_ends_with_its_subflow_and_the_job_lives_on(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.2")
    sandbox.control.hold()
    runs, ended = list[str](), list[Any]()

    @flow(**hooks.cancel)
    async def below(job: Any) -> None:
        runs.append(runtime.flow_run.id)
        ended.append(await qr.await_for_completion(credentials, job, return_state=True))

    @flow
    async def above() -> Any:
        job = await qr.asubmit_job(credentials, [FLIP], backend=BACKEND)
        await below(job, return_state=True)
        sandbox.control.release()
        return (await qr.await_for_completion(credentials, job)).status

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(above())), daemon=True)
    thread.start()
    assert until(lambda: runs)
    asked(lambda client: client.set_flow_run_state(UUID(runs[0]), Cancelling()))
    thread.join(120)
    assert found == [qr.JobStatus.COMPLETED]
    with pytest.raises(qr.JobCancelled, match="which another flow run submitted, lives on"):
        asyncio.run(ended[0].aresult())


def test_a_wait_for_the_parent_s_job_ends_with_its_subflow_though_a_job_of_that_subflow_lives_on(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service takes the request to cancel the subflow's own job, and lets it go on."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.2")
    monkeypatch.setattr(service, "_CANCEL_LOOKS", (0.01,))
    sandbox.control.hold()
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=204, times=None)
    runs, ended = list[str](), list[Any]()

    @flow(**hooks.cancel)
    async def below(job: Any) -> None:
        mine = await qr.asubmit_job(credentials, [STAY], backend=BACKEND)
        runs.append(runtime.flow_run.id)

        async def end_of(one: Any) -> None:
            ended.append(await qr.await_for_completion(credentials, one, return_state=True))

        await asyncio.gather(end_of(job), end_of(mine))

    @flow
    async def above() -> None:
        await below(await qr.asubmit_job(credentials, [FLIP], backend=BACKEND), return_state=True)

    thread = threading.Thread(target=lambda: asyncio.run(above(return_state=True)), daemon=True)
    thread.start()
    assert until(lambda: runs)
    asked(lambda client: client.set_flow_run_state(UUID(runs[0]), Cancelling()))
    alone = until(lambda: len(ended) == 1, 10)
    sandbox.control.release()
    thread.join(120)
    assert alone
    with pytest.raises(qr.JobCancelled, match="which another flow run submitted, lives on"):
        asyncio.run(ended[0].aresult())


LINEAGES = st.lists(st.integers(0, 3).map(lambda n: [("a1", "a", "t"), ("a", "t"), ("b", "t"), ("t",)][n]), max_size=3)


@given(owners=LINEAGES, elsewhere=st.booleans())
def test_a_job_belongs_to_a_flow_run_if_all_its_owners_run_in_it(owners: list[Any], elsewhere: bool) -> None:
    known = [*owners, ("other top",)] if elsewhere else owners
    for run in ("a1", "a", "b", "t"):
        inside = [run in runs for runs in owners]
        assert belongs(known, run, "t") is (None if not owners else all(inside))


@pytest.mark.parametrize("outside", [False, True], ids=["in a flow", "outside"])
@pytest.mark.parametrize("lost", [False, True], ids=["answered", "lost"])
def test_a_call_that_is_interrupted_while_it_submits_says_what_lives_on(
    sandbox: Sandbox, credentials: Any, caplog: pytest.LogCaptureFixture, lost: bool, outside: bool
) -> None:
    """Its caller gets no handle: a job that is not told of would be submitted once more by hand."""

    async def interrupted() -> None:
        sandbox.control.add_fault("POST", "/jobs", delay=2.0, drop="after" if lost else None)
        submitting = asyncio.create_task(qr.asubmit_job(credentials, [FLIP], backend=BACKEND))
        assert await asyncio.to_thread(until, lambda: not sandbox.control.faults())
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting

    asyncio.run(interrupted() if outside else flow(interrupted)())
    (job,) = sandbox.control.jobs()
    (key,) = (tag for tag in job["tags"] if tag.startswith("qr-key:"))
    (told,) = (line.getMessage() for line in caplog.records if line.getMessage().startswith("The call "))
    assert (key in told, job["id"] in told) == (lost, not lost)
    assert ("A repeated flow run attaches" in told) is not outside
