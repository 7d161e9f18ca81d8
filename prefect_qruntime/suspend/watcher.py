"""Watch the jobs of suspended flow runs, and the jobs that flows left to the watcher, in one process.

It has no state of its own: Prefect knows which flow run waits for which job, and the service knows the jobs'
states. So a watcher may be killed at any moment, another one continues its work, and two at once do no harm.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from prefect_qruntime import prefect_api
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import check_flag
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.waiting.plan import Deadlines, is_seconds
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_names, load_each, none_saved, read_each
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Place
from prefect_qruntime.observability.progress import PageTurn, WaitProgress
from prefect_qruntime.observability.telemetry import Observation
from prefect_qruntime.redact import get_logger, redact
from prefect_qruntime.settings import current_settings
from prefect_qruntime.suspend import suspend, waits
from prefect_qruntime.suspend.alarms import InstanceWatch
from prefect_qruntime.suspend.suspend import claimed
from prefect_qruntime.suspend.waits import Wait
from prefect_qruntime.tasks.backends import STATE_AGE, backend_now

__all__ = ["WatchReport", "arun_watch", "run_watch"]

log = get_logger(__name__)

_ALL_AGAIN = 120.0  # seconds after which everything in Prefect is read again, not only what is new
_AGAIN = 60.0  # seconds until a wait that failed is tried again
_CLAIMED = 15.0  # seconds until a wait that another watcher ends is checked again
_PATIENCE = Deadlines()
_LAST = 5.0  # seconds that what has not answered yet has left when the watch ends
_AT_ONCE = 2  # waits that are ended at the same time: a Prefect server on SQLite stalls with more
_INSTANCE = 60.0  # seconds for one check of an instance, for each key that leads to it
_PAGE = 15.0  # seconds for writing one job's page
_BETWEEN_PAGES = 5.0  # seconds between two of them, so that many suspended flow runs are no load on Prefect


class WatchReport(BaseModel):
    """The work of a watcher: flow runs resumed, jobs reported, flow runs whose jobs were cancelled with them."""

    model_config = ConfigDict(frozen=True)

    followed: int
    resumed: int
    told: int
    cancelled: int
    problems: list[str]


def run_watch(
    blocks: Iterable[str] | None = None, *, once: bool = False, interval: float = 10.0, duration: float | None = None
) -> WatchReport:
    """Follow the jobs that flow runs are suspended for, and resume each flow run when its job is over.

    Args:
        blocks: Names of the credentials blocks to watch; None for all.
        once: Poll once and return, for a schedule.
        interval: Seconds between polls for newly suspended flow runs.
        duration: Seconds to watch; None for no limit.

    Returns:
        What was done.

    Raises:
        InvalidInput: An argument is wrong.
    """
    return network_loop().run(_watch(blocks, once=once, interval=interval, duration=duration))


async def arun_watch(
    blocks: Iterable[str] | None = None, *, once: bool = False, interval: float = 10.0, duration: float | None = None
) -> WatchReport:
    """As `run_watch`, for async code."""
    return await network_loop().arun(_watch(blocks, once=once, interval=interval, duration=duration))


async def _watch(blocks: Iterable[str] | None, *, once: bool, interval: float, duration: float | None) -> WatchReport:
    for value, name in ((interval, "interval"), (duration, "duration")):
        if value is not None and not (is_seconds(value, finite=name == "interval") and value > 0):
            raise InvalidInput("must be a positive number of seconds", field=name)
    check_flag(once, field="once")
    current_settings()  # a wrong one is no problem of a single wait
    watcher = _Watcher(None if blocks is None else block_names(blocks), once=once)
    until = None if duration is None else time.monotonic() + duration
    try:
        while True:
            await watcher.look()
            if once:
                await watcher.ended()
                break
            pause = interval * random.uniform(0.8, 1.2)  # noqa: S311  # so that two watchers do not poll in step
            if until is not None and time.monotonic() + pause >= until:
                await asyncio.sleep(max(0.0, until - time.monotonic()))
                await watcher.last_answers()
                break
            await asyncio.sleep(pause)
    finally:
        await watcher.stop()
    return watcher.report()


@dataclass(slots=True)
class _Followed:
    """A wait and the task that follows its job."""

    wait: Wait
    task: asyncio.Task[None] | None = None
    seen: list[Observation] = field(default_factory=list)
    ending: bool = False
    not_before: float = 0.0
    page_complete: bool = False
    progress: WaitProgress = field(init=False)
    page: PageTurn = field(init=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        now = time.monotonic()
        self.progress, self.page = WaitProgress(self.wait.job_id, now), PageTurn(now)

    def saw(self, job: Job, waited: float) -> None:
        """Take in an answer of the service."""
        self.seen.append(Observation(job.status, job.raw_status.lower(), waited, datetime.now(UTC)))
        self.progress.saw(job, time.monotonic())
        self.page.changed()


class _Watcher:
    def __init__(self, blocks: Iterable[str] | None, *, once: bool) -> None:
        self._blocks = frozenset(blocks) if blocks is not None else None
        self._once = once
        self._clients: dict[Place, tuple[str, QuantumRuntimeClient]] = {}
        self._loading = defaultdict[Place, asyncio.Lock](asyncio.Lock)  # a silent instance holds up no other
        self._followed: dict[UUID, _Followed] = {}
        self._not_ours: set[UUID] = set()
        self._seen: set[UUID] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._deliveries = asyncio.Semaphore(_AT_ONCE)
        self._no_events_until = 0.0
        self._all, self._all_at = True, 0.0
        self._counts = dict.fromkeys(("followed", "resumed", "told", "cancelled"), 0)
        self._problems: dict[str, str] = {}
        self._instances: dict[Place, InstanceWatch] = {}
        self._instances_at = 0.0
        self._unchecked: dict[str, str] = {}  # why an instance could not be checked, by block
        self._checking = dict[str, str]()  # the block by which an instance is being checked
        self._checked = set[str]()  # the instances that were
        self._looking = set[asyncio.Task[None]]()
        self._reading_blocks = False
        self._showing: asyncio.Task[None] | None = None

    def report(self) -> WatchReport:
        """The work done so far."""
        problems = list(self._problems.values())
        if not self._once or not (problems or any(self._counts.values())):
            problems += self._unchecked.values()
        return WatchReport(**self._counts, problems=problems)

    # ---- polling Prefect -----------------------------------------------------------------------

    async def look(self) -> None:
        """Start new waits and drop those that ended elsewhere. If Prefect does not answer, the next poll does it."""
        for step in (self._look_at_all, self._new_ones, self._those_that_left, self._left_jobs):
            try:
                await step()
            except Exception as error:
                self._problem("prefect", f"Prefect's API gave no answer: {prefect_api.reason(error)}")
                log.warning("Prefect's API gave no answer and is polled again: %s", prefect_api.reason(error))
                log.debug("Prefect's API gave no answer.", exc_info=True)
                return
        self._problems.pop("prefect", None)
        self._look_at_instances()
        for entry in self._followed.values():
            if entry.task is None and time.monotonic() >= entry.not_before:
                entry.task = asyncio.create_task(self._follow(entry))
        if not self._once and (self._showing is None or self._showing.done()):
            self._showing = asyncio.create_task(self._show_pages())

    async def _show_pages(self) -> None:
        """Bring the pages of jobs up to date whose turn has come, one after the other."""
        while True:
            now = time.monotonic()
            due = [entry for entry in self._followed.values() if entry.page.due <= now]
            if not due:
                return
            await self._show_page(min(due, key=lambda entry: entry.page.due))
            await asyncio.sleep(_BETWEEN_PAGES)

    async def _show_page(self, entry: _Followed) -> None:
        wait, progress, owner = entry.wait, entry.progress, suspend.owner(entry.wait)
        entry.page.taken(time.monotonic(), current_settings().progress_seconds)
        if owner is None:
            return
        try:
            async with asyncio.timeout(_PAGE):
                if progress.status is JobStatus.QUEUED and progress.job is not None and progress.job.backend:
                    _, client = await self._client_for(wait)
                    progress.backend = await backend_now(client, progress.job.backend, max_age=STATE_AGE)
                async with entry.writing:
                    if not entry.ending and self._followed.get(wait.note) is entry:
                        await notifications.show_followed(progress, entry.seen, flow_run_id=owner)
        except Exception as error:  # no wait depends on it
            log.warning("The page of job %s could not be updated: %s.", wait.job_id, redact(repr(error)))

    def _look_at_instances(self) -> None:
        """Check the instances from time to time, beside the waits: one that does not answer delays no other."""
        every = current_settings().watch_instance_seconds
        if (every or self._once) and not self._reading_blocks and time.monotonic() >= self._instances_at:
            self._instances_at = time.monotonic() + every
            task = asyncio.create_task(self._look_after_instances())
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _look_after_instances(self) -> None:
        self._reading_blocks = True
        try:
            loaded, problems = await load_each(self._blocks)
        except Exception as error:
            log.warning("Prefect's API gave no answer, so no instance is checked now: %s", prefect_api.reason(error))
            return
        finally:
            self._reading_blocks = False
        keys = defaultdict[str, dict[str, QuantumRuntimeClient]](dict)  # of each instance, once
        firsts = dict[str, QuantumRuntimeCredentials]()
        if not self._once or not loaded:  # polling once is for the waits
            for block, credentials in loaded.items():
                client = credentials.get_client()
                if not keys[client.connection.crn]:
                    firsts[block] = credentials
                keys[client.connection.crn].setdefault(client.connection.fingerprint, client)
            self._unchecked = {block: text for block, text in self._unchecked.items() if block in firsts}
            for block, problem in problems.items():
                self._not_checked(block, problem.removeprefix(f"{block}: "))
            if not (loaded or problems) and self._blocks is None:
                self._unchecked[""] = str(none_saved())
                log.warning("Not watched: %s", none_saved())

        async def look(block: str, client: QuantumRuntimeClient) -> None:
            crn = client.connection.crn
            if crn in self._checking:  # since an earlier time: the others are checked nevertheless
                return
            self._checking[crn] = block
            watch = self._instances.setdefault(Place(block, client.connection.instance), InstanceWatch(block))
            try:
                async with asyncio.timeout(_INSTANCE * len(keys[crn])):
                    await watch.look(*keys[crn].values())
                self._unchecked.pop(block, None)
                self._checked.add(crn)
            except Exception as error:
                self._not_checked(block, str(error) or "it does not answer.")  # a timeout has no text
            finally:
                self._checking.pop(crn, None)

        await read_each(firsts, {}, look)

    def _not_checked(self, block: str, reason: str) -> None:
        self._unchecked[block] = redact(f"The instance of {block} could not be checked: {reason}")
        log.warning("Not watched: %s", self._unchecked[block])

    async def _look_at_all(self) -> None:
        """From time to time drop what was learnt, and process what happened while no watcher ran."""
        self._all = time.monotonic() >= self._all_at
        if not self._all:
            return
        for flow_run_id in self._not_ours:
            self._problems.pop(str(flow_run_id), None)
        self._not_ours.clear()
        self._clients.clear()  # blocks may have been edited
        for wait in await waits.notes(of=prefect_api.over()):
            if wait.note not in self._followed and self._looks_after(wait):
                await self._gone(wait)
        self._all_at = time.monotonic() + _ALL_AGAIN

    async def _new_ones(self) -> None:
        known = {e.wait.flow_run_id: e for e in self._followed.values() if e.wait.key is not None}
        left_out = set() if self._all else self._not_ours | {run for run in known if run is not None}
        self._seen.clear()
        async for page in waits.suspended(left_out):
            keys = {flow_run.id: waits.pause_key_of(flow_run.state) for flow_run in page}
            self._seen.update(keys)
            # Suspended again since, for another job: then the wait that is followed is outdated.
            fresh = {run: key for run, key in keys.items() if run not in known or known[run].wait.key != key}
            ours = [run for run, key in fresh.items() if waits.job_of(key) is not None]
            found = await waits.notes(flow_run_ids=ours) if ours else []
            noted = {(wait.flow_run_id, wait.key): wait for wait in found}
            for run, key in fresh.items():
                if run in known and not known[run].ending:
                    self._let_go(known[run])
                wait = noted.get((run, key))
                if wait is not None and self._looks_after(wait):
                    self._take(wait)
                    for old in found:  # of earlier suspensions: this one's note will do if the flow run is cancelled
                        if old.flow_run_id == run and old.key != key:
                            await waits.drop_note(old)
                    continue
                self._not_ours.add(run)
                if wait is None and run in ours:
                    self._problem(str(run), f"flow run {run} is suspended with key {key!r}, but without a note")

    async def _those_that_left(self) -> None:
        runs = {e.wait.flow_run_id: e for e in self._followed.values() if e.wait.key is not None and not e.ending}
        left = set[UUID | None](await waits.no_longer_suspended([run for run in runs if run is not None]))
        if self._all:  # all suspended ones were read; one that was deleted has no state any more
            left |= runs.keys() - self._seen
        for flow_run_id in left:
            entry = runs[flow_run_id]
            if not entry.ending:
                self._let_go(entry)
                await self._gone(entry.wait)

    async def _left_jobs(self) -> None:
        known = set(self._followed)  # one that ends while the notes are read is among them nevertheless
        for wait in await waits.notes():
            if wait.note not in known and self._looks_after(wait):
                self._take(wait)

    def _looks_after(self, wait: Wait) -> bool:
        return self._blocks is None or wait.block in self._blocks

    def _take(self, wait: Wait) -> None:
        self._followed[wait.note] = _Followed(wait)
        self._counts["followed"] += 1
        log.info("Watching job %s for %s.", wait.job_id, suspend.describe(wait))

    def _let_go(self, entry: _Followed) -> None:
        self._followed.pop(entry.wait.note, None)
        if entry.task is not None and entry.task is not asyncio.current_task():
            entry.task.cancel()

    # ---- polling the service -------------------------------------------------------------------

    async def _client_for(self, wait: Wait) -> tuple[str, QuantumRuntimeClient]:
        async with self._loading[wait.place]:
            if wait.place not in self._clients:
                self._clients[wait.place] = await suspend.client_for(wait)
            return self._clients[wait.place]

    async def _follow(self, entry: _Followed) -> None:
        wait = entry.wait
        try:
            end = await self._end_of_job(entry)
            if end is not None:
                await self._end(entry, end)
        except Exception as error:
            # Any error, ours or Prefect's: this wait is tried again and the others continue.
            self._problem(str(wait.note), f"job {wait.job_id} for {suspend.describe(wait)}: {error}")
            log.warning("Job %s for %s is tried again later: %s", wait.job_id, suspend.describe(wait), error)
            self._clients.pop(wait.place, None)
            entry.ending, entry.task, entry.not_before = False, None, time.monotonic() + _AGAIN
        else:
            self._problems.pop(str(wait.note), None)

    async def _end_of_job(self, entry: _Followed) -> Job | NotFound | None:
        """The job when it is over; the error if the service does not know it; None if it is not over."""
        wait = entry.wait
        block, client = await self._client_for(wait)
        try:
            if self._once:
                job = await client.look(wait.job_id, deadlines=_PATIENCE, known=True)
                return job if job.is_terminal else None

            async def on_change(seen: Job, waited: float) -> None:
                entry.saw(seen, waited)
                if seen.status is JobStatus.RUNNING:
                    _tell(wait, seen, block)

            return await client.wait(wait.job_id, deadlines=_PATIENCE, on_change=on_change, known=True)
        except NotFound as error:
            return error

    async def _end(self, entry: _Followed, end: Job | NotFound) -> None:
        """Report the job's end, and resume the flow run unless another watcher does."""
        entry.ending = True
        async with entry.writing:
            pass  # a page that tells less than the end is written before the flow run goes on, or not at all
        if isinstance(end, NotFound):
            log.warning("Job %s for %s: %s", entry.wait.job_id, suspend.describe(entry.wait), end)
        if entry.wait.key is not None and entry.wait.flow_run_id is not None:
            async with self._gate:
                await self._end_suspension(entry, end, entry.wait.flow_run_id, entry.wait.key)
            return
        if isinstance(end, Job):
            owner = suspend.owner(entry.wait)
            if not entry.page_complete:
                async with self._gate:
                    await notifications.job_ended(end, entry.seen, flow_run_id=owner)
                entry.page_complete = True
            await self._report_left(end, owner, (await self._client_for(entry.wait))[0])
        await waits.drop_note(entry.wait)
        self._counts["told"] += isinstance(end, Job)
        self._let_go(entry)

    async def _report_left(self, end: Job, owner: str | None, block: str) -> None:
        # Apart from the gate: a Prefect that takes no events holds up no flow run.
        async with self._deliveries:
            if time.monotonic() < self._no_events_until:  # each attempt may take long
                raise TimeoutError("Prefect has just failed to take an event.")
            try:
                await notifications.left_job_ended(end, flow_run_id=owner, block=block)
            except Exception:
                self._no_events_until = time.monotonic() + _AGAIN / 2
                raise

    async def _end_suspension(self, entry: _Followed, end: Job | NotFound, flow_run_id: UUID, key: str) -> None:
        wait = entry.wait
        async with claimed(flow_run_id, key) as mine:
            if not mine:  # another watcher is resuming it; the next check shows whether it succeeded
                entry.ending, entry.task, entry.not_before = False, None, time.monotonic() + _CLAIMED
                return
            if not await waits.is_suspended_with(flow_run_id, key):
                await self._gone(wait)
                self._let_go(entry)
                return
            if isinstance(end, Job):
                _tell(wait, end, (await self._client_for(wait))[0])
            # The resumed flow completes the job's record, also of a job that the service does not know. The note stays
            # until the flow run is over: cancelled before a worker starts it, it has no process and no hook.
            self._counts["resumed"] += await suspend.resume(wait)
            self._let_go(entry)

    async def _gone(self, wait: Wait) -> None:
        try:
            self._counts["cancelled"] += await suspend.reconcile(wait)
        except (QuantumRuntimeError, ValueError) as error:
            self._problem(str(wait.note), f"The jobs of flow run {wait.flow_run_id} could not be cancelled: {error}")
        else:
            self._problems.pop(str(wait.note), None)

    # ---- the end -------------------------------------------------------------------------------

    async def ended(self) -> None:
        """Wait until all jobs were checked; for a watcher that polls once."""
        tasks = [entry.task for entry in self._followed.values() if entry.task is not None]
        tasks += self._looking
        await asyncio.gather(*tasks, return_exceptions=True)

    async def last_answers(self) -> None:
        """Report the jobs and instances that never answered, as a watch may end before their requests do."""

        def silent() -> list[_Followed]:
            return [one for one in self._followed.values() if one.task is not None and not one.seen and not one.ending]

        def unchecked() -> list[str]:
            # A later check that is slow is none: the next watch goes on with it.
            return [block for crn, block in self._checking.items() if crn not in self._checked]

        end = time.monotonic() + _LAST
        while (silent() or unchecked()) and time.monotonic() < end:  # noqa: ASYNC110  the answers come in many places
            await asyncio.sleep(0.1)
        for entry in silent():
            about = f"job {entry.wait.job_id} for {suspend.describe(entry.wait)}"
            self._problem(str(entry.wait.note), f"{about}: there was no answer about it until the watch ended.")
        for block in unchecked():
            self._not_checked(block, "the first check had not ended when the watch ended.")

    async def stop(self) -> None:
        """Stop watching; nothing is lost by that."""
        tasks = [entry.task for entry in self._followed.values() if entry.task is not None]
        tasks += [*self._looking, *([self._showing] if self._showing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _problem(self, about: str, text: str) -> None:
        self._problems[about] = redact(text)


def _tell(wait: Wait, job: Job, block: str) -> None:
    suspend.emit_state(job, flow_run_id=suspend.owner(wait), block=block)
