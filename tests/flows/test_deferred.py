"""Tasks are not deferred to a task worker: Prefect would store the credentials block with its key in clear."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from prefect import Task, flow
from prefect.task_runners import PrefectTaskRunner

import prefect_qruntime as qr
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
