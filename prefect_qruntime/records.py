"""What this package keeps in Prefect: one artifact per job and per session, readable by people and by us.

The artifact's text is for the run page; its metadata lets a hook, the sweep or the command line find
jobs and sessions from another process, together with the credentials block that opens them. No secret
is in either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import TaskRunContext

from prefect_qruntime.orchestration import api, current_flow_run_id
from prefect_qruntime.redact import redact

__all__ = ["Record", "artifact_key", "find_record", "find_records", "put_record"]

Kind = Literal["job", "session"]
_PAGE = 200
_META_LIMIT = 500  # characters Prefect takes for one metadata value


@dataclass(frozen=True, slots=True)
class Record:
    """A job or session as noted in Prefect."""

    artifact_id: UUID
    key: str
    meta: Mapping[str, str]
    flow_run_id: UUID | None
    updated: datetime | None


def artifact_key(kind: Kind, identifier: str) -> str:
    """An artifact key: Prefect takes lower-case letters, digits and dashes only.

    Example:
        ```python
        from prefect_qruntime.records import artifact_key

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
    )


async def put_record(
    kind: Kind, identifier: str, text: str, meta: Mapping[str, str | None], *, new: bool = False
) -> None:
    """Write or complete a record. Runs on the home loop, inside a run.

    Args:
        kind: What it is about.
        identifier: Its id.
        text: Markdown for the run page.
        meta: Plain facts; empty ones are left out.
        new: Whether it cannot exist yet, which saves a look.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    client, key = await api(), artifact_key(kind, identifier)
    facts = {name: redact(value)[:_META_LIMIT] for name, value in meta.items() if value}
    facts = {"kind": kind, "id": identifier, **facts}
    known = None if new else await find_record(kind, identifier)
    description = f"{kind.capitalize()} {identifier}"
    if known is not None:
        change = ArtifactUpdate(data=text, description=description, metadata_={**known.meta, **facts})
        await client.update_artifact(known.artifact_id, change)
        return
    flow_run_id, task_context = current_flow_run_id(), TaskRunContext.get()
    await client.create_artifact(
        ArtifactCreate(
            key=key,
            type="markdown",
            description=description,
            data=text,
            metadata_=facts,
            flow_run_id=UUID(flow_run_id) if flow_run_id else None,
            task_run_id=task_context.task_run.id if task_context is not None else None,
        )
    )


async def find_record(kind: Kind, identifier: str) -> Record | None:
    """The record of one job or session, or None. Runs on the home loop."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(kind, identifier)]))
    found = await (await api()).read_artifacts(artifact_filter=wanted, limit=1, sort=ArtifactSort.UPDATED_DESC)
    return _record(found[0]) if found else None


async def find_records(
    kind: Kind, *, flow_run_ids: list[UUID] | None = None, since: datetime | None = None
) -> list[Record]:
    """All records of a kind, newest first, of some flow runs or of all, and written since a moment or ever."""
    client, found, offset = await api(), list[Record](), 0
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(like_=f"qruntime-{kind}-%"),
        flow_run_id=ArtifactFilterFlowRunId(any_=flow_run_ids) if flow_run_ids is not None else None,
    )
    while True:
        page = await client.read_artifacts(
            artifact_filter=wanted, limit=_PAGE, offset=offset, sort=ArtifactSort.UPDATED_DESC
        )
        offset += len(page)
        for artifact in page:
            if since is not None and artifact.updated is not None and artifact.updated < since:
                return found
            found.append(_record(artifact))
        if len(page) < _PAGE:
            return found
