"""The tasks in flows: sync and async twins alike, what they return, raise, log and tell Prefect."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

import pytest
from prefect import flow, task, unmapped
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId
from prefect.exceptions import ParameterBindError
from prefect.transactions import transaction

import prefect_qruntime as qr
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, events, ran, records, requests, run, task_runs, until
from tests.support.prefect_calls import asked
from tests.support.prefect_server import ROOT, PrefectServer

pytestmark = pytest.mark.server

TWINS = {
    "authenticate": "aauthenticate",
    "list_backends": "alist_backends",
    "select_backend": "aselect_backend",
    "open_session": "aopen_session",
    "submit_job": "asubmit_job",
    "wait_for_completion": "await_for_completion",
    "fetch_results": "afetch_results",
    "cancel_job": "acancel_job",
    "close_session": "aclose_session",
    "get_usage": "aget_usage",
    "estimate_cost": "aestimate_cost",
}
COMPOSED = {"run_job": "arun_job", "compare_routes": "acompare_routes"}


@pytest.mark.parametrize(("plain", "twin"), [*TWINS.items(), *COMPOSED.items()])
def test_twins_take_the_same_parameters(plain: str, twin: str) -> None:
    first, second = getattr(qr, plain), getattr(qr, twin)
    fns = [getattr(one, "fn", one) for one in (first, second)]
    signatures = [inspect.signature(fn, eval_str=False) for fn in fns]
    assert signatures[0] == signatures[1]
    assert [inspect.iscoroutinefunction(fn) for fn in fns] == [False, True]
    assert [fn.__name__ for fn in fns] == [first.__name__, second.__name__] == [plain, twin]
    if plain in TWINS:
        assert (first.retries, first.tags, first.persist_result) == (second.retries, second.tags, second.persist_result)


@pytest.mark.parametrize("name", ["submit_job", "run_job", "asubmit_job", "arun_job", "wait_for_completion"])
def test_a_wrong_parameter_is_reported_under_a_public_name(name: str, credentials: Any) -> None:
    given = {"job": "d1"} if name == "wait_for_completion" else {"pubs": [FLIP], "backend": BACKEND}
    public = name.replace("run_job", "submit_job")

    def call() -> None:
        made = getattr(qr, name)(credentials, **given, shot=3)
        if inspect.isawaitable(made):
            run(made)

    with pytest.raises(ParameterBindError, match=f"function '{public}': got an unexpected keyword argument 'shot'"):
        call()


@flow
def everything(credentials: Any, key: str) -> dict[str, Any]:
    report = qr.authenticate(credentials)
    found = {
        "report": report.model_copy(update={"token_seconds_left": None, "usage": None}),
        "backends": qr.list_backends(credentials, min_qubits=30),
        "backend": qr.select_backend(credentials, min_qubits=30),
        "usage": qr.get_usage(credentials),
    }
    session = qr.open_session(credentials, found["backend"], mode="batch", max_ttl=60)
    job = qr.submit_job(
        credentials, [FLIP], backend=found["backend"], session=session, shots=5, tags=["mine"], submission_key=key
    )
    found["done"] = qr.wait_for_completion(credentials, job)
    found["counts"] = qr.fetch_results(credentials, job).counts()
    found["cancelled"] = qr.cancel_job(credentials, job)
    found["closed"] = qr.close_session(credentials, session)
    return found


@flow
async def everything_async(credentials: Any, key: str) -> dict[str, Any]:
    report = await qr.aauthenticate(credentials)
    found: dict[str, Any] = {
        "report": report.model_copy(update={"token_seconds_left": None, "usage": None}),
        "backends": await qr.alist_backends(credentials, min_qubits=30),
        "backend": await qr.aselect_backend(credentials, min_qubits=30),
        "usage": await qr.aget_usage(credentials),
    }
    session = await qr.aopen_session(credentials, found["backend"], mode="batch", max_ttl=60)
    job = await qr.asubmit_job(
        credentials, [FLIP], backend=found["backend"], session=session, shots=5, tags=["mine"], submission_key=key
    )
    found["done"] = await qr.await_for_completion(credentials, job)
    found["counts"] = (await qr.afetch_results(credentials, job)).counts()
    found["cancelled"] = await qr.acancel_job(credentials, job)
    found["closed"] = await qr.aclose_session(credentials, session)
    return found


def without_ids(value: Any) -> Any:
    """Everything that does not differ from one job or session to the next."""
    if not hasattr(value, "model_dump"):
        return [without_ids(item) for item in value] if isinstance(value, list) else value
    changing = {"id", "session_id", "created_at", "url", "tags", "token", "submission_key", "wait_time_seconds"}
    shown: dict[str, Any] = value.model_dump(exclude=changing)
    return shown


def test_twins_return_the_same(sandbox: Sandbox, dialect: str) -> None:
    credentials = sandbox.credentials(dialect)
    plain, twin = everything(credentials, f"sync-{dialect}"), run(everything_async(credentials, f"async-{dialect}"))
    assert {name: without_ids(value) for name, value in plain.items() if name != "usage"} == {
        name: without_ids(value) for name, value in twin.items() if name != "usage"
    }
    assert plain["counts"] == {"1": 5}
    assert plain["done"].status is qr.JobStatus.COMPLETED
    assert "mine" in plain["done"].tags
    assert plain["closed"].is_closed
    assert plain["backend"].name == BACKEND
    assert twin["usage"].consumed_seconds > 0
    assert sandbox.control.open_sessions() == []
    assert requests(sandbox, "POST", "/jobs") == 2


def failed(credentials: Any) -> Any:
    return qr.run_job(credentials, [FLIP], backend=BACKEND)


async def afailed(credentials: Any) -> Any:
    return await qr.arun_job(credentials, [FLIP], backend=BACKEND)


@pytest.mark.parametrize("work", [failed, afailed])
def test_twins_raise_the_same(sandbox: Sandbox, credentials: Any, work: Callable[..., Any]) -> None:
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1517)
    flow_run, state = ran(flow(work), credentials)
    with pytest.raises(qr.JobFailed, match="the fridge is warm") as caught:
        run(state.aresult())
    job = sandbox.control.jobs()[0]
    assert (caught.value.job_id, caught.value.code) == (job["id"], 1517)
    assert requests(sandbox, "POST", "/jobs") == 1
    assert [record.meta["state"] for record in records("job", flow_run.id)] == ["Failed"]
    names = [event["event"] for event in events(f"qruntime.job.{job['id']}", last="qruntime.job.failed")]
    assert (names[0], names[-1]) == ("qruntime.job.submitted", "qruntime.job.failed")


def test_the_job_is_in_prefect_before_anything_waits_for_it(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()
    credentials.save("tasks-early", overwrite=True)

    @flow
    def only_submit() -> Any:
        return qr.submit_job(qr.load_credentials("tasks-early"), [FLIP], backend=BACKEND)

    flow_run, state = ran(only_submit)
    job = run(state.aresult())
    (record,) = records("job", flow_run.id)
    assert record.key == f"qruntime-job-{job.id}".lower()
    assert dict(record.meta) | {"state": "submitted", "block": "tasks-early", "flow_run": str(flow_run.id)} == dict(
        record.meta
    )
    assert record.meta["key"] == job.submission_key
    (artifact,) = asked(
        lambda client: client.read_artifacts(
            artifact_filter=ArtifactFilter(id=ArtifactFilterId(any_=[record.artifact_id]))
        )
    )
    assert job.url in str(artifact.data)

    @flow
    def attach_from_elsewhere() -> Any:
        return qr.wait_for_completion(credentials, job.id)

    sandbox.control.release()
    assert attach_from_elsewhere().status is qr.JobStatus.COMPLETED
    (record,) = records("job", flow_run.id)
    assert record.meta["state"] == "Completed"
    assert record.meta["block"] == "tasks-early", "completing the record must not lose what it knew"
    kinds = [event["event"] for event in events(f"qruntime.job.{job.id}", last="qruntime.job.completed")]
    assert kinds[0] == "qruntime.job.submitted"
    assert kinds[-1] == "qruntime.job.completed"


def test_wait_and_fetch_alone_never_submit(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def buy() -> str:
        return str(qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=3).id)

    @flow
    def read(job_id: str) -> dict[str, int]:
        qr.wait_for_completion(credentials, job_id)
        return qr.fetch_results(credentials, f" {job_id} ").counts()

    job_id = buy()
    assert [read(job_id), read(job_id)] == [{"1": 3}] * 2
    assert requests(sandbox, "POST", "/jobs") == 1


def test_a_retried_wait_goes_on_with_the_same_job(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_times(queue_time=1.0)
    sandbox.control.add_fault("GET", "/jobs/*", status=400)

    async def once_more(task: Any, task_run: Any, state: Any) -> bool:
        return True

    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=3)
        wait = qr.wait_for_completion.with_options(retries=1, retry_delay_seconds=0, retry_condition_fn=once_more)
        return wait(credentials, job)

    flow_run, state = ran(one)
    assert run(state.aresult()).status is qr.JobStatus.COMPLETED
    assert requests(sandbox, "POST", "/jobs") == 1
    assert max(task_run.run_count for task_run in task_runs(flow_run.id, 2)) == 2, "nothing was retried"


def test_a_clock_that_is_set_forward_cancels_no_job_whose_wait_is_retried(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: the limit of a retried wait was measured by the wall clock, and a step of an hour ended and cancelled."""
    sandbox.control.set_times(queue_time=1.0)
    sandbox.control.add_fault("GET", "/jobs/*", status=400)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=1)

    async def once_more(task: Any, task_run: Any, state: Any) -> bool:
        monkeypatch.setattr("prefect_qruntime.tasks.jobs.datetime", Ahead)
        return True

    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=3)
        wait = qr.wait_for_completion.with_options(retries=1, retry_delay_seconds=0, retry_condition_fn=once_more)
        return wait(credentials, job, timeout=600, on_timeout="cancel")

    flow_run, state = ran(one)
    assert run(state.aresult()).status is qr.JobStatus.COMPLETED
    assert max(task_run.run_count for task_run in task_runs(flow_run.id, 2)) == 2, "nothing was retried"


def test_an_error_that_cannot_get_better_is_not_retried(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def one() -> Any:
        return qr.wait_for_completion.with_options(retry_delay_seconds=0)(credentials, "no-such-job", timeout=0.3)

    sandbox.control.add_fault("GET", "/jobs/*", status=403, times=None)
    flow_run, state = ran(one)
    with pytest.raises(qr.PermissionDenied):
        run(state.aresult())
    assert [task_run.run_count for task_run in task_runs(flow_run.id, 1)] == [1]


def test_a_wait_that_ends_leaves_the_job_or_cancels_it(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()

    @flow
    def one(on_timeout: Any) -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        return qr.wait_for_completion.with_options(retries=0)(credentials, job, timeout=0.3, on_timeout=on_timeout)

    for on_timeout, status in (("leave", "Queued"), ("cancel", "Cancelled")):
        _, state = ran(one, on_timeout)
        with pytest.raises(qr.JobTimeout) as caught:
            run(state.aresult())
        assert sandbox.control.job(str(caught.value.job_id))["status"] == status


def test_the_least_busy_backend(sandbox: Sandbox, credentials: Any) -> None:
    control = sandbox.control

    def choose(**wanted: Any) -> str:
        return str(qr.select_backend(credentials, **wanted).name)

    def listed(**wanted: Any) -> set[str]:
        return {backend.name for backend in qr.list_backends(credentials, **wanted)}

    @flow
    def look() -> None:
        control.set_backend("sandbox_ideal", queue_length=5)
        control.set_backend("sandbox_noisy", queue_length=3)
        assert choose() == "sandbox_noisy"
        assert choose(min_qubits=30) == "sandbox_ideal"
        control.set_backend("sandbox_noisy", status="paused")
        assert choose() == "sandbox_ideal"
        assert listed(status="paused") == {"sandbox_noisy", "sandbox_paused"}
        assert BACKEND in listed(min_qubits=30)
        assert "sandbox_noisy" not in listed(min_qubits=30)
        with pytest.raises(qr.NotFound, match="1000 qubits"):
            choose(min_qubits=1000)

    look()


def test_a_backend_in_maintenance_is_waited_for(sandbox: Sandbox, credentials: Any) -> None:
    names = [backend.name for backend in run(credentials.get_client().backends())]
    for name in names:
        sandbox.control.set_backend(name, status="paused")
    with pytest.raises(qr.NotFound, match=f"{BACKEND} is paused"):
        qr.select_backend(credentials)
    with pytest.raises(qr.NotFound, match="it has no such backend"):
        qr.select_backend(credentials, min_qubits=1000, timeout=600)  # no wait would help
    with pytest.raises(qr.InvalidInput, match="timeout"):
        qr.select_backend(credentials, timeout=-1)
    with pytest.raises(qr.InvalidInput, match="timeout"):
        qr.select_backend(credentials, timeout=10**400)
    sandbox.control.clear_journal()

    def online_at_the_second_look() -> None:
        until(lambda: requests(sandbox, "GET", "/backends"))
        sandbox.control.set_backend(BACKEND, status="online")

    helper = threading.Thread(target=online_at_the_second_look)
    helper.start()
    assert qr.select_backend(credentials, timeout=60).name == BACKEND
    helper.join()
    assert requests(sandbox, "GET", "/backends") == 2


def test_cancelling_what_is_over_is_no_error(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        qr.wait_for_completion(credentials, job)
        return qr.cancel_job(credentials, job)

    assert one().status is qr.JobStatus.COMPLETED
    assert [entry["status"] for entry in sandbox.control.journal("POST", "/jobs/*/cancel")] == [409]


def test_a_cancelled_job_is_told_of(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.hold()

    @flow
    def one() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        return qr.cancel_job(credentials, job)

    flow_run, state = ran(one)
    job = run(state.aresult())
    assert job.status is qr.JobStatus.CANCELLED
    assert [record.meta["state"] for record in records("job", flow_run.id)] == ["Cancelled"]
    kinds = [event["event"] for event in events(f"qruntime.job.{job.id}", 2)]
    assert kinds == ["qruntime.job.submitted", "qruntime.job.cancelled"]


def test_a_cancellation_that_has_not_happened_yet_is_not_told_as_one(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prefect_qruntime.client.service._CANCEL_LOOKS", (0.0,))
    sandbox.control.hold()
    sandbox.control.add_fault("POST", "/jobs/*/cancel", status=204, body="")

    @flow
    def one() -> Any:
        return qr.cancel_job(credentials, qr.submit_job(credentials, [FLIP], backend=BACKEND))

    with caplog.at_level(logging.INFO):
        assert one().status is qr.JobStatus.QUEUED
    assert "was asked to be cancelled and is still" in caplog.text
    assert "is cancelled" not in caplog.text


def test_usage(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_usage(consumed=40, limit=100)

    @flow
    def read() -> Any:
        return qr.get_usage(credentials)

    usage = read()
    assert (usage.consumed_seconds, usage.limit_seconds, usage.remaining_seconds) == (40, 100, 60)

    sandbox.control.set_usage(consumed=100)

    @flow
    def spend() -> Any:
        return qr.submit_job(credentials, [FLIP], backend=BACKEND)

    with pytest.raises(qr.UsageLimitReached):
        spend()
    assert sandbox.control.jobs() == []


def test_authenticate_says_what_is_wrong(sandbox: Sandbox) -> None:
    wrong = qr.QuantumRuntimeCredentials(**{**sandbox.connection(), "api_key": "not-the-key-0123456789"})

    @flow
    def check() -> Any:
        return qr.authenticate(wrong)

    flow_run, state = ran(check)
    with pytest.raises(qr.AuthenticationError):
        run(state.aresult())
    assert sandbox.control.iam_calls() == 1, "a wrong key is not tried again"
    assert [task_run.run_count for task_run in task_runs(flow_run.id, 1)] == [1]


def test_mapping_over_a_generator_submits_each_of_it(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def each() -> int:
        circuits = (FLIP for _ in range(3))
        return len({job.id for job in qr.submit_job.map(unmapped(credentials), circuits, backend=BACKEND).result()})

    assert each() == 3
    assert len(sandbox.control.jobs()) == 3


def test_a_payload_made_by_other_tasks(sandbox: Sandbox, credentials: Any) -> None:
    @task
    def circuit() -> str:
        return FLIP

    @flow
    def two() -> int:
        made = circuit.submit()
        jobs = [qr.submit_job.submit(credentials, [made], backend=BACKEND, shots=4) for _ in range(2)]
        waits = [qr.wait_for_completion.submit(credentials, job) for job in jobs]
        return len({wait.result().id for wait in waits})

    assert two() == 2
    assert requests(sandbox, "POST", "/jobs") == 2


_HOOKS = {"on_running", "on_completion", "on_failure", "on_commit", "on_rollback"}


@pytest.mark.parametrize("how", ["call", "submit", "map"])
@pytest.mark.parametrize("ends", ["well", "refused", "rolled back"])
def test_hooks_on_a_submission_run_however_it_is_started(credentials: Any, how: str, ends: str) -> None:
    seen: list[str] = []
    mine = qr.submit_job.with_options(name="mine", retries=0)
    for name in _HOOKS:
        getattr(mine, name)(lambda *_, name=name: seen.append(name))
    shots = 0 if ends == "refused" else 10

    @flow
    def submits() -> None:
        with transaction():
            if how == "call":
                mine(credentials, [FLIP], backend=BACKEND, shots=shots)
            elif how == "submit":
                mine.submit(credentials, [FLIP], backend=BACKEND, shots=shots).result()
            else:
                mine.map(unmapped(credentials), [[FLIP]], backend=BACKEND, shots=shots).result()
            if ends == "rolled back":
                raise RuntimeError("a later step failed")

    with nullcontext() if ends == "well" else pytest.raises((RuntimeError, qr.InvalidInput)):
        submits()
    wanted = {
        "well": {"on_running", "on_completion", "on_commit"},
        "refused": {"on_running", "on_failure"},
        "rolled back": {"on_running", "on_completion", "on_rollback"},
    }
    assert set(seen) == wanted[ends]


QUIET = """
import sys
from prefect import flow
import prefect_qruntime as qr
from tests.support.flow_runs import BACKEND, FLIP

@flow
def goes_on(block):
    credentials = qr.load_credentials(block)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
    sys.stdin.read()
    qr.wait_for_completion(credentials, job)

goes_on(sys.argv[1])
"""


def test_a_flow_whose_output_is_read_no_more_does_not_wait_for_ever(
    sandbox: Sandbox, blocks: Callable[[str], str], prefect_server: PrefectServer
) -> None:
    """As after `| head`, or if the worker is killed that reads it. Prefect then ends it at a line of its own."""
    sandbox.control.hold()
    env = {**prefect_server.env, "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "INFO"}
    command = [sys.executable, "-c", QUIET, blocks("cloud")]
    pipe = subprocess.PIPE
    process: Any = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("Finished in state Completed" in line for line in process.stdout)
        process.stdout.close()
        process.stdin.close()
        assert until(lambda: sandbox.control.journal("GET", "/jobs/*") or process.poll() is not None)
        sandbox.control.release()
        process.wait(timeout=300)
        assert sandbox.control.journal("GET", "/jobs/*")
    finally:
        process.kill()
        process.wait()
