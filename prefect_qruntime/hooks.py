"""Hooks that a flow adds with one line, in case the flow's own process can no longer clean up.

```python
from prefect import flow
from prefect_qruntime import hooks

@flow(**hooks.cancel)   # or **hooks.detach
def nightly(credentials_block: str) -> None: ...
```

Prefect may run them in another process, so they find everything from outside: jobs by their
`qr-flow:` tag, sessions and the credentials block by the records in Prefect. They are plain functions
because Prefect does not run partials and methods as cancellation hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun

from prefect_qruntime import prefect_api
from prefect_qruntime.cancellation import POLICY_MARK, cancel_jobs_of
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, load_each
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import JobStatus, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Record, find_records
from prefect_qruntime.observability.run_summary import write_summary
from prefect_qruntime.redact import get_logger, many

__all__ = ["Hooks", "cancel", "detach", "on_cancellation", "on_cancellation_detach", "on_crashed"]

log = get_logger(__name__)


class Hooks(TypedDict):
    """The hook arguments of `@flow`."""

    on_cancellation: list[Any]
    on_crashed: list[Any]


def on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the flow run's live jobs and drop its sessions."""
    network_loop().run(clean_up(flow_run, cancel_jobs=True, drain=False))


def on_cancellation_detach(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Leave the jobs running and let the sessions close once their queued jobs are done."""
    network_loop().run(clean_up(flow_run, cancel_jobs=False, drain=True))


def on_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Leave the jobs running, to be attached to; sessions take no more jobs and close when drained."""
    network_loop().run(clean_up(flow_run, cancel_jobs=False, drain=True))


setattr(on_cancellation, POLICY_MARK, "cancel")
setattr(on_cancellation_detach, POLICY_MARK, "detach")

cancel: Hooks = {"on_cancellation": [on_cancellation], "on_crashed": [on_crashed]}
"""A cancelled flow run cancels its jobs; a crashed one leaves them to be attached to."""

detach: Hooks = {"on_cancellation": [on_cancellation_detach], "on_crashed": [on_crashed]}
"""Jobs outlive the flow run in every case."""


async def clean_up(flow_run: FlowRun, *, cancel_jobs: bool, drain: bool) -> None:
    """Clean up after a flow run that cannot do so itself. Runs on the network loop.

    Args:
        flow_run: The flow run; its subflows are cleaned up with it.
        cancel_jobs: Whether its live jobs are cancelled.
        drain: Whether the queued jobs of its sessions may still run.
    """
    family = await prefect_api.family(flow_run.id)
    jobs = await find_records("job", flow_run_ids=family)
    # A job attached to by an explicit key is recorded under the flow run that submitted it.
    jobs += [r for r in await find_records("job", since=flow_run.created) if r.meta.get("flow_run") == str(flow_run.id)]
    sessions = await find_records("session", flow_run_ids=family)
    named, wrong = await load_each(_blocks(flow_run, [*jobs, *sessions]))
    for block in wrong:
        log.error("Credentials block %r cannot be loaded. Jobs that were submitted with it stay.", block)
    left = list({r.meta["session"]: r for r in sessions if r.meta.get("session") and not r.is_closed}.values())
    reaches = await _reach(named, left)
    for block, credentials in {**named, **dict(reaches.values())}.items():
        if cancel_jobs:
            # The service's list may lag; the jobs recorded here are known to exist.
            noted = [r.meta["id"] for r in jobs if r.meta.get("block") == block and not r.is_over]
            try:
                done = await cancel_jobs_of(credentials.get_client(), str(flow_run.id), noted)
                ended = sum(job.status is JobStatus.CANCELLED for job in done)
                log.info("flow run %s: %s cancelled", flow_run.id, many(ended, "live job"))
            except QuantumRuntimeError as error:
                log.error("Not all jobs of flow run %s on block %r are cancelled: %s", flow_run.id, block, error)
    for record in left:
        session_id = record.meta["session"]
        if session_id not in reaches:
            log.error(
                "Session %s of flow run %s stays open: no saved credentials block leads to its instance %s.",
                session_id,
                flow_run.id,
                record.meta.get("crn", ""),
            )
            continue
        try:
            await _close(reaches[session_id][1], record, drain=drain)
        except QuantumRuntimeError as error:
            log.error("Session %s of flow run %s could not be closed: %s", session_id, flow_run.id, error)
    with contextlib.suppress(Exception):
        await write_summary(str(flow_run.id), [record.meta["id"] for record in jobs])


async def _reach(
    named: Mapping[str, QuantumRuntimeCredentials], sessions: Sequence[Record]
) -> dict[str, tuple[str, QuantumRuntimeCredentials]]:
    """The block that leads to each session's instance, by the session's id.

    Since a session was opened, its block may have been renamed, deleted, or edited so that it leads to another
    instance. That one would say that it knows no such session, and the session would count as closed.
    """

    def found_in(blocks: Mapping[str, QuantumRuntimeCredentials]) -> dict[str, tuple[str, QuantumRuntimeCredentials]]:
        return {
            record.meta["session"]: (name, one)
            for record in sessions
            for name, one in blocks.items()
            if record.leads_to(one.get_client().connection, name)
        }

    found = found_in(named)
    return found if len(found) == len(sessions) else {**found_in((await load_each(None))[0]), **found}


async def _close(credentials: QuantumRuntimeCredentials, record: Record, *, drain: bool) -> None:
    session_id = record.meta["session"]
    read = await credentials.get_client().close_session(session_id, drain=drain)
    state = read.state if read is not None else "closed"
    log.info("session %s: %s", session_id, state)
    ref = SessionRef(id=session_id, backend=record.meta.get("backend"), state=state)
    owner = str(record.flow_run_id) if record.flow_run_id else None
    notifications.session_event("closed", ref, flow_run_id=owner, drain=drain)


def _blocks(flow_run: FlowRun, records: list[Record]) -> set[str]:
    named = {record.meta["block"] for record in records if record.meta.get("block")}
    parameter = (flow_run.parameters or {}).get("credentials_block")
    return named | ({parameter} if isinstance(parameter, str) and parameter else set())
