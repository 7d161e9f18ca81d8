"""Monitor an instance: alarms as events, and one artifact that shows its state.

Each alarm is identified by its cause (a session and the jobs it has had, a day, a lock's row). Its event's id is made
of it. Prefect's triggers remember an id for half an hour only, so a watcher first asks whether Prefect has the event.
So an alarm is given once for each crossing, by however many watchers and however often they are restarted, while
Prefect keeps the event (a week by default).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cachetools import LRUCache

from prefect_qruntime.admission.budget import close_at_limit
from prefect_qruntime.admission.guard import read_queue
from prefect_qruntime.admission.locks import LockState, read_locks
from prefect_qruntime.admission.share_core import Row
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.parsing import parse_session_workload
from prefect_qruntime.client.service import each_job
from prefect_qruntime.errors import NotFound, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import Job, Session, Usage
from prefect_qruntime.observability.artifacts import upsert
from prefect_qruntime.observability.telemetry import emit, lost
from prefect_qruntime.prefect_api import api, flow_runs_by_id
from prefect_qruntime.redact import get_logger, many, markdown_text, number_text, printable, redact
from prefect_qruntime.settings import QuantumRuntimeSettings, current_settings

__all__ = ["Alarm", "InstanceView", "InstanceWatch", "alarms", "board", "board_line"]

log = get_logger(__name__)

_HISTORY = timedelta(days=28)
_HISTORY_AGAIN = 3600.0  # seconds after which the past is read again
_DAY = timedelta(days=1)
_KEY = 45.0  # seconds for reading an instance with one key
_LEAST_DAYS = 5  # past days with some usage that are needed before a day can be called unusual
_LEAST_SECONDS = 60.0  # QPU seconds below which no day is unusual
_ROWS = 20
_EVENTS = 50  # most events that Prefect returns at once
_PERIOD_DAYS = 28


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that is reported to an administrator once.

    Attributes:
        event: The event's name.
        about: What it is about: kind and id of the event's resource.
        cause: Distinguishes this crossing from earlier and later ones.
        text: The message for people.
        facts: The event's payload.
    """

    event: str
    about: tuple[str, str]
    cause: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        """The event's id, the same for every process that gives the alarm."""
        return uuid5(NAMESPACE_URL, f"qruntime-alarm:{self.event}:{self.about[0]}:{self.about[1]}:{self.cause}")


@dataclass(frozen=True, slots=True)
class InstanceView:
    """The state of an instance at one moment.

    Attributes:
        name: Identifies the instance; made from its CRN.
        block: The credentials block with which it was read.
        now: The moment.
        usage: Its allowance; None if no key may read it, or the service reports none.
        live: Jobs that are not over.
        past: Jobs of the last four weeks.
        sessions: Those that are open.
        charged: Dedicated sessions of the last four weeks, with what each is charged.
        idle: Seconds for which sessions were seen without a live job.
        locks: Of the Prefect server.
        queue: Submissions that wait for their team's turn.
        names: Names of flow runs, by id.
        unread: Blocks with whose keys it could not be read, so that jobs and sessions of their users are missing.
    """

    name: str
    block: str
    now: datetime
    usage: Usage | None
    live: Sequence[Job] = ()
    past: Sequence[Job] = ()
    sessions: Sequence[Session] = ()
    charged: Sequence[Session] = ()
    idle: Mapping[str, float] = field(default_factory=dict)
    locks: Sequence[LockState] = ()
    queue: Sequence[Row] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    unread: Sequence[str] = ()

    def who(self, flow_run_id: str | None) -> str:
        """The flow run's name, else its id."""
        return "none" if flow_run_id is None else self.names.get(flow_run_id, flow_run_id)


def alarms(view: InstanceView, settings: QuantumRuntimeSettings) -> list[Alarm]:
    """All alarms whose cause exists now, including those raised before, with the same ids."""
    found = [*_allowance(view, settings), *_idle(view, settings), *_unowned(view), *_unusual(view, settings)]
    for lock in view.locks:
        if lock.is_stuck:
            text = f"The lock {lock.name} has been silent for {lock.silent:.0f} s. Its holder: {lock.who}."
            found.append(Alarm("qruntime.lock.stuck", ("lock", lock.name), lock.row_id, text, {"holder": lock.who}))
    return found


def _allowance(view: InstanceView, settings: QuantumRuntimeSettings) -> Iterable[Alarm]:
    left = view.usage.remaining_seconds if view.usage is not None else None
    if view.usage is None or left is None:
        return
    limit = view.usage.limit_seconds if view.usage.limit_seconds is not None else view.usage.allocation_seconds
    whole = limit if limit is not None else view.usage.consumed_seconds
    percent = settings.alarm_allowance_percent
    if left <= whole * percent / 100:
        # A period that moves with the days counts as one of four weeks.
        start = view.usage.period_start or view.now
        period = int(start.timestamp() // (86400 * _PERIOD_DAYS))
        cause = f"{period}:{number_text(percent)}:{'' if limit is None else number_text(limit)}"
        text = f"{number_text(left)} of {number_text(whole)} QPU seconds are left, {number_text(percent)} % or less."
        facts = {"remaining_seconds": left, "limit_seconds": whole, "percent": percent}
        yield Alarm("qruntime.allowance.low", ("instance", view.name), cause, text, facts)


def _idle(view: InstanceView, settings: QuantumRuntimeSettings) -> Iterable[Alarm]:
    for session in view.sessions:
        idle = view.idle.get(session.id, 0.0)
        if session.mode == "dedicated" and idle >= settings.alarm_idle_minutes * 60:
            jobs = sum(job.session_id == session.id for job in view.past)
            text = f"Session {session.id} has had no job for {many(int(idle // 60), 'minute')} and may be charging."
            owner = _owner(view, session.id)
            facts = {"session_id": session.id, "idle_seconds": round(idle), "flow_run_id": owner}
            yield Alarm("qruntime.session.idle", ("session", session.id), str(jobs), text, facts)


def _owner(view: InstanceView, session_id: str) -> str | None:
    """A flow run that has jobs in the session."""
    jobs = (*view.live, *view.past)
    return next((job.flow_run_id for job in jobs if job.session_id == session_id and job.flow_run_id), None)


def _unowned(view: InstanceView) -> Iterable[Alarm]:
    for job in {job.id: job for job in (*view.past, *view.live)}.values():
        recent = job.created_at is not None and view.now - job.created_at < _DAY
        if job.flow_run_id is None and (recent or not job.is_terminal):
            text = f"Job {job.id} on {job.backend} carries no flow run's tag."
            yield Alarm("qruntime.job.unowned", ("job", job.id), "", text, {"job_id": job.id, "url": job.url})


def _unusual(view: InstanceView, settings: QuantumRuntimeSettings) -> Iterable[Alarm]:
    spent = dict[int, float]()
    for moment, _, seconds in _charges(view):
        day = max(0, (view.now - moment) // _DAY)  # the service's clock may be ahead
        spent[day] = spent.get(day, 0.0) + seconds
    today = spent.pop(0, 0.0)
    if sum(value > 0 for value in spent.values()) < _LEAST_DAYS or today < _LEAST_SECONDS:
        return
    # The days since the first job, including days without one.
    usual = sum(spent.values()) / max(spent)
    highest = max(spent.values())
    if today > settings.alarm_spending_factor * usual and today > highest:
        text = (
            f"{number_text(today)} QPU seconds were used in the last day, {today / usual:.1f} times the {usual:.0f} "
            f"of a usual one; the most in one day was {number_text(highest)}."
        )
        facts = {"seconds": today, "usual_seconds": round(usual, 1), "highest_seconds": highest}
        yield Alarm("qruntime.spending.unusual", ("instance", view.name), view.now.date().isoformat(), text, facts)


def _charges(view: InstanceView) -> Iterator[tuple[datetime, str | None, float]]:
    """Yield what was charged in the last four weeks: when, to which flow run, and how many QPU seconds.

    A dedicated session is charged by the clock, so its own number counts, at its beginning, and not that of its jobs.
    The service reports it late: until then it counts as much as its jobs.
    """
    began = {one.id: one.started_at for one in view.charged if one.usage_seconds is not None and one.started_at}
    of_jobs = dict.fromkeys(began, 0.0)
    for job in view.past:
        if job.session_id in of_jobs:
            of_jobs[job.session_id] += job.charged_seconds or 0.0
        elif job.created_at is not None:
            yield job.created_at, job.flow_run_id, job.charged_seconds or 0.0
    for one in view.charged:
        if one.id in began:
            yield began[one.id], _owner(view, one.id), max(one.usage_seconds or 0.0, of_jobs[one.id])


# ---- the artifact --------------------------------------------------------------------------------------------


def board(view: InstanceView, raised: Sequence[Alarm]) -> str:
    """The instance's state as Markdown."""
    live, sessions = many(len(view.live), "live job"), many(len(view.sessions), "open session")
    parts = [
        f"### Instance of {markdown_text(view.block)}",
        f"{view.now:%Y-%m-%d %H:%M} UTC · {_used(view)}{_left(view)} · {live} · {sessions}",
    ]
    if view.unread:
        blocks = ", ".join(map(markdown_text, view.unread))
        parts += ["", f"Incomplete: it could not be read with the keys of {blocks}; the watcher's log says why."]
    parts += _section("Alarms", ("alarm", "what"), [(one.event, one.text) for one in raised])
    parts += _section(
        "Live jobs",
        ("job", "state", "backend", "flow run", "created"),
        [(one.id, one.raw_status, one.backend, view.who(one.flow_run_id), _at(one.created_at)) for one in view.live],
    )
    parts += _section(
        "Sessions",
        ("session", "mode", "state", "used by flow run", "since", "live jobs"),
        [
            (
                one.id,
                one.mode,
                one.state,
                view.who(_owner(view, one.id)),
                _at(one.activated_at or one.started_at),
                sum(job.session_id == one.id for job in view.live),
            )
            for one in view.sessions
        ],
    )
    parts += _section("Spenders of the last day", ("flow run", "jobs", "QPU seconds"), _spenders(view))
    waiting = Counter(row.team or "(none)" for row in view.queue if row.granted is None)
    parts += _section("Queue", ("team", "processes waiting to create a job"), waiting.most_common())
    return "\n".join(parts)


def board_line(view: InstanceView, raised: Sequence[Alarm]) -> str:
    """The instance in a line, for lists of artifacts; they have room for some thirty characters."""
    told = [many(len(raised), "alarm")] if raised else []
    told += [_left(view, whole=True), f"{len(view.live)} live", *(["incomplete"] if view.unread else [])]
    return " · ".join((printable(view.block, 60), *told))


def _used(view: InstanceView) -> str:
    return "" if view.usage is None else f"{number_text(view.usage.consumed_seconds)} QPU seconds used, "


def _left(view: InstanceView, *, whole: bool = False) -> str:
    if view.usage is None:
        return "QPU time not known"
    left = view.usage.remaining_seconds
    return (
        "no limit" if left is None else f"{left:.0f} s left" if whole and left >= 10 else f"{number_text(left)} s left"
    )


def _spenders(view: InstanceView) -> list[tuple[str, int, str]]:
    begin, jobs, seconds = view.now - _DAY, Counter[str](), dict[str, float]()
    for job in view.past:
        if job.created_at is not None and job.created_at > begin:
            jobs[job.flow_run_id or ""] += 1
            seconds.setdefault(job.flow_run_id or "", 0.0)
    for moment, owner, charged in _charges(view):
        if moment > begin:
            seconds[owner or ""] = seconds.get(owner or "", 0.0) + charged
    ordered = sorted(seconds.items(), key=lambda one: -one[1])
    return [(view.who(owner or None), jobs[owner], number_text(value)) for owner, value in ordered]


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"#### {title}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows[:_ROWS]:
        lines.append("| " + " | ".join(markdown_text(str("" if cell is None else cell)) for cell in row) + " |")
    if len(rows) > _ROWS:
        lines.append(f"\nand {len(rows) - _ROWS} more")
    return lines


def _at(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%m-%d %H:%M}"


# ---- the instance --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Past:
    """The jobs and dedicated sessions of the last four weeks that one key has shown."""

    jobs: dict[str, Job] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    jobs_read: float = float("-inf")
    sessions_read: float = float("-inf")


class InstanceWatch:
    """A watcher's state of one instance between its checks; nothing that matters after a restart."""

    def __init__(self, block: str) -> None:
        self._block = block
        self._idle_since: dict[str, float] = {}
        self._past: dict[str, _Past] = {}
        self._closed: LRUCache[str, bool] = LRUCache(4096)
        self._names: LRUCache[str, str] = LRUCache(4096)
        self._told: LRUCache[UUID, bool] = LRUCache(4096)
        self._refused: LRUCache[str, bool] = LRUCache(4096)

    async def look(self, *clients: QuantumRuntimeClient) -> list[Alarm]:
        """Raise alarms, update the artifact, and close sessions over their limit. Runs on the network loop.

        Args:
            clients: One for each key, because a key sees the jobs and sessions of its own user only.

        Raises:
            QuantumRuntimeError: The service answered with none of the keys.
            Exception: An error of Prefect's API.
        """
        view = await self._view(*clients)
        raised = alarms(view, current_settings())
        for one in await self._untold(raised):
            kind, name = one.about
            resource = {"prefect.resource.id": f"qruntime.{kind}.{name}", "prefect.resource.name": name}
            facts = {**one.facts, "text": one.text, "block": self._block}
            emit(one.event, resource, facts, flow_run_id=one.facts.get("flow_run_id"), event_id=one.id)
        line = board_line(view, raised)
        await upsert("instance", view.name, board(view, raised), {"block": self._block}, describe=lambda _facts: line)
        return raised

    async def _untold(self, raised: Sequence[Alarm]) -> list[Alarm]:
        """The alarms whose events Prefect does not have. It joins those that are given twice within half an hour."""
        asked = [one.id for one in raised if one.id not in self._told]
        for start in range(0, len(asked), _EVENTS):
            some = asked[start : start + _EVENTS]
            body = {"filter": {"id": {"id": list(map(str, some))}}, "limit": _EVENTS}
            try:
                answer = await (await api()).request("POST", "/events/filter", json=body)
                self._told.update({UUID(event["id"]): True for event in answer.json()["events"]})
                lost(one for one in some if one not in self._told)
            except Exception as error:  # better twice than never
                log.warning("Prefect does not say which alarms were given before: %r", error)
                break
        return [one for one in raised if one.id not in self._told]

    async def _name_runs(self, jobs: Iterable[Job]) -> dict[str, str]:
        """The names of the jobs' flow runs. One that this Prefect does not know goes by its id."""
        ids = {job.flow_run_id for job in jobs if job.flow_run_id}
        if unknown := {one for one in ids if one not in self._names}:
            found = await flow_runs_by_id(unknown)
            self._names.update({one: found[one].name if one in found else one for one in unknown})
        return {one: self._names[one] for one in ids if one in self._names}

    async def _sessions(self, client: QuantumRuntimeClient, jobs: Iterable[Job], now: datetime) -> list[Session]:
        """The open sessions: those of known jobs, and those among the workloads of the last day."""
        ids = dict.fromkeys(job.session_id for job in jobs if job.session_id)
        # Some hosts have no workloads; their sessions are found by their jobs.
        with self._apart("The sessions of the last day could not be listed"):
            for item in await client.workloads(created_after=now - _DAY, limit=200):
                if str(item.get("mode")) in ("session", "batch") and item.get("id"):
                    ids[str(item["id"])] = None
        found = []
        for session_id in ids:
            if session_id not in self._closed:
                with self._apart(f"Session {session_id} could not be read"):
                    session = await client.session(session_id)
                    if session.ref().is_closed:
                        self._closed[session_id] = True
                    else:
                        found.append(session)
        return found

    async def _charged(self, client: QuantumRuntimeClient, begin: datetime) -> list[Session]:
        """The dedicated sessions since a moment, with what each is charged; none from a host that does not say it."""
        found = []
        with self._apart("What the sessions are charged could not be read"):
            for item in await client.workloads(mode="session", created_after=begin):
                with contextlib.suppress(ServiceUnavailable):  # an odd one hides no other
                    found.append(parse_session_workload(item))
        return [one for one in found if one.mode == "dedicated"]

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Let a refusal end one step only, such as a session of another user; each is logged once."""
        try:
            yield
        except NotFound:
            pass
        except QuantumRuntimeError as error:
            if error.is_outage:
                raise
            if what not in self._refused:
                self._refused[what] = True
                log.warning("%s: %s", what, error)

    async def _view(self, *clients: QuantumRuntimeClient) -> InstanceView:
        now, moment = datetime.now(UTC), time.monotonic()
        live, sessions = dict[str, Job](), dict[str, Session]()
        usage: Usage | None = None
        unread: list[tuple[QuantumRuntimeClient, Exception]] = []
        read = set[str]()
        for client in clients:
            if _user(client) in read:  # another way to the same jobs and sessions
                continue
            try:
                async with asyncio.timeout(_KEY):
                    own, opened = await self._read(client, now, moment)
                    with self._apart("The usage could not be read"):
                        usage = usage or await client.usage()
            except (QuantumRuntimeError, TimeoutError) as error:  # another user's key may be in order
                unread.append((client, error))
            else:
                read.add(_user(client))
                live |= {job.id: job for job in own}
                sessions |= {one.id: one for one in opened}
        for client, cause in unread if read else unread[1:]:
            reason = redact(str(cause)) or "no answer"
            log.warning("The instance could not be read with the key of %s: %s", self._block_of(client), reason)
        if not read:
            raise unread[0][1]
        missing = [self._block_of(client) for client, _ in unread if _user(client) not in read]
        keys = set(map(_user, clients))
        self._past = {key: past for key, past in self._past.items() if key in keys}
        past = {one.id: one for known in self._past.values() for one in known.jobs.values()}
        charged = {one.id: one for known in self._past.values() for one in known.sessions.values()}
        busy = {job.session_id for job in live.values()}
        unseen = self._idle_since.keys() if missing else set[str]()
        self._idle_since = {
            name: self._idle_since.get(name, moment) for name in sessions.keys() | unseen if name not in busy
        }
        shown = (one for one in past.values() if _is_younger(one.created_at, now - _DAY) or one.session_id in sessions)
        crn = clients[0].connection.crn
        return InstanceView(
            hashlib.sha256(crn.encode()).hexdigest()[:10],
            self._block,
            now,
            usage,
            list(live.values()),
            list(past.values()),
            list(sessions.values()),
            list(charged.values()),
            {name: moment - since for name, since in self._idle_since.items()},
            await read_locks(),
            await read_queue(crn),
            await self._name_runs((*live.values(), *shown)),
            missing,
        )

    def _block_of(self, client: QuantumRuntimeClient) -> str:
        return client.connection.block or self._block

    async def _read(
        self, client: QuantumRuntimeClient, now: datetime, moment: float
    ) -> tuple[list[Job], list[Session]]:
        """The live jobs and the open sessions that a key sees; close its sessions over their limit first."""
        try:
            await close_at_limit(client)
        except QuantumRuntimeError as error:  # again at the next check
            log.warning("Sessions over their budget's limit could not be closed: %s", error)
        live = [job async for job in each_job(client, pending=True)]
        known = self._past.setdefault(_user(client), _Past())
        whole, begin = _due(known.jobs_read, moment, now)
        kept = () if whole else known.jobs.values()
        known.jobs = {
            **{one.id: one for one in kept if _is_younger(one.created_at, now - _HISTORY)},
            **{job.id: job async for job in each_job(client, created_after=begin)},
        }
        known.jobs_read = moment if whole else known.jobs_read
        # Apart from the jobs: if there was no time left for one of them, the next check reads only that one whole.
        whole, begin = _due(known.sessions_read, moment, now)
        known.sessions = {
            **{one.id: one for one in known.sessions.values() if _is_younger(one.started_at, now - _HISTORY)},
            **{one.id: one for one in await self._charged(client, begin)},
        }
        known.sessions_read = moment if whole else known.sessions_read
        return live, await self._sessions(client, (*live, *known.jobs.values()), now)


def _user(client: QuantumRuntimeClient) -> str:
    """Tells a client's key from others without showing it."""
    return hashlib.sha256(client.connection.api_key.encode()).hexdigest()


def _due(read: float, moment: float, now: datetime) -> tuple[bool, datetime]:
    """Whether all four weeks are read again, and since when to read; in between the last day will do."""
    whole = moment - read > _HISTORY_AGAIN
    return whole, now - (_HISTORY if whole else _DAY)


def _is_younger(created: datetime | None, moment: datetime) -> bool:
    return created is None or created > moment
