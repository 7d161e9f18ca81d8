"""What the flow tests share: circuits, and looks at what Prefect and the sandbox hold afterwards."""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID
from xml.etree import ElementTree

from prefect import Flow, State
from prefect.artifacts import Artifact
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import Record, find_records
from prefect_qruntime.observability.run_page import flush
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_calls import asked

T = TypeVar("T")
BACKEND = "sandbox_ideal"
SVG = "{http://www.w3.org/2000/svg}"
FLIP = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
STAY = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; id q[0]; c = measure q;'


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from a sync test."""
    return asyncio.run(work)


def start(what: Flow[..., Any], flow_run: FlowRun) -> State[Any]:
    """Run a flow run as a worker would, until it ends or is suspended."""
    flow_run = asked(lambda client: client.read_flow_run(flow_run.id))
    try:
        end: Any = run_flow(what, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
        return asyncio.run(end) if inspect.iscoroutine(end) else end
    except Pause:
        return state_of(flow_run)


def state_of(flow_run: FlowRun) -> State[Any]:
    state = asked(lambda client: client.read_flow_run(flow_run.id)).state
    assert state is not None
    return state


def ran(flow: Flow[..., Any], *args: Any, **kwargs: Any) -> tuple[FlowRun, State[Any]]:
    """Run a flow; returns its run and its state instead of raising.

    What it noted is written, as it is at the end of a run's own process.
    """
    state = flow(*args, return_state=True, **kwargs)
    if asyncio.iscoroutine(state):
        state = asyncio.run(state)
    noted()
    return asked(lambda client: client.read_flow_run(state.state_details.flow_run_id)), state


def until(what: Callable[[], T], seconds: float = 90.0) -> T:
    """Poll until the answer is truthy; returns the last answer in any case."""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def task_runs(flow_run_id: UUID, number: int) -> list[TaskRun]:
    """The task runs of a flow run; they reach the server in the background."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))

    def look() -> list[TaskRun]:
        found = asked(lambda client: client.read_task_runs(flow_run_filter=wanted))
        over = all(task_run.state is not None and task_run.state.is_final() for task_run in found)
        return found if len(found) >= number and over else []

    return until(look)


def events(resource: str, number: int = 1, *, last: str | None = None) -> list[dict[str, Any]]:
    """Our events about a job or session, oldest first; they reach the server in the background.

    Waited for are so many, or the one that comes last.
    """
    wanted = {"filter": {"resource": {"id": [resource]}, "event": {"prefix": ["qruntime."]}}, "limit": 50}

    async def ask(client: PrefectClient) -> list[dict[str, Any]]:
        answer = await client._client.post("/events/filter", json=wanted)
        return sorted(answer.json()["events"], key=lambda event: str(event["occurred"]))

    def there() -> list[dict[str, Any]]:
        found = asked(ask)
        return found if len(found) >= number and last in (None, found[-1]["event"]) else []

    return until(there)


def noted() -> None:
    """Write what this process has to write in the background."""
    network_loop().run(flush())


def records(kind: Any, flow_run_id: UUID) -> list[Record]:
    """What a flow run noted in Prefect about its jobs or sessions."""
    noted()
    return network_loop().run(find_records(kind, flow_run_ids=[flow_run_id]))


def requests(sandbox: Sandbox, method: str, path: str) -> int:
    """How many requests of a kind the service took; `path` is an `fnmatch` pattern.

    A 401 does not count: the first request after a sandbox's reset meets one, as its tokens end then.
    """
    return sum(entry["status"] != 401 for entry in sandbox.control.journal(method, path))


def artifact(key: str) -> str:
    """The content of the latest artifact of a key."""
    noted()
    found = Artifact.get(key)
    assert found is not None
    return str(found.data)  # type: ignore[attr-defined]


def picture(markdown: str) -> ElementTree.Element:
    """The first picture that a markdown text carries."""
    found = re.search(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None, markdown
    return ElementTree.fromstring(base64.b64decode(found[1]))


def posts(sandbox: Sandbox) -> int:
    """How many `POST /jobs` the service handled; a 401 for a token of the test before is none."""
    return sum(entry["path"] == "/jobs" and entry["status"] != 401 for entry in sandbox.control.journal("POST"))
