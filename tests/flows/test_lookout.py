"""A Cancel that no signal brings: waits and submissions in threads, and runs without a deployment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow, runtime, unmapped
from prefect.client.schemas.actions import VariableCreate
from prefect.states import Cancelled, Cancelling, Pending, Running as RunningState, Scheduled
from prefect.task_runners import ThreadPoolTaskRunner

import prefect_qruntime as qr
from prefect_qruntime import Budget, cancellation, hooks
from prefect_qruntime.admission.ledger import Ledger
from prefect_qruntime.admission.locks import lock_name, submission_lock
from prefect_qruntime.admission.rate_limit import RateLimiter
from prefect_qruntime.cancellation import CancellationWork
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.prefect_api import _DROPPED
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, STAY, posts, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def quick_looks(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS", "0.2")
    sandbox.control.hold()


class Running:
    """A flow in a thread of its own, so that no signal reaches it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.ended: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.ended = error


def cancel(sandbox: Sandbox) -> None:
    """Press Cancel on the flow run that owns the jobs."""
    tags = sandbox.control.jobs()[0]["tags"]
    (owner,) = (UUID(tag.removeprefix("qr-flow:")) for tag in tags if tag.startswith("qr-flow:"))
    asked(lambda client: client.set_flow_run_state(owner, Cancelling()))


def statuses(sandbox: Sandbox) -> list[str]:
    return sorted(job["status"] for job in sandbox.control.jobs())


def test_mapped_waits_end_and_their_jobs_are_cancelled(sandbox: Sandbox, credentials: Any) -> None:
    @flow(task_runner=ThreadPoolTaskRunner(max_workers=8), **hooks.cancel)
    def fan_out() -> None:
        jobs = qr.submit_job.map(unmapped(credentials), [[FLIP]] * 4, backend=BACKEND)
        qr.wait_for_completion.map(unmapped(credentials), jobs).result()

    running = Running(fan_out)
    assert until(lambda: statuses(sandbox) == ["Queued"] * 4)
    cancel(sandbox)
    running.thread.join(300)
    assert statuses(sandbox) == ["Cancelled"] * 4
    assert not running.thread.is_alive()
    assert isinstance(running.ended, Exception)
    assert not network_loop().state(CancellationWork).pollers


def test_a_detached_flow_run_leaves_its_job(sandbox: Sandbox, credentials: Any) -> None:
    @flow(**hooks.detach)
    def leaves() -> None:
        qr.run_job(credentials, [FLIP], backend=BACKEND)

    running = Running(leaves)
    assert until(lambda: statuses(sandbox) == ["Queued"])
    cancel(sandbox)
    assert not until(lambda: not running.thread.is_alive(), 2)
    assert statuses(sandbox) == ["Queued"]
    sandbox.control.release()
    running.thread.join(300)
    assert statuses(sandbox) == ["Completed"]


# ---- submissions ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_by_another_process(name: str) -> Iterator[None]:
    """A lock in Prefect whose holder is alive for as long as the test needs."""
    value = {"holder": "another-process", "beat": 1, "who": "another process"}
    row = asked(lambda client: client.create_variable(VariableCreate(name=name, value=value, tags=["qruntime-lock"])))
    try:
        yield
    finally:
        asked(lambda client: client.request("DELETE", "/variables/{id}", path_params={"id": row.id}))


@contextlib.contextmanager
def obstacle(kind: str, sandbox: Sandbox, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a second submission waits for, and the parameters with which it does."""
    crn = sandbox.connection("cloud")["crn"]
    if kind == "permit":
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "1")
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "600")
        network_loop().forget(RateLimiter)
        yield {}
        network_loop().forget(RateLimiter)
    elif kind == "budget":
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_USAGE_GRACE_SECONDS", "600")
        network_loop().forget(Ledger)
        sandbox.control.release()
        sandbox.control.set_option("usage_lag", 1e7)
        yield {"budget": Budget(max_seconds_per_run=50, default_max_execution_time=40)}
    elif kind == "budget's lock":
        with held_by_another_process(lock_name("budget", f"instance:{crn}")):
            yield {"budget": Budget(min_remaining_seconds=1)}
    else:
        patch.setattr("prefect_qruntime.tasks.submit.submission_lock", lambda tag: submission_lock("of another one"))
        with held_by_another_process(lock_name("submit", "of another one")):
            yield {"submission_key": f"lookout {uuid4()}"}


OBSTACLES = ["permit", "budget", "budget's lock", "key's lock"]


@pytest.mark.parametrize("policy", [hooks.cancel, hooks.detach], ids=["cancel", "detach"])
@pytest.mark.parametrize("kind", OBSTACLES)
def test_submissions_that_wait_end_with_a_cancel_and_send_nothing(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, kind: str, policy: Any
) -> None:
    runs: list[UUID] = []
    waiting = threading.Event()

    with obstacle(kind, sandbox, monkeypatch) as more:

        @flow(task_runner=ThreadPoolTaskRunner(max_workers=8), **policy)
        def fan_out() -> None:
            runs.append(UUID(runtime.flow_run.id))
            first = {} if "lock" in kind else more
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, **first)
            if kind == "budget":
                qr.wait_for_completion(credentials, job)
            futures = qr.submit_job.map(
                unmapped(credentials),
                [[FLIP]] * 3,
                backend=BACKEND,
                **{name: unmapped(one) for name, one in more.items()},
            )
            waiting.set()
            ended.extend(future.result(raise_on_failure=False) for future in futures)

        ended: list[Any] = []
        running = Running(fan_out)
        assert waiting.wait(120)
        assert not until(lambda: posts(sandbox) > 1, 1), "the others wait"
        asked(lambda client: client.set_flow_run_state(runs[0], Cancelling()))
        running.thread.join(60)
        assert not running.thread.is_alive()
    assert [type(one) for one in ended] == [qr.JobCancelled] * 3
    assert posts(sandbox) == 1
    left = "Completed" if kind == "budget" else "Cancelled" if policy is hooks.cancel else "Queued"
    assert until(lambda: statuses(sandbox) == [left])
    assert not network_loop().state(CancellationWork).pollers


@pytest.mark.parametrize("what", ["job", "session"])
@pytest.mark.parametrize("prefect", ["answers", "is away"])
def test_prefect_is_asked_right_before_something_is_created(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch, what: str, prefect: str
) -> None:
    """No wait, no permit: the flow run is cancelled while it does something else."""
    ready, go, ended = threading.Event(), threading.Event(), list[Any]()

    @flow(**hooks.cancel)
    def another_one() -> None:
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        ready.set()
        go.wait(60)
        create = qr.submit_job if what == "job" else qr.open_session
        pubs = {"pubs": [STAY]} if what == "job" else {}
        ended.append(create(credentials, backend=BACKEND, return_state=True, **pubs))

    running = Running(another_one)
    assert ready.wait(120)
    cancel(sandbox)
    time.sleep(0.3)  # the answer to the first submission is no longer new enough
    if prefect == "is away":

        async def away() -> Any:
            raise httpx.ConnectError("no route")

        monkeypatch.setattr(cancellation, "api", away)
    go.set()
    running.thread.join(120)
    monkeypatch.undo()
    created = posts(sandbox) - 1 if what == "job" else len(sandbox.control.sessions())
    if prefect == "is away":
        assert created == 1, "as if nobody had pressed Cancel"
        return
    assert created == 0
    assert isinstance(asyncio.run(ended[0].aresult(raise_on_failure=False)), qr.JobCancelled)
    assert statuses(sandbox) == ["Cancelled"]


def test_ten_submissions_at_once_ask_once(sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS")
    ask, asks = cancellation._ask, list[int]()

    async def counted(level: int) -> Any:
        asks.append(level)
        return await ask(level)

    monkeypatch.setattr(cancellation, "_ask", counted)
    sandbox.control.release()

    @flow
    async def ten() -> None:
        await asyncio.gather(*(qr.arun_job(credentials, [FLIP], backend=BACKEND, shots=5 + n) for n in range(10)))

    asyncio.run(ten())
    assert posts(sandbox) == 10
    assert len(asks) <= 1, "none if its start was read a moment ago"


def test_a_session_closes_with_a_run_that_nobody_could_tell(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def in_session() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            qr.run_job(credentials, [FLIP], backend=BACKEND, session=session)

    running = Running(in_session)
    assert until(lambda: statuses(sandbox) == ["Queued"])
    assert len(sandbox.control.open_sessions()) == 1
    cancel(sandbox)
    running.thread.join(300)
    assert statuses(sandbox) == ["Cancelled"]
    assert not sandbox.control.open_sessions()


@pytest.mark.parametrize("what", ["job", "session"])
@pytest.mark.parametrize("inside", ["the flow", "a subflow"])
@pytest.mark.parametrize("start", ["", *_DROPPED])
def test_a_process_whose_flow_run_was_started_again_elsewhere_creates_nothing(
    sandbox: Sandbox, credentials: Any, what: str, inside: str, start: str
) -> None:
    """A pod that lost Prefect for minutes: its run was taken for crashed, and another process has it now.

    Or Prefect drops that start, as others of the deployment run: no person cancelled the run.
    """
    ready, go = threading.Event(), threading.Event()

    def body() -> None:
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        ready.set()
        go.wait(60)
        create = qr.submit_job if what == "job" else qr.open_session
        create(credentials, backend=BACKEND, **({"pubs": [STAY]} if what == "job" else {}))

    part = flow(body, name="part")

    @flow(**hooks.cancel)
    def old() -> None:
        part() if inside == "a subflow" else body()

    running = Running(old)
    assert ready.wait(120)
    (tag,) = (tag for tag in sandbox.control.jobs()[0]["tags"] if tag.startswith("qr-flow:"))
    owner = UUID(tag.removeprefix("qr-flow:"))
    # As a newer process brings it to Running, or Prefect does not let it start.
    for state in (Scheduled(), *((Cancelled(message=start),) if start else (Pending(), RunningState()))):
        asked(lambda client, state=state: client.set_flow_run_state(owner, state, force=True))
    time.sleep(0.3)  # the answer to the first submission is no longer new enough
    go.set()
    running.thread.join(120)
    assert "started again elsewhere" in str(running.ended)
    assert (posts(sandbox), len(sandbox.control.sessions())) == (1, 0)
    assert statuses(sandbox) == ["Queued"]


def test_a_retry_in_the_process_is_not_taken_for_another_one(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.release()
    tries: list[int] = []

    @flow(retries=2)
    def unlucky() -> None:
        tries.append(1)
        qr.submit_job(credentials, [FLIP], backend=BACKEND)
        time.sleep(0.3)
        qr.submit_job(credentials, [STAY], backend=BACKEND, shots=100 + len(tries))
        if len(tries) < 3:
            raise RuntimeError("something after it broke")

    unlucky()
    assert len(tries) == 3
    assert posts(sandbox) == 4
