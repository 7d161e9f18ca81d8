"""Tasks are not deferred to a task worker: Prefect would store the block with its key. Those of users may be."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Task, flow, task
from prefect.states import Completed, Paused
from prefect.task_runners import PrefectTaskRunner
from prefect.task_worker import TaskWorker

import prefect_qruntime as qr
from prefect_qruntime import run_context
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.submission import submission_memory
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, ran
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
TASKS = sorted(name for name in qr.__all__ if isinstance(getattr(qr, name), Task))


def stored(server: PrefectServer) -> set[Path]:
    """What Prefect's default storage for results and parameters contains."""
    return {path for path in (server.home / "storage").rglob("*") if path.is_file()}


def test_there_are_tasks() -> None:
    assert {"submit_job", "asubmit_job", "wait_for_completion", "open_session", "list_backends"} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "with options"])
def test_no_task_is_deferred(prefect_server: PrefectServer, credentials: Any, name: str, changed: bool) -> None:
    task: Any = getattr(qr, name)
    task = task.with_options(name=task.name, retries=0) if changed else task
    before = stored(prefect_server)
    for method, arguments in (("delay", (credentials,)), ("apply_async", ((credentials,),)), ("serve", ())):
        with pytest.raises(qr.InvalidInput, match=f"`{task.name.replace(' ', '_')}` has no `{method}`.*run_deployment"):
            getattr(task, method)(*arguments)
    assert stored(prefect_server) == before


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "with options"])
def test_no_submitted_or_mapped_task_is_deferred(
    prefect_server: PrefectServer, credentials: Any, name: str, changed: bool
) -> None:
    task: Any = getattr(qr, name)
    task = task.with_options(name=task.name, retries=0) if changed else task
    parameters = inspect.signature(task.fn).parameters.values()
    needed = {one.name: "x" for one in parameters if one.default is one.empty} | {"credentials": credentials}
    lists = {name: [value] for name, value in needed.items()}
    before = stored(prefect_server)

    @flow(task_runner=PrefectTaskRunner())
    def deferring() -> None:
        for call in (
            lambda: task.submit(**needed),
            lambda: task.map(**lists),
            lambda: task.map(**lists, deferred=True),
        ):
            with pytest.raises(qr.InvalidInput, match="has no `apply_async`"):
                call()

    deferring()
    assert stored(prefect_server) == before


@pytest.mark.parametrize("state", [None, Completed(), Paused()], ids=["over", "over twice", "paused"])
def test_a_deferred_task_submits_its_own_job_whatever_became_of_its_flow_run(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, credentials: Any, state: Any
) -> None:
    bought, deferred = list[str](), list[UUID]()
    credentials.save("deferred-submits", overwrite=True)

    @task
    def later(number: int) -> None:
        block = qr.load_credentials("deferred-submits")
        bought.append(qr.submit_job(block, [FLIP], backend=BACKEND).id)

    @flow
    def parent() -> None:
        bought.append(qr.submit_job(credentials, [FLIP], backend=BACKEND).id)
        deferred.extend(later.delay(number).task_run_id for number in range(2))

    async def forget() -> None:
        submission_memory().forget()

    async def work(task_run: Any) -> None:
        await TaskWorker(later).execute_task_run(task_run)

    flow_run, _ = ran(parent)
    if state is not None:
        asked(lambda client: client.set_flow_run_state(flow_run.id, state, force=True))
    for task_run_id in deferred:  # each in a process of its own
        for memory in ("_runs", "_counts", "_made", "_numbers"):
            monkeypatch.setattr(run_context, memory, type(getattr(run_context, memory))(100))
        network_loop().run(forget())
        asyncio.run(work(asked(lambda client, which=task_run_id: client.read_task_run(which))))
    assert len(set(bought)) == len(bought) == 3
    assert len(sandbox.control.jobs()) == 3
