"""Tasks are not deferred to a task worker: Prefect would store the credentials block with its key in clear."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import Task

import prefect_qruntime as qr
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
TASKS = sorted(name for name in qr.__all__ if isinstance(getattr(qr, name), Task))


def test_there_are_tasks() -> None:
    assert {"submit_job", "asubmit_job", "wait_for_completion", "open_session", "list_backends"} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("changed", [False, True], ids=["as it is", "with options"])
def test_no_task_is_deferred(prefect_server: PrefectServer, credentials: Any, name: str, changed: bool) -> None:
    task: Any = getattr(qr, name)
    task = task.with_options(name=task.name, retries=0) if changed else task
    before = {path for path in (prefect_server.home / "storage").rglob("*") if path.is_file()}
    for method, arguments in (("delay", (credentials,)), ("apply_async", ((credentials,),)), ("serve", ())):
        with pytest.raises(qr.InvalidInput, match=f"`{task.name.replace(' ', '_')}` has no `{method}`.*run_deployment"):
            getattr(task, method)(*arguments)
    assert {path for path in (prefect_server.home / "storage").rglob("*") if path.is_file()} == before
