"""A Cancel that no signal brings: waits in threads, and runs without a deployment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, unmapped
from prefect.states import Cancelling
from prefect.task_runners import ThreadPoolTaskRunner

import prefect_qruntime as qr
from prefect_qruntime import hooks
from prefect_qruntime.cancellation import CancellationWork
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, until
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
