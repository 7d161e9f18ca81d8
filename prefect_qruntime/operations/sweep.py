"""Clean up after finished flow runs and dead processes: close their open sessions, report their live jobs.

`instance_sweep` sweeps one instance; this module does what concerns all: which flow runs are over, notes of dead
processes that no block leads to, locks, stalled flow runs. Idempotent, and two sweeps at once do no harm.

A flow run is stalled if Prefect shows it as running although its process is gone. If a worker and its flow processes
are killed together, no part of Prefect reports it: the run stays `Running`. Run again under the same id it attaches to
its jobs; a copy of it ("Copy to new run" in the UI) is another flow run and submits them again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Scheduled
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.admission.locks import free_stuck_locks
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import check_flag
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import Attended, load_each, none_saved, read_each
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.hooks import clean_up
from prefect_qruntime.observability.artifacts import Kind, Record, find_records, is_of_deferred_task
from prefect_qruntime.operations.instance_sweep import (
    LOOK_BACK,
    NOTED_BACK,
    Found,
    InstanceSweeper,
    Owners,
    Swept,
    is_old,
)
from prefect_qruntime.prefect_api import api, dropping_limit, family, flow_runs_by_id, is_dropped
from prefect_qruntime.redact import get_logger, shown
from prefect_qruntime.run_context import process_is_gone
from prefect_qruntime.tasks.session_notes import SessionNote, is_note, session_notes

__all__ = [
    "Resumed",
    "StalledRun",
    "SweepReport",
    "Swept",
    "arun_sweep",
    "find_stalled",
    "resume_flow_run",
    "rows",
    "run_sweep",
    "silence",
]


log = get_logger(__name__)

_LOOKS, _LOOK_AGAIN = 20, 0.5
"""How often, and seconds after which, records of a flow run are read again that has just ended."""
_MISSED = 3  # heartbeats in a row after which a process counts as gone
_DEFAULT_BEAT = 180.0  # seconds; Prefect's own default


class StalledRun(BaseModel):
    """A flow run whose process is gone, the evidence, and how to continue without submitting a job twice.

    `is_certain` says whether the process itself was found to be gone. A process that is only silent may be alive.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    evidence: str
    next_step: str
    is_certain: bool = False


class Resumed(BaseModel):
    """A flow run that was scheduled again under its id, with the jobs that it will attach to."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    jobs: list[str]


async def find_stalled(flow_run_ids: Iterable[str], proofs: Proofs | None = None) -> list[StalledRun]:
    """Find the flow runs that Prefect shows as running although their process is gone. Runs on the network loop.

    Args:
        flow_run_ids: Which flow runs to look at.
        proofs: What was found out about their processes a moment ago.
    """
    proofs, found = proofs or Proofs(), []
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    for run_id, flow_run in (await flow_runs_by_id(flow_run_ids, state=running)).items():
        if flow_run.parent_task_run_id is not None and flow_run.deployment_id is None:
            continue  # a subflow: it goes on with the run above it
        proof = await proofs.of(flow_run)
        evidence = proof or await _missed_heartbeats(flow_run)
        if evidence is not None:
            step = await _next_step(flow_run, open_sessions=proof is None)
            found.append(
                StalledRun(
                    id=run_id, name=flow_run.name, evidence=evidence, next_step=step, is_certain=proof is not None
                )
            )
    return found


class Proofs:
    """The proofs that processes of flow runs are gone. Each start of a flow run is looked at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[UUID, str | None, datetime | None], str | None] = {}

    async def of(self, flow_run: FlowRun) -> str | None:
        """The proof that a flow run's process is gone; None if it may be alive."""
        start = flow_run.id, flow_run.infrastructure_pid, flow_run.state.timestamp if flow_run.state else None
        if start not in self._known:
            self._known[start] = await _gone_process(flow_run)
        return self._known[start]


async def _gone_process(flow_run: FlowRun) -> str | None:
    """The proof that a flow run's process is gone; None if it may be alive."""
    # A worker records the id of the run's process. If that process opened sessions or submitted jobs itself, their
    # records identify it. Of an earlier process with the same id, as in a container that was restarted, a record may
    # have been completed since.
    pid = (flow_run.infrastructure_pid or "").rpartition(":")[2]
    if not pid:
        return None
    noted = [
        record.meta
        for record in await _records(flow_run.id, "job", "session")
        if record.meta.get("pid") == pid and _noted_in_this_run(record, flow_run)
    ]
    if noted and all(map(process_is_gone, noted)):
        return f"Its process {pid} on {noted[0].get('host')} is gone."
    return None


async def _next_step(flow_run: FlowRun, *, open_sessions: bool = False) -> str:
    """What to do about a flow run whose process is gone.

    Args:
        flow_run: The flow run.
        open_sessions: Whether its sessions may be open because nothing closes them.
    """
    if flow_run.deployment_id is not None:
        return (
            f"Run `prefect-qruntime resume {flow_run.id}`: it runs again under the same id and attaches to its jobs. "
            "Do not use `Copy to new run`: a copy submits the jobs again."
        )
    jobs = await _jobs(flow_run.id)
    ids = f" ({', '.join(jobs)})" if jobs else ""
    step = (
        f"It has no deployment, so no worker can run it again. Fetch the results of its jobs by their ids{ids}, with "
        "`fetch_results`. A new run of the script submits the jobs again, unless they have a `submission_key`."
    )
    for record in await _records(flow_run.id, "session") if open_sessions else ():
        if (session_id := record.meta.get("session")) and not (record.is_closed or is_old(record)):
            step += (
                f" Its session {session_id} may be open and charging. If the process is gone, close it with "
                f"`prefect-qruntime sessions --close {session_id}`."
            )
    return step


async def _records(flow_run_id: UUID, *kinds: Kind) -> list[Record]:
    """The records of a flow run and of its subflows, which are in its process."""
    ids = await family(flow_run_id)
    return [record for kind in kinds for record in await find_records(kind, flow_run_ids=ids)]


async def _jobs(flow_run_id: UUID) -> list[str]:
    return [record.meta["id"] for record in await _records(flow_run_id, "job")]


def _noted_in_this_run(record: Record, flow_run: FlowRun) -> bool:
    """Whether a record was written since the flow run entered its present state, not by an earlier process of it."""
    began = flow_run.state.timestamp if flow_run.state is not None else None
    return began is not None and record.updated is not None and record.updated >= began


async def _missed_heartbeats(flow_run: FlowRun) -> str | None:
    body = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{flow_run.id}"]},
            "order": "DESC",
        },
        "limit": 2,
    }
    answer = await (await api()).request("POST", "/events/filter", json=body)
    beats = [datetime.fromisoformat(event["occurred"]) for event in answer.json().get("events", ())]
    began = flow_run.state.timestamp if flow_run.state is not None else None
    now = datetime.now(UTC)
    with contextlib.suppress(KeyError, ValueError):  # Prefect's clock, as this one may be wrong
        now = parsedate_to_datetime(answer.headers["date"])
    setting = get_current_settings().flows.heartbeat_frequency or _DEFAULT_BEAT
    return silence(beats, began=began, now=now, setting=setting)


def silence(beats: Sequence[datetime], *, began: datetime | None, now: datetime, setting: float) -> str | None:
    """The evidence of heartbeats that a process is gone; None if there is none.

    Args:
        beats: The last ones, newest first.
        began: Since when the flow run is in its present state.
        now: The time on the clock of the beats.
        setting: Seconds between heartbeats as configured here; the process may have another setting.
    """
    # Only those of this start of the flow run; if there are none, they are switched off and prove nothing.
    beats = [beat for beat in beats if began is not None and beat >= began - timedelta(seconds=5)]
    if not beats:
        return None
    # Two beats show the process's own setting; after one, it may have any that is usual.
    usual = max(setting, (beats[0] - beats[1]).total_seconds() if len(beats) > 1 else _DEFAULT_BEAT)
    silent = (now - beats[0]).total_seconds()
    if silent <= _MISSED * usual:
        return None
    return f"Its last heartbeat was {silent / 60:.0f} minutes ago; they come every {usual:.0f} seconds."


def resume_flow_run(flow_run_id: str, *, force: bool = False) -> Resumed:
    """Resume a flow run whose process is gone, under the same id; for code without an event loop.

    A worker starts it from the top: it attaches to the jobs it submitted, failed ones included, and submits only what
    it had not submitted yet. Sessions that the dead process left open are drained first.

    Args:
        flow_run_id: The flow run.
        force: Resume it even if it is not known that its process is gone.

    Raises:
        InvalidInput: The flow run cannot be resumed in its state, or its process may be alive; nothing was changed.
        NotFound: Prefect knows no such flow run.
        QuantumRuntimeError: Prefect refused to schedule it.
    """
    return network_loop().run(_resume(flow_run_id, force))


async def _resume(flow_run_id: str, force: bool) -> Resumed:
    check_flag(force, field="force")
    client = await api()
    try:
        flow_run = await client.read_flow_run(UUID(str(flow_run_id)))
    except ValueError:
        raise InvalidInput(f"{shown(flow_run_id)} is not the id of a flow run", field="flow_run_id") from None
    except ObjectNotFound:
        raise NotFound(f"Prefect knows no flow run {flow_run_id}.") from None
    await _check(flow_run, force)
    await clean_up(flow_run, cancel_jobs=False, drain=True)
    answer: OrchestrationResult[Any] = await client.set_flow_run_state(
        flow_run.id, Scheduled(name="Resuming", scheduled_time=datetime.now(UTC), message="Its process was gone.")
    )
    if answer.status is not SetStateStatus.ACCEPT:
        reason = getattr(answer.details, "reason", None) or "no reason was given"
        raise QuantumRuntimeError(f"Prefect did not schedule flow run {flow_run.id}: {reason}.")
    # As after a suspension: this is no retry, so that a job that failed meanwhile is not submitted again.
    policy = (await client.read_flow_run(flow_run.id)).empirical_policy
    await client.update_flow_run(flow_run.id, empirical_policy=policy.model_copy(update={"resuming": True}))
    return Resumed(id=str(flow_run.id), name=flow_run.name, jobs=await _jobs(flow_run.id))


async def _check(flow_run: FlowRun, force: bool) -> None:
    """Refuse flow runs that must not or need not be resumed.

    Raises:
        InvalidInput: It must not; the message says what to do instead.
    """
    state = flow_run.state
    name = state.name if state is not None else "without a state"
    wrong: Any = None
    if flow_run.deployment_id is None:
        wrong = f"flow run {flow_run.name} cannot be resumed. {await _next_step(flow_run)}"
    elif state is not None and state.is_paused():
        wrong = f"flow run {flow_run.name} is {name}. `prefect-qruntime watch` resumes it when its job is over."
    elif state is not None and state.is_scheduled():
        wrong = f"flow run {flow_run.name} is {name} already. A worker of its work pool starts it."
    elif state is None or not (state.is_running() or state.is_crashed() or is_dropped(state)):
        wrong = f"flow run {flow_run.name} is {name}, not Running or Crashed. Use `Retry` in the UI to run it again."
    elif state.is_running() and not force and not await find_stalled([str(flow_run.id)]):
        wrong = (
            f"the process of flow run {flow_run.name} may be alive: it is not known to be gone. Look at its worker. "
            "If you are sure that the process is gone, use --force."
        )
    elif not state.is_running() and await _would_be_dropped(flow_run.deployment_id):
        wrong = (
            f"Prefect would cancel flow run {flow_run.name} at once: its deployment's limit of active runs is reached, "
            "and it cancels further ones (CANCEL_NEW). Resume it when one of them is over."
        )
    if wrong:
        raise InvalidInput(wrong, field="flow_run_id")


async def _would_be_dropped(deployment_id: UUID) -> bool:
    with contextlib.suppress(ObjectNotFound):
        limit = await dropping_limit(deployment_id)
        return limit is not None and limit.active_slots >= limit.limit
    return False


class SweepReport(BaseModel):
    """What a sweep found and did.

    `sessions` were closed (or would be, in a dry run), `jobs` are live although their flow run is over,
    `problems` say what could not be swept. `stalled` flow runs are shown as running although their process is gone;
    each says what to do. `unread` are the blocks whose instances could not be swept to the end: what is left behind
    there is not known. `is_clean` says whether nothing is left to do.
    """

    model_config = ConfigDict(frozen=True)

    dry_run: bool
    blocks: list[str]
    sessions: list[Swept]
    jobs: list[Swept]
    problems: list[str]
    stalled: list[StalledRun] = []
    unread: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found, or everything found was handled."""
        return not (self.problems or self.stalled) and all(
            entry.is_dealt_with for entry in (*self.sessions, *self.jobs)
        )


def run_sweep(
    blocks: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
    cancel_jobs: bool = False,
    attended: Attended | None = None,
) -> SweepReport:
    """Sweep; for code without an event loop.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        dry_run: Report only, change nothing.
        cancel_jobs: Also cancel live jobs whose flow run failed or completed, and detached ones of a cancelled run;
            its others are cancelled in any case. Jobs of a crashed run are only reported: it may run again and attach
            to them.
        attended: Give up on an instance that does not answer after some seconds; None to be patient.

    Returns:
        What was found and done.
    """
    return network_loop().run(_sweep(blocks, dry_run=dry_run, cancel_jobs=cancel_jobs, attended=attended))


async def arun_sweep(
    blocks: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
    cancel_jobs: bool = False,
    attended: Attended | None = None,
) -> SweepReport:
    """As `run_sweep`, for async code."""
    return await network_loop().arun(_sweep(blocks, dry_run=dry_run, cancel_jobs=cancel_jobs, attended=attended))


async def _sweep(
    blocks: Iterable[str] | None, *, dry_run: bool, cancel_jobs: bool, attended: Attended | None
) -> SweepReport:
    check_flag(dry_run, field="dry_run")
    check_flag(cancel_jobs, field="cancel_jobs")
    loaded, problems = await load_each(blocks)
    nothing_read = [str(none_saved())] if blocks is None and not (loaded or problems) else []
    records = await find_records("session")
    jobs = await find_records("job", since=datetime.now(UTC) - NOTED_BACK)
    noted = {owner for record in (*records, *jobs) if (owner := record.owner) is not None}
    proofs = Proofs()
    unfinished = _unfinished(jobs)
    live = [record for record in (*records, *unfinished.values()) if not is_old(record)]
    owners = Owners(noted, proofs.of, {record.key for record in live if await is_of_deferred_task(record)})
    notes = await session_notes(records)
    found = {name: Found() for name in loaded}
    instances: dict[str, list[InstanceSweeper]] = {}
    sweepers: dict[str, InstanceSweeper] = {}
    patience = attended.patience if attended is not None else None
    for name, credentials in loaded.items():
        same, client = instances.setdefault(credentials.crn, []), credentials.get_client(patience=patience)
        sweepers[name] = InstanceSweeper(name, client, owners, records, notes, unfinished, dry_run, found[name], same)
        same.append(sweepers[name])

    async def swept(name: str, _: QuantumRuntimeClient) -> None:
        await sweepers[name].sweep(cancel_jobs)

    # Of blocks of one instance one after the other, because they would close the same sessions.
    await read_each(loaded, problems, swept, attended)
    if not dry_run:
        await _free_locks()
    return SweepReport(
        dry_run=dry_run,
        blocks=sorted({*loaded, *problems}),
        sessions=[swept for part in found.values() for swept in part.sessions],
        jobs=[swept for part in found.values() for swept in part.jobs],
        problems=nothing_read
        + [
            problem
            for name in sorted({*loaded, *problems})
            for problem in ([problems[name]] if name in problems else found[name].problems)
        ]
        + (await _out_of_reach(records, notes, list(sweepers.values()), owners, problems) if blocks is None else []),
        stalled=await find_stalled(noted, proofs),
        unread=sorted({*problems, *(name for name, part in found.items() if not part.is_complete)}),
    )


async def _free_locks() -> None:
    """Free the locks of processes that died."""
    try:
        for lock in await free_stuck_locks():
            log.warning("The lock %s was freed. Its holder (%s) sent no more heartbeats.", lock.name, lock.who)
    except Exception as error:
        log.warning("The locks in Prefect could not be read: %r", error)


async def _out_of_reach(
    records: list[Record],
    notes: list[SessionNote],
    sweepers: list[InstanceSweeper],
    owners: Owners,
    unusable: Collection[str],
) -> list[str]:
    """Report the sessions that finished flow runs and dead processes left open where no saved block leads to.

    Args:
        records: All records of sessions.
        notes: Those of processes.
        sweepers: One for each block.
        owners: The states of flow runs.
        unusable: The blocks that could not be loaded, which is reported already.
    """
    left = [(note.record, note.opener) for note in notes if note.is_gone]
    for record in records:
        owner = record.owner
        if not is_note(record) and not record.is_closed and await owners.left(record):
            left.append((record, f"flow run {owner}"))
    recent = datetime.now(UTC) - LOOK_BACK
    left = [
        (record, opener)
        for record, opener in left
        if record.meta.get("block") not in unusable and not any(sweeper.reaches(record) for sweeper in sweepers)
        if record.updated is None or record.updated > recent  # an older one has closed by itself
    ]
    for look in range(_LOOKS):
        # Some flow runs may have closed theirs and ended since the records were read, or are just writing that down.
        now = {record.key: record for record in await find_records("session")} if left else {}
        left = [
            (record, opener)
            for record, opener in left
            if is_note(record) or (record.key in now and not now[record.key].is_closed)
        ]
        if look == _LOOKS - 1 or not any(owners.is_just_over(record.owner) for record, _ in left):
            break
        await asyncio.sleep(_LOOK_AGAIN)
    return [
        f"session {record.meta.get('session') or 'without an id'}, opened by {opener}, was left open, and no saved "
        f"credentials block leads to its instance {_instance_of(record)}. Save one and sweep again."
        for record, opener in left
    ]


def _instance_of(record: Record) -> str:
    """The instance that a record names; an old one names the block only."""
    block = record.meta.get("block")
    return record.meta.get("crn") or (f"of block {block!r}" if block else "(its block was not saved)")


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
