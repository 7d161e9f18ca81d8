"""Clean up after finished flow runs and dead processes: close their open sessions, report their live jobs.

`instance_sweep` sweeps one instance; this module does what concerns all: which flow runs are over, notes of dead
processes that no block leads to, locks, stalled flow runs. Idempotent, and two sweeps at once do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.admission.locks import free_stuck_locks
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import load_each
from prefect_qruntime.observability.artifacts import Record, find_records
from prefect_qruntime.operations.instance_sweep import (
    LOOK_BACK,
    NOTED_BACK,
    Found,
    InstanceSweeper,
    Owners,
    Swept,
    owner_of,
)
from prefect_qruntime.operations.stalled import StalledRun, find_stalled
from prefect_qruntime.redact import get_logger
from prefect_qruntime.tasks.session_notes import SessionNote, session_notes

__all__ = ["SweepReport", "Swept", "arun_sweep", "rows", "run_sweep"]

log = get_logger(__name__)

_AT_ONCE = 8  # instances swept concurrently


class SweepReport(BaseModel):
    """What a sweep found and did.

    `sessions` were closed (or would be, in a dry run), `jobs` are live although their flow run is over,
    `problems` say what could not be swept. `stalled` flow runs are shown as running although their process is gone;
    each says what to do. `is_clean` says whether nothing is left to do.
    """

    model_config = ConfigDict(frozen=True)

    dry_run: bool
    blocks: list[str]
    sessions: list[Swept]
    jobs: list[Swept]
    problems: list[str]
    stalled: list[StalledRun] = []

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found, or everything found was handled."""
        return not (self.problems or self.stalled) and all(
            entry.is_dealt_with for entry in (*self.sessions, *self.jobs)
        )


def run_sweep(blocks: Iterable[str] | None = None, *, dry_run: bool = False, cancel_jobs: bool = False) -> SweepReport:
    """Sweep; for code without an event loop.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        dry_run: Report only, change nothing.
        cancel_jobs: Also cancel live jobs whose flow run was cancelled, failed or completed. Jobs of a
            crashed run are only reported: it may run again and attach to them.

    Returns:
        What was found and done.
    """
    return network_loop().run(_sweep(blocks, dry_run=dry_run, cancel_jobs=cancel_jobs))


async def arun_sweep(
    blocks: Iterable[str] | None = None, *, dry_run: bool = False, cancel_jobs: bool = False
) -> SweepReport:
    """As `run_sweep`, for async code."""
    return await network_loop().arun(_sweep(blocks, dry_run=dry_run, cancel_jobs=cancel_jobs))


async def _sweep(blocks: Iterable[str] | None, *, dry_run: bool, cancel_jobs: bool) -> SweepReport:
    loaded, problems = await load_each(blocks)
    records = await find_records("session")
    jobs = await find_records("job", since=datetime.now(UTC) - NOTED_BACK)
    noted = {owner for record in (*records, *jobs) if (owner := owner_of(record)) is not None}
    owners = Owners(noted)
    unfinished = _unfinished(jobs)
    notes = await session_notes(records)
    found = {name: Found() for name in loaded}
    instances: dict[str, list[InstanceSweeper]] = {}
    for name, credentials in loaded.items():
        same = instances.setdefault(credentials.crn, [])
        same.append(
            InstanceSweeper(
                name, credentials.get_client(), owners, records, notes, unfinished, dry_run, found[name], same
            )
        )
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one_after_the_other(same: list[InstanceSweeper]) -> None:
        async with at_once:
            for sweeper in same:  # blocks of one instance would close the same sessions
                await sweeper.sweep(cancel_jobs)

    # Concurrently, because giving up on an instance that does not answer takes minutes.
    await asyncio.gather(*(one_after_the_other(same) for same in instances.values()))
    if not dry_run:
        await _free_locks()
    return SweepReport(
        dry_run=dry_run,
        blocks=sorted({*loaded, *problems}),
        sessions=[swept for part in found.values() for swept in part.sessions],
        jobs=[swept for part in found.values() for swept in part.jobs],
        problems=[
            problem
            for name in sorted({*loaded, *problems})
            for problem in ([problems[name]] if name in problems else found[name].problems)
        ]
        + (_out_of_reach(notes, [one for same in instances.values() for one in same]) if blocks is None else []),
        stalled=await find_stalled(noted),
    )


async def _free_locks() -> None:
    """Free the locks of processes that died."""
    try:
        for lock in await free_stuck_locks():
            log.warning("The lock %s was freed. Its holder (%s) sent no more heartbeats.", lock.name, lock.who)
    except Exception as error:
        log.warning("The locks in Prefect could not be read: %r", error)


def _out_of_reach(notes: list[SessionNote], sweepers: list[InstanceSweeper]) -> list[str]:
    """Report the open sessions of dead processes that no saved block leads to."""
    recent = datetime.now(UTC) - LOOK_BACK
    return [
        f"session {note.meta.get('session') or 'without an id'}, opened by {note.opener}, was left open, and no saved "
        f"credentials block leads to its instance {note.meta.get('crn')}. Save one and sweep again."
        for note in notes
        if note.is_gone and not any(sweeper.reaches(note) for sweeper in sweepers)
        if note.record.updated is None or note.record.updated > recent  # an older one has closed by itself
    ]


def _unfinished(jobs: list[Record]) -> dict[str, Record]:
    """The records of jobs without an end or without a final usage, by job."""
    newest: dict[str, Record] = {}
    for record in jobs:
        newest.setdefault(record.meta["id"], record)
    return {
        job_id: record
        for job_id, record in newest.items()
        if not record.is_over or record.meta.get("usage_final") == "false"
    }


def rows(report: SweepReport) -> list[dict[str, Any]]:
    """The report as rows of a table."""
    return [
        {"kind": kind, **swept.model_dump()}
        for kind, items in (("session", report.sessions), ("job", report.jobs))
        for swept in items
    ] + [
        {
            "kind": "flow run",
            "id": run.id,
            "block": None,
            "flow_run": run.name,
            "flow_state": "Running",
            "action": f"{run.evidence} {run.next_step}",
            "url": None,
            "process": None,
        }
        for run in report.stalled
    ]
