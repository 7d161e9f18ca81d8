"""Record in Prefect the waits that flows hand over to a watcher in another process.

A flow run's own state says that it is suspended and for which job: the pause key names the job. A note holds what
the state cannot: the credentials block with which the job is read, and what happens to the jobs when the run is
cancelled. The note of a suspended flow run exists until that is over, any other as long as its wait does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.observability.artifacts import Place, Record, drop_record, find_records, upsert
from prefect_qruntime.prefect_api import api, flow_runs_by_id

__all__ = [
    "Wait",
    "drop_note",
    "is_suspended_with",
    "job_of",
    "no_longer_suspended",
    "note_left",
    "note_suspended",
    "notes",
    "pause_key",
    "pause_key_of",
    "suspended",
    "used_keys",
]

_KEY = "job-"
_TURN = "#"  # never part of a job id
_LEFT = "left-"


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait that was handed over.

    Attributes:
        job_id: The job.
        block: Name of the credentials block.
        flow_run_id: The flow run suspended for the job, or the one that left it.
        key: The pause key; None if no flow run is suspended and only an event is wanted.
        policy: What happens to the jobs when the flow run is cancelled.
        note: Id of the note in Prefect.
        instance: Names the job's instance, see `Place`.
    """

    job_id: str
    block: str
    flow_run_id: UUID | None
    key: str | None
    policy: Literal["cancel", "detach"]
    note: UUID
    instance: str | None = None

    @property
    def place(self) -> Place:
        """Where the job is."""
        return Place(self.block, self.instance)


def pause_key(job_id: str, used: Iterable[str] = ()) -> str:
    """The key to suspend with: `job-<id>`, then `job-<id>#2` and so on.

    Prefect takes each key once: a run that was resumed before its job was over needs another one.

    Example:
        ```python
        from prefect_qruntime.suspend.waits import pause_key

        assert pause_key("d1", used=["job-d1"]) == "job-d1#2"
        ```
    """
    taken, turn, key = set(used), 1, f"{_KEY}{job_id}"
    while key in taken:
        turn += 1
        key = f"{_KEY}{job_id}{_TURN}{turn}"
    return key


def job_of(key: str | None) -> str | None:
    """The job that a pause key names; None if the key is not one of ours."""
    return key.removeprefix(_KEY).partition(_TURN)[0] if key is not None and key.startswith(_KEY) else None


def pause_key_of(state: State | None) -> str | None:
    """The key that a flow run is suspended with now; None if it is not suspended."""
    return state.state_details.pause_key if state is not None and state.is_paused() else None


async def note_suspended(job_id: str, place: Place, *, flow_run_id: UUID, key: str, policy: str) -> None:
    """Record that a flow run is about to be suspended for a job.

    Raises:
        Exception: Prefect's API failed; then the run must not be suspended, because nothing would resume it.
    """
    text = f"Suspended until job `{job_id}` is over. `prefect-qruntime watch` resumes this flow run."
    meta = {"job": job_id, **place._asdict(), "key": key, "policy": policy, "flow_run": str(flow_run_id)}
    await upsert("wait", f"{flow_run_id}-{key}", lambda _facts, _old: text, meta, flow_run_id=str(flow_run_id))


async def note_left(job_id: str, place: Place, *, flow_run_id: str | None) -> None:
    """Record that a job's end is to be reported by an event, without a wait for it.

    Raises:
        Exception: Prefect's API failed.
    """
    text = f"`prefect-qruntime watch` reports the end of job `{job_id}` by an event."
    meta = {"job": job_id, **place._asdict(), "policy": "detach", "flow_run": flow_run_id}
    await upsert("wait", f"{_LEFT}{job_id}", lambda _facts, _old: text, meta)


def _wait(record: Record) -> Wait | None:
    job_id, block, owner = (record.meta.get(name) for name in ("job", "block", "flow_run"))
    if not job_id or not block:
        return None
    return Wait(
        job_id=job_id,
        block=block,
        flow_run_id=UUID(owner) if owner else None,
        key=record.meta.get("key"),
        policy="detach" if record.meta.get("policy") == "detach" else "cancel",
        note=record.artifact_id,
        instance=record.place.instance,
    )


async def notes(*, flow_run_ids: list[UUID] | None = None, of: FlowRunFilter | None = None) -> list[Wait]:
    """Read the recorded waits: those of some flow runs, of flow runs that `of` selects, or else of jobs left."""
    left = flow_run_ids is None and of is None
    found = await find_records("wait", flow_run_ids=flow_run_ids, of=of, prefix=_LEFT if left else "")
    waits = [wait for record in found if (wait := _wait(record)) is not None]
    return [wait for wait in waits if (wait.key is None) is left]


async def drop_note(wait: Wait) -> None:
    """Delete the note of a wait that is over. May be called twice."""
    await drop_record(wait.note)


async def used_keys(flow_run_id: UUID) -> set[str]:
    """The pause keys that a flow run has used."""
    flow_run = await (await api()).read_flow_run(flow_run_id)
    return set(flow_run.empirical_policy.pause_keys or ())


_PAGE = 200


async def suspended(known: Iterable[UUID]) -> AsyncIterator[list[FlowRun]]:
    """Read the suspended flow runs page by page, without those in `known`."""
    left_out = set(known)
    while True:
        page = await (await api()).read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(not_any_=sorted(left_out)),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.PAUSED]),
                    name=FlowRunFilterStateName(any_=["Suspended"]),
                ),
            ),
            limit=_PAGE,
        )
        if page:
            yield page
        if len(page) < _PAGE:
            return
        left_out |= {flow_run.id for flow_run in page}


async def no_longer_suspended(flow_run_ids: list[UUID]) -> list[UUID]:
    """The given flow runs that are no longer suspended."""
    left = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.PAUSED]))
    return [flow_run.id for flow_run in (await flow_runs_by_id(map(str, flow_run_ids), state=left)).values()]


async def is_suspended_with(flow_run_id: UUID, key: str) -> bool:
    """Whether a flow run is suspended with this key now."""
    try:
        flow_run = await (await api()).read_flow_run(flow_run_id)
    except ObjectNotFound:
        return False
    return pause_key_of(flow_run.state) == key
