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
import functools
from collections.abc import Mapping
from typing import Any, TypedDict

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun

from prefect_qruntime import prefect_api
from prefect_qruntime.cancellation import POLICY_MARK, cancel_jobs_of
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, leading_to, load_each, that_sees
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Place, Record, attached_jobs, find_records, is_of_deferred_task
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
    jobs += await attached_jobs(family, since=flow_run.created)  # also if a third one attached to it later
    sessions = await find_records("session", flow_run_ids=family)
    blocks = _blocks(flow_run, [*jobs, *sessions])
    named, wrong = await load_each(blocks) if blocks else ({}, {})
    for block in wrong:
        log.error("Credentials block %r cannot be loaded.", block)
    live = {r.meta["id"]: r for r in jobs if cancel_jobs and not r.is_over and r.place != Place("", None)}
    # After a crash a deferred task goes on with its session.
    open_ones = [
        r for r in sessions if not (r.is_closed or (drain and (r.is_draining or await is_of_deferred_task(r))))
    ]
    left = {r.meta["session"]: r for r in open_ones if r.meta.get("session")}
    reaches = await leading_to([record.place for record in (*live.values(), *left.values())], named)
    if cancel_jobs:
        await _cancel(flow_run, live, named, reaches)
    for session_id, record in left.items():
        try:
            await _close(session_id, record, reaches, drain=drain)
        except QuantumRuntimeError as error:
            crn = record.meta.get("crn", "")
            log.error("Session %s of flow run %s stays open in instance %s: %s", session_id, flow_run.id, crn, error)
    with contextlib.suppress(Exception):
        await write_summary(str(flow_run.id), [record.meta["id"] for record in jobs])


Blocks = Mapping[str, QuantumRuntimeCredentials]


async def _cancel(
    flow_run: FlowRun, live: Mapping[str, Record], named: Blocks, reaches: Mapping[Place, Blocks]
) -> None:
    blocks = dict(named)
    for found in reaches.values():
        blocks |= found
    # The service's list may lag; the jobs recorded here are known to exist.
    noted: dict[str, list[str]] = {block: [] for block in blocks}
    found_for = dict[Place, str]()  # one key submitted all jobs of a saved block, so one answer will do
    for job_id, record in live.items():
        place = record.place
        try:
            block = found_for.get(place) or await that_sees(place, reaches, functools.partial(_job, job_id))
        except QuantumRuntimeError as error:
            log.error("Job %s of flow run %s lives on: %s", job_id, flow_run.id, error)
        else:
            if place.block:
                found_for[place] = block
            noted[block].append(job_id)
    for block, credentials in blocks.items():
        try:
            done = await cancel_jobs_of(credentials.get_client(), str(flow_run.id), noted[block])
            ended = sum(job.status is JobStatus.CANCELLED for job in done)
            log.info("flow run %s: %s cancelled", flow_run.id, many(ended, "live job"))
        except QuantumRuntimeError as error:
            log.error("Not all jobs of flow run %s on block %r are cancelled: %s", flow_run.id, block, error)


async def _job(job_id: str, client: QuantumRuntimeClient) -> Job:
    return await client.job(job_id)


async def _close(session_id: str, record: Record, reaches: Mapping[Place, Blocks], *, drain: bool) -> None:
    block = await that_sees(record.place, reaches, lambda client: client.session(session_id))
    read = await reaches[record.place][block].get_client().close_session(session_id, drain=drain)
    state = read.state if read is not None else "closed"
    log.info("session %s: %s", session_id, state)
    ref = SessionRef(id=session_id, backend=record.meta.get("backend"), state=state)
    owner = str(record.flow_run_id) if record.flow_run_id else None
    notifications.session_event("closed", ref, flow_run_id=owner, drain=drain)


def _blocks(flow_run: FlowRun, records: list[Record]) -> set[str]:
    named = {record.meta["block"] for record in records if record.meta.get("block")}
    parameter = (flow_run.parameters or {}).get("credentials_block")
    return named | ({parameter} if isinstance(parameter, str) and parameter else set())
