"""Records in Prefect: one artifact per job, session, flow run and wait, for people and for this package.

The artifact's text is for the run page; its metadata lets a hook, the sweep or the command line in another process find
jobs and sessions, and the credentials block for them. Neither holds a secret.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

import httpx
import orjson
from cachetools import LRUCache
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey, FlowRunFilter
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.client.connection import Connection, instance_name
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.models import JobStatus
from prefect_qruntime.prefect_api import api, current_flow_run_id
from prefect_qruntime.redact import plain_text
from prefect_qruntime.run_context import PROCESS_FACTS, process_is_gone

__all__ = [
    "ATTACHED",
    "OPEN",
    "Place",
    "Record",
    "artifact_key",
    "attached_jobs",
    "deployments_of_deleted",
    "drop_record",
    "find_record",
    "find_records",
    "is_of_deferred_task",
    "job_owners",
    "mark_closed",
    "open_note",
    "recent_records",
    "upsert",
    "upsert_session",
]

Kind = Literal["comparison", "hold", "instance", "job", "key", "session", "summary", "wait"]
Write = Callable[[Mapping[str, str], str], str]
"""Makes a record's text from all recorded facts and from its old text."""
Merge = Callable[[Mapping[str, str], Mapping[str, str]], dict[str, str]]
"""Joins the facts recorded before and the new ones."""

_PAGE = 200
OPEN = "open "
"""Begins the name of a summary's metadata about a job that has no page of its own yet."""
ATTACHED = "attached "
"""Begins the name of a summary's metadata about a job that its flow run attached to."""
_OPEN_FACTS = (
    "state",
    "block",
    "instance",
    "flow_run",
    "on_cancel",
    "noted",
    "key",
    "backend",
    "program",
    "session",
    "deferred",
    "url",
)
_REMEMBER = 30.0  # seconds
_KEEP = 2048
_META_LIMIT = 500  # characters that Prefect allows in one metadata value


class Place(NamedTuple):
    """Where a recorded job or session is.

    Attributes:
        block: Name of the credentials block with which it was made. It may be another block's by now.
        instance: Names the instance, see `Connection.instance`; None if records did not name it yet.
    """

    block: str
    instance: str | None

    def is_reached(self, connection: Connection, block: str) -> bool:
        """Whether it is in the instance that a credentials block leads to, whatever the name of the block is.

        Args:
            connection: The block's.
            block: The block's name, which decides if the instance is not known.
        """
        return self.block == block if self.instance is None else self.instance == connection.instance


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a job, session, flow run or wait in Prefect."""

    artifact_id: UUID
    key: str
    meta: Mapping[str, str]
    flow_run_id: UUID | None
    updated: datetime | None
    text: str = ""

    @property
    def is_over(self) -> bool:
        """Whether a job's end was recorded."""
        status = JobStatus.of(self.meta.get("state", ""))
        return status is not None and status.is_terminal

    @property
    def is_closed(self) -> bool:
        """Whether a session's end was recorded."""
        return (self.meta.get("state") or "").lower() == "closed"

    @property
    def is_draining(self) -> bool:
        """Whether a session was recorded as one that takes no more jobs and closes by itself."""
        return self.meta.get("state") == "draining"

    @property
    def owner(self) -> str | None:
        """The flow run that it names as the owner, or else the one that wrote it."""
        return self.meta.get("flow_run") or (str(self.flow_run_id) if self.flow_run_id else None)

    @property
    def place(self) -> Place:
        """Where the job or session is."""
        crn, instance = self.meta.get("crn"), self.meta.get("instance")
        if crn:
            instance = ""  # that of an address which cannot be read is none that a block leads to
            with contextlib.suppress(ValueError):
                instance = instance_name(crn, self.meta.get("base_url") or "")
        return Place(self.meta.get("block") or "", instance)

    def leads_to(self, connection: Connection, block: str) -> bool:
        """As `Place.is_reached`, for its job or session."""
        return self.place.is_reached(connection, block)


def artifact_key(kind: Kind, identifier: str) -> str:
    """An artifact key: Prefect takes lower-case letters, digits and dashes only.

    Example:
        ```python
        from prefect_qruntime.observability.artifacts import artifact_key

        assert artifact_key("job", "D1_x") == "qruntime-job-d1-x"
        ```
    """
    return f"qruntime-{kind}-" + re.sub(r"[^a-z0-9-]", "-", identifier.lower())


def _record(artifact: Artifact) -> Record:
    return Record(
        artifact_id=artifact.id,
        key=artifact.key or "",
        meta=artifact.metadata_ or {},
        flow_run_id=artifact.flow_run_id,
        updated=artifact.updated,
        text=artifact.data if isinstance(artifact.data, str) else "",
    )


async def upsert(
    kind: Kind,
    identifier: str,
    text: str | Write,
    meta: Mapping[str, str | None],
    *,
    defaults: Mapping[str, str] | None = None,
    new: bool = False,
    drop: Iterable[str] = (),
    flow_run_id: str | None = None,
    describe: Callable[[Mapping[str, str]], str] | None = None,
    merge: Merge | None = None,
) -> None:
    """Write or complete a record. Runs on the network loop.

    Args:
        kind: What it is about.
        identifier: Its id.
        text: Markdown for the run page, or a function that makes it.
        meta: Plain facts; empty ones are left out, facts recorded before stay.
        defaults: Facts that apply only if they were not recorded before.
        new: Whether it cannot exist yet, which saves a request.
        drop: Names of recorded facts to remove.
        flow_run_id: The flow run on whose page it is; default the one the caller is in.
        describe: Makes its description, the line under its title in lists, from all recorded facts.
        merge: Joins the facts recorded before and the new ones; by default a new fact replaces the old one.

    Raises:
        Exception: Prefect's API failed.
    """
    client, key = await api(), artifact_key(kind, identifier)
    facts = {name: plain_text(value)[:_META_LIMIT] for name, value in meta.items() if value}
    facts = {"kind": kind, "id": identifier, **facts}

    def description(noted: Mapping[str, str]) -> str:
        return describe(noted) if describe is not None else f"{kind.capitalize()} {identifier}"

    async def complete(known: Record | None) -> bool:
        if known is None:
            return False
        gone = set(drop)
        kept = {name: value for name, value in known.meta.items() if name not in gone}
        joined = merge(kept, facts) if merge is not None else {**kept, **facts}
        merged = {name: value[:_META_LIMIT] for name, value in {**(defaults or {}), **joined}.items()}
        written = _text(text, merged, known.text)
        change = ArtifactUpdate(data=written, description=description(merged), metadata_=merged)
        if not await _update(client, known.artifact_id, change):
            return False
        _remember(replace(known, meta=merged, text=written))
        return True

    # A record about a whole flow run belongs to none of its tasks.
    task_context = TaskRunContext.get() if flow_run_id is None else None
    owner = flow_run_id or current_flow_run_id()
    # One at a time in this process: each writer keeps what it found.
    async with network_loop().lock(f"record:{key}"):
        if not new and (await complete(_remembered(key)) or await complete(await find_record(kind, identifier))):
            return
        facts = {**(defaults or {}), **facts}
        created = await _create(
            client,
            ArtifactCreate(
                key=key,
                type="markdown",
                description=description(facts),
                data=_text(text, facts, ""),
                metadata_=facts,
                flow_run_id=UUID(owner) if owner else None,
                task_run_id=task_context.task_run.id if task_context is not None else None,
            ),
        )
        _remember(_record(created))


# `PrefectClient.create_artifact` and `update_artifact` emit an event for each write, the second one with the whole text
# in it: a third of the server's work for a page. The server's own event of the key and ours of the job say it already.


async def _create(client: PrefectClient, artifact: ArtifactCreate) -> Artifact:
    answer = await client.request("POST", "/artifacts/", json=artifact.model_dump(mode="json", exclude_unset=True))
    return Artifact.model_validate(answer.json())


async def _update(client: PrefectClient, artifact_id: UUID, change: ArtifactUpdate) -> bool:
    """Change an artifact; returns False if it was deleted meanwhile."""
    body = change.model_dump(mode="json", exclude_unset=True)
    try:
        await client.request("PATCH", "/artifacts/{id}", path_params={"id": artifact_id}, json=body)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return False
        raise
    return True


async def upsert_session(
    token: str,
    session_id: str | None,
    text: str,
    meta: Mapping[str, str | None],
    *,
    new: bool = False,
    describe: Callable[[Mapping[str, str]], str] | None = None,
) -> UUID | None:
    """Write or complete a session's record: under its token until it has an id, and under the id from then on.

    An artifact keeps its key, so a new record is written under the id. A process that dies before the first one is
    dropped leaves both; a reader finds the session's id in one and none in the other.

    Args:
        token: Identifies the record before the session has an id.
        session_id: The session's id, once it has one.
        text: Markdown for the run page.
        meta: Plain facts.
        new: Whether it cannot exist yet.
        describe: Makes its description.

    Returns:
        The first record, if the caller is to drop it now.

    Raises:
        Exception: Prefect's API failed.
    """
    if session_id is None:
        await upsert("session", token, text, meta, new=new, describe=describe)
        return None
    recent = _writes().recent
    first = recent.get(artifact_key("session", token))
    if first is not None:
        facts = {name: value for name, value in first[1].meta.items() if name not in ("kind", "id")}
        await upsert("session", session_id, text, {**facts, **meta, "token": token}, new=True, describe=describe)
        recent.pop(first[1].key, None)
        return first[1].artifact_id
    # Recorded by another process, perhaps under the token only.
    by_id = artifact_key("session", session_id) in recent or await find_record("session", session_id) is not None
    by_token = not by_id and await find_record("session", token) is not None
    await upsert("session", token if by_token else session_id, text, meta, describe=describe)
    return None


class _Writes:
    """The records that this process wrote recently."""

    def __init__(self) -> None:
        self.recent: LRUCache[str, tuple[float, Record]] = LRUCache(_KEEP)


def _writes() -> _Writes:
    return network_loop().state(_Writes)


def _remembered(key: str) -> Record | None:
    """A record that this process wrote recently, to save a request; other processes rarely write while a flow runs."""
    written, record = _writes().recent.get(key, (0.0, None))
    return record if time.monotonic() - written < _REMEMBER else None


def _remember(record: Record) -> None:
    _writes().recent[record.key] = (time.monotonic(), record)


def _text(text: str | Write, facts: Mapping[str, str], old: str) -> str:
    return text if isinstance(text, str) else text(facts, old)


async def find_record(kind: Kind, identifier: str) -> Record | None:
    """Find the record of one job or session, or None. Runs on the network loop."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(kind, identifier)]))
    found = await (await api()).read_artifacts(artifact_filter=wanted, limit=1, sort=ArtifactSort.UPDATED_DESC)
    return _record(found[0]) if found else None


async def find_records(
    kind: Kind,
    *,
    identifiers: Iterable[str] | None = None,
    flow_run_ids: list[UUID] | None = None,
    of: FlowRunFilter | None = None,
    since: datetime | None = None,
    prefix: str = "",
) -> list[Record]:
    """Find all records of a kind, newest first; jobs that are noted only in a flow run's summary come last.

    What a summary notes of a job without a page of its submitter completes the page that another process made.

    Args:
        kind: Their kind.
        identifiers: Only those with these ids.
        flow_run_ids: Only of these flow runs.
        of: Only of the flow runs that this selects.
        since: Only those written since then.
        prefix: How their identifiers begin.
    """
    found = await _read(kind, identifiers, flow_run_ids, of, since, prefix)
    if kind != "job" or prefix:
        return found
    newest = {record.meta.get("id"): place for place, record in reversed([*enumerate(found)])}
    wanted = None if identifiers is None else set(identifiers)
    for summary in await _read("summary", None, flow_run_ids, of, since, ""):
        for note in _open_jobs(summary):
            job_id = note.meta["id"]
            if (place := newest.get(job_id)) is not None:
                # The sweep or a watcher may have made the page, which did not submit the job and does not know its key.
                found[place] = replace(found[place], meta={**note.meta, **found[place].meta})
            elif wanted is None or job_id in wanted:
                newest[job_id] = len(found)
                found.append(note)
    return found


async def recent_records(kind: Kind) -> AsyncIterator[list[Record]]:
    """Yield the records of a kind page by page, the most recently written first. On the network loop."""
    async for page in _pages(ArtifactFilter(key=ArtifactFilterKey(like_=f"qruntime-{kind}-%"))):
        yield page


async def _pages(wanted: ArtifactFilter, of: FlowRunFilter | None = None) -> AsyncIterator[list[Record]]:
    offset = 0
    while True:
        page = await (await api()).read_artifacts(
            artifact_filter=wanted, flow_run_filter=of, limit=_PAGE, offset=offset, sort=ArtifactSort.UPDATED_DESC
        )
        # One without an id was written by something else.
        yield [record for artifact in page if (record := _record(artifact)).meta.get("id")]
        offset += len(page)
        if len(page) < _PAGE:
            return


async def job_owners(job_id: str, *, since: datetime) -> set[str]:
    """Find the flow runs that submitted a job or attached to it, in its record and the summaries written since then."""
    pages = await _read("job", [job_id], None, None, None, "")
    summaries = await _read("summary", None, None, None, since, "")
    notes = [note for summary in summaries for note in _open_jobs(summary) if note.meta["id"] == job_id]
    found = [*pages, *notes, *(summary for summary in summaries if ATTACHED + job_id in summary.meta)]
    return {one.owner for one in found if one.owner is not None}


async def attached_jobs(flow_run_ids: list[UUID], *, since: datetime | None) -> list[Record]:
    """Find the jobs that flow runs attached to since then: their pages may name other ones."""
    names = [name for summary in await _read("summary", None, flow_run_ids, None, None, "") for name in summary.meta]
    found = [name.removeprefix(ATTACHED) for name in names if name.startswith(ATTACHED)]
    return await find_records("job", identifiers=found, since=since) if found else []


async def deployments_of_deleted(flow_run_ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """Find the deployments of flow runs that Prefect does not know any more, which their summaries name.

    Those of another installation, and of flow runs without a deployment, are left out.
    """
    wanted, found = sorted(flow_run_ids), dict[UUID, UUID]()
    for start in range(0, len(wanted), _PAGE):
        for summary in await find_records("summary", flow_run_ids=wanted[start : start + _PAGE]):
            with contextlib.suppress(KeyError, ValueError):
                found[UUID(summary.meta["id"])] = UUID(summary.meta["deployment"])
    return found


def open_note(facts: Mapping[str, str | None]) -> str:
    """Encode the facts of a job without a page for a summary's metadata; drop the last ones if there are too many."""
    names = [name for name in _OPEN_FACTS if facts.get(name)]
    while True:
        text = orjson.dumps({name: plain_text(facts[name] or "") for name in names}).decode()
        if len(text) <= _META_LIMIT:
            return text
        names.pop()


def _open_jobs(summary: Record) -> Iterator[Record]:
    """Yield the jobs that a summary notes because they had no page of their own."""
    process = {name: summary.meta[name] for name in PROCESS_FACTS if name in summary.meta}
    for name, note in summary.meta.items():
        if name.startswith(OPEN):
            job_id, noted = name.removeprefix(OPEN), None
            with contextlib.suppress(ValueError):
                noted = orjson.loads(note)
            if isinstance(noted, dict) and all(isinstance(value, str) for value in noted.values()):
                facts = {"kind": "job", "id": job_id, **process, **noted}
                yield replace(summary, key=artifact_key("job", facts["id"]), meta=facts, text="")


async def _read(
    kind: Kind,
    identifiers: Iterable[str] | None,
    flow_run_ids: list[UUID] | None,
    of: FlowRunFilter | None,
    since: datetime | None,
    prefix: str,
) -> list[Record]:
    """Read the records of a kind page by page; see `find_records`."""
    found = list[Record]()
    keys = [artifact_key(kind, identifier) for identifier in identifiers] if identifiers is not None else None
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(like_=f"qruntime-{kind}-{prefix}%", any_=keys),
        flow_run_id=ArtifactFilterFlowRunId(any_=flow_run_ids) if flow_run_ids is not None else None,
    )
    async for page in _pages(wanted, of):
        for record in page:
            if since is not None and record.updated is not None and record.updated < since:
                return found
            found.append(record)
    return found


async def mark_closed(record: Record) -> None:
    """Note in a session's record that the session is closed."""
    change = ArtifactUpdate(metadata_={**record.meta, "state": "closed"})
    await (await api()).update_artifact(record.artifact_id, change)


async def is_of_deferred_task(record: Record) -> bool:
    """Whether a job or session is of a deferred task that may still run, though its flow run is over.

    If a task's process was killed on another host, Prefect shows the task as running forever. Its session ends at its
    limit.
    """
    deferred = record.meta.get("deferred")
    if not deferred or record.is_closed or process_is_gone(record.meta):
        return False
    for task_run_id in deferred.split(","):
        with contextlib.suppress(ObjectNotFound, ValueError):
            state = (await (await api()).read_task_run(UUID(task_run_id))).state
            if state is None or not state.is_final():
                return True
    return False


async def drop_record(artifact_id: UUID) -> None:
    """Delete a record; do nothing if it is gone already."""
    with contextlib.suppress(ObjectNotFound):
        await (await api()).delete_artifact(artifact_id)
