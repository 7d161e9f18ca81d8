"""Which alarms an instance gives, once for each crossing, and what its board shows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from prefect_qruntime.admission.locks import LockState
from prefect_qruntime.admission.share_core import Row
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    ServiceUnavailable,
)
from prefect_qruntime.models import Job, JobStatus, Session, Usage
from prefect_qruntime.settings import QuantumRuntimeSettings
from prefect_qruntime.suspend import alarms as module
from prefect_qruntime.suspend.alarms import Alarm, InstanceView, InstanceWatch, alarms, board, board_line
from tests.support.virtual_clock import run

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
RICH = Usage(consumed_seconds=10, limit_seconds=600, period_start=NOW - timedelta(days=3))
CALM = InstanceView("i1", "ibm", NOW, RICH)
SETTINGS = QuantumRuntimeSettings()
RUN = [str(UUID(int=number)) for number in range(10_000)]


def job(number: int, *, days: float = 0.1, used: float = 0.0, owner: bool = True, **fields: Any) -> Job:
    tags = (f"qr-flow:{RUN[number]}",) if owner else ()
    given = {"status": JobStatus.COMPLETED, "usage_seconds": used, "created_at": NOW - timedelta(days=days), **fields}
    return Job(id=f"d{number}", tags=tags, **given)


def names(view: InstanceView) -> list[str]:
    return [one.event for one in alarms(view, SETTINGS)]


def ids(view: InstanceView) -> set[Any]:
    return {one.id for one in alarms(view, SETTINGS)}


def test_a_calm_instance_gives_none() -> None:
    assert names(CALM) == []
    assert names(replace(CALM, usage=Usage(consumed_seconds=1e6), past=[job(1)])) == []


def test_little_allowance_is_told_once_a_period() -> None:
    low = replace(CALM, usage=RICH.model_copy(update={"consumed_seconds": 481.0}))
    assert names(low) == ["qruntime.allowance.low"]
    later = replace(low, now=NOW + timedelta(days=2), usage=RICH.model_copy(update={"consumed_seconds": 599.0}))
    assert ids(later) == ids(low)
    next_period = RICH.model_copy(update={"consumed_seconds": 590.0, "period_start": NOW + timedelta(days=28)})
    assert ids(replace(later, usage=next_period)).isdisjoint(ids(low))


@pytest.mark.parametrize("name", ["limit_seconds", "allocation_seconds"])
def test_little_allowance_is_told_again_after_its_limit_was_changed(name: str) -> None:
    def low(limit: float | None, used: float, **fields: Any) -> InstanceView:
        given = {"limit_seconds": None, name: limit, "consumed_seconds": used, **fields}
        return replace(CALM, usage=RICH.model_copy(update=given))

    assert names(low(1200.0, 500.0)) == []
    raised = {limit: ids(low(limit, limit)) for limit in (600.0, 900.0, 1200.0)}
    assert len(set.union(*raised.values())) == 3
    # More may be used than is allowed, and the service may say that it is enough.
    for over in (low(600.0, 611.0), low(600.0, 700.0), low(600.0, 300.0, limit_reached=True)):
        assert ids(over) == raised[600.0]
        assert alarms(over, SETTINGS)[0].text == "0 of 600 QPU seconds are left, 20 % or less."
    units = [low(None, used, limit_reached=True) for used in (10.0, 20.0)]  # its limit is in resource units
    assert ids(units[0]) == ids(units[1]) != set()


def test_an_idle_session_is_told_again_only_after_another_job() -> None:
    session = Session(id="s1", state="active")
    idle = replace(CALM, sessions=[session], idle={"s1": 601.0}, past=[job(1, session_id="s1")])
    (alarm,) = alarms(idle, SETTINGS)
    assert (alarm.event, alarm.facts["flow_run_id"]) == ("qruntime.session.idle", RUN[1])
    assert "no job for 10 minutes" in alarm.text
    soon = alarms(replace(idle, idle={"s1": 100.0}), SETTINGS.model_copy(update={"alarm_idle_minutes": 1.0}))
    assert "no job for 1 minute and" in soon[0].text
    assert ids(replace(idle, idle={"s1": 9000.0})) == {alarm.id}
    used_again = replace(idle, past=[job(1, session_id="s1"), job(2, session_id="s1")])
    assert ids(used_again).isdisjoint({alarm.id})
    assert names(replace(idle, idle={"s1": 599.0})) == []
    assert names(replace(idle, sessions=[Session(id="s1", mode="batch")])) == []


def test_jobs_without_an_owner_are_told_each_once() -> None:
    queued = job(1, days=9, owner=False, status=JobStatus.QUEUED)
    view = replace(CALM, live=[queued], past=[queued, job(2, owner=False), job(3, days=2, owner=False), job(4)])
    assert {one.facts["job_id"] for one in alarms(view, SETTINGS)} == {"d1", "d2"}
    assert len(ids(view)) == 2


@pytest.mark.parametrize("told", ["", "nightly", "../x", "0123", RUN[1][:-1]])
def test_a_tag_without_a_flow_run_s_id_gives_no_owner(told: str) -> None:
    odd = job(1).model_copy(update={"tags": (f"qr-flow:{told}",)})
    assert odd.flow_run_id is None
    assert names(replace(CALM, past=[odd])) == ["qruntime.job.unowned"]
    assert job(1).model_copy(update={"tags": (f"qr-flow:{RUN[99].upper()}",)}).flow_run_id == RUN[99]


def test_spending_is_measured_against_the_instance_s_own_past() -> None:
    past = [job(day, days=day + 0.5, used=100.0) for day in range(1, 21)]
    assert names(replace(CALM, past=[*past, job(99, used=290.0)])) == []
    much = replace(CALM, past=[*past, job(99, used=310.0)])
    assert names(much) == ["qruntime.spending.unusual"]
    assert ids(replace(much, past=[*past, job(99, used=900.0)])) == ids(much)
    assert names(replace(much, past=[*past, job(50, days=9.5, used=400.0), job(99, used=390.0)])) == []
    assert names(replace(CALM, past=[*past[:4], job(99, used=9000.0)])) == []  # too little is known
    little = [job(day, days=day + 0.5, used=1.0) for day in range(1, 21)]
    assert names(replace(CALM, past=[*little, job(99, used=50.0)])) == []


@pytest.mark.parametrize("ahead", [0.0, 0.01, 0.2, 1.5])
def test_what_was_spent_by_a_clock_that_is_ahead_was_spent_in_the_last_day(ahead: float) -> None:
    past = [job(day, days=day + 0.5, used=100.0) for day in range(1, 21)]
    assert names(replace(CALM, past=[*past, job(99, days=-ahead, used=310.0)])) == ["qruntime.spending.unusual"]


@pytest.mark.parametrize(
    ("charged", "jobs_used", "counted"),
    [(400.0, 3.0, 400.0), (290.0, 3.0, 290.0), (None, 3.0, 3.0), (None, 310.0, 310.0), (0.0, 310.0, 310.0)],
)
def test_a_dedicated_session_costs_what_it_is_charged_by_the_clock(
    charged: float | None, jobs_used: float, counted: float
) -> None:
    past = [job(day, days=day + 0.5, used=100.0) for day in range(1, 21)]
    session = Session(id="s1", started_at=NOW - timedelta(days=0.2), usage_seconds=charged)
    of_session = [job(99, session_id="s1", used=jobs_used - 1), job(99, session_id="s1", used=1.0)]
    view = replace(CALM, past=[*past, *of_session], charged=[session])
    raised = alarms(view, SETTINGS)
    assert [one.event for one in raised] == (["qruntime.spending.unusual"] if counted > 300 else [])
    assert all(one.facts["seconds"] == counted for one in raised)
    assert f"| {RUN[99]} | 2 | {counted:g} |" in board(view, raised)
    # One of an earlier day is a part of what is usual.
    earlier = session.model_copy(update={"id": "s2", "started_at": NOW - timedelta(days=3.5), "usage_seconds": 9000.0})
    assert names(replace(view, charged=[session, earlier])) == []
    # A session of which no job is known has no owner.
    unknown = replace(CALM, charged=[session.model_copy(update={"usage_seconds": 5.0})])
    assert "| none | 0 | 5 |" in board(unknown, [])


def test_dry_runs_spend_nothing() -> None:
    past = [job(day, days=day + 0.5, used=100.0) for day in range(1, 21)]
    dry = replace(CALM, past=[*past, job(99, used=5000.0, backend="mock_torino")])
    assert names(dry) == []
    assert "5000" not in board(dry, [])


def test_a_stuck_lock_is_told() -> None:
    locks = [LockState("l1", "flow run 7", 1e4, "row1"), LockState("l2", "flow run 8", 5.0, "row2")]
    assert [one.about for one in alarms(replace(CALM, locks=locks), SETTINGS)] == [("lock", "l1")]


def test_the_board_shows_all_and_quotes_nothing_as_markup() -> None:
    evil = job(1, status=JobStatus.QUEUED, backend="[x](http://evil.example)", raw_status="Queued")
    view = replace(
        CALM,
        live=[evil, *(job(n, status=JobStatus.QUEUED) for n in range(2, 30))],
        past=[job(40, used=5.0), job(41, used=7.0)],
        sessions=[Session(id="s1", state="active", activated_at=NOW)],
        names={RUN[2]: "brave-bee", RUN[40]: "[same](x)", RUN[41]: "[same](x)"},
        queue=[Row("1", "physics", 0.0), Row("2", "physics", 0.0), Row("3", "", 0.0), Row("4", "x", 0.0, granted=1.0)],
    )
    text = board(view, alarms(replace(view, idle={"s1": 700.0}), SETTINGS))
    for wanted in (
        "590 s left",
        "29 live jobs",
        "physics | 2 ",
        "qruntime.session.idle",
        "and 9 more",
        "1 open session\n",
        "| brave-bee |",
        f"| {RUN[3]} |",
        "\\[same\\]\\(x\\) | 1 | 7",
        "\\[same\\]\\(x\\) | 1 | 5",
    ):
        assert wanted in text, text
    assert "[x](http" not in text
    assert "| x |" not in text
    assert board_line(view, alarms(view, SETTINGS)) == "ibm · 590 s left · 29 live"
    low = replace(CALM, usage=RICH.model_copy(update={"consumed_seconds": 529.25}))
    assert board_line(low, alarms(low, SETTINGS)) == "ibm · 1 alarm · 71 s left · 0 live"


class Client:
    """The service as a watcher asks it."""

    connection = Connection(api_key="unit-test-key", crn="crn:v1:bluemix:public:quantum-computing:us-east:a/01:11::")

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.listed = [job(1, session_id="s1"), job(2, session_id="gone", owner=False)]

    async def jobs(self, *, pending: bool = False, created_after: datetime | None = None, **_: Any) -> list[Job]:
        if created_after is not None:
            self.asked.append(created_after)
        return [] if pending else self.listed

    async def workloads(self, **options: Any) -> list[dict[str, Any]]:
        return [{"id": "s2", "mode": "session"}, {"id": "d1", "mode": "job"}]

    async def session(self, session_id: str) -> Session:
        self.asked.append(session_id)
        return Session(id=session_id, state="closed" if session_id == "gone" else "active")

    async def usage(self) -> Usage:
        return RICH


def test_the_names_of_flow_runs_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    async def flow_runs_by_id(wanted: set[str]) -> dict[str, Any]:
        asked.append(wanted)
        return {RUN[1]: SimpleNamespace(name="brave-bee")} if RUN[1] in wanted else {}

    monkeypatch.setattr(module, "flow_runs_by_id", flow_runs_by_id)
    watch = InstanceWatch("ibm")

    async def looks() -> list[dict[str, str]]:
        return [await watch._name_runs(jobs) for jobs in ([job(1), job(2)], [job(1), job(2), job(3, owner=False)])]

    assert asyncio.run(looks()) == [{RUN[1]: "brave-bee", RUN[2]: RUN[2]}] * 2
    assert asked == [{RUN[1], RUN[2]}]


@pytest.mark.parametrize("kind", [PermissionDenied, InvalidInput, NotFound, QuantumRuntimeError])
@pytest.mark.parametrize("step", ["session", "workloads"])
def test_a_session_that_the_key_may_not_read_hides_no_other(step: str, kind: Any, caplog: Any) -> None:
    class Refusing(Client):
        async def workloads(self, **options: Any) -> list[dict[str, Any]]:
            if step == "workloads":
                raise kind("not yours")
            return await super().workloads(**options)

        async def session(self, session_id: str) -> Session:
            if step == "session" and session_id == "s1":
                raise kind("not yours")
            return await super().session(session_id)

    watch, client = InstanceWatch("ibm"), cast("Any", Refusing())

    async def looks() -> list[list[str]]:
        return [[one.id for one in await watch._sessions(client, client.listed, NOW)] for _ in range(2)]

    assert asyncio.run(looks()) == [["s2"] if step == "session" else ["s1"]] * 2
    assert caplog.text.count("not yours") == (kind is not NotFound), "told once"


@pytest.fixture
def quiet_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prefect without locks, queues and flow runs, and no session at its limit."""

    async def nothing(*args: Any) -> list[Any]:
        return []

    async def runs(wanted: set[str]) -> dict[str, Any]:
        return {}

    for name in ("close_at_limit", "read_locks", "read_queue"):
        monkeypatch.setattr(module, name, nothing)
    monkeypatch.setattr(module, "flow_runs_by_id", runs)


class OneUser(Client):
    """The service as the key of one user shows it."""

    def __init__(self, user: int, refuses: Exception | None = None) -> None:
        super().__init__()
        self.connection = replace(Client.connection, api_key=f"key-of-user-{user}", block=f"block{user}")
        self.user, self.refuses, self.quiet = user, refuses, False
        now = datetime.now(UTC)
        fields = {"status": JobStatus.QUEUED, "session_id": f"s{user}", "created_at": now}
        past = [job(100 * user + day, used=100.0, created_at=now - timedelta(days=day)) for day in range(1, 21)]
        self.live, self.listed = job(user, **fields), past

    async def jobs(self, *, pending: bool = False, created_after: datetime | None = None, **_: Any) -> list[Job]:
        if isinstance(self.refuses, TimeoutError):
            await asyncio.Event().wait()
        if self.refuses is not None:
            raise self.refuses
        if pending:
            return [self.live]
        return [one for one in self.listed if created_after is None or (one.created_at or NOW) >= created_after]

    async def workloads(self, **options: Any) -> list[dict[str, Any]]:
        return []

    async def session(self, session_id: str) -> Session:
        if session_id != f"s{self.user}":
            raise NotFound("another user's")
        return Session(id=session_id, state="active")


@pytest.mark.usefixtures("quiet_prefect")
def test_what_sessions_are_charged_is_kept_for_four_weeks_and_read_anew_each_day() -> None:
    now = datetime.now(UTC)
    told = {"s-old": (now - timedelta(days=20), 50.0), "s-new": (now - timedelta(hours=2), 7.0)}
    refused: list[Exception] = []

    class Sessions(OneUser):
        async def workloads(self, **options: Any) -> list[dict[str, Any]]:
            if options.get("mode") != "session":
                return []
            if refused:
                raise refused[0]
            odd = [{"mode": "session"}, {"id": "d1", "mode": "job"}, {"id": "../x", "mode": "session"}]
            return odd + [
                {"id": name, "mode": "session", "created": began.isoformat(), "usage": {"seconds": seconds}}
                for name, (began, seconds) in told.items()
                if began >= options["created_after"]
            ]

    watch, client = InstanceWatch("ibm"), cast("Any", Sessions(1))

    async def charged() -> dict[str, float | None]:
        return {one.id: one.usage_seconds for one in (await watch._view(client)).charged}

    async def looks() -> None:
        assert await charged() == {"s-old": 50.0, "s-new": 7.0}
        told["s-new"] = told["s-new"][0], 900.0
        assert await charged() == {"s-old": 50.0, "s-new": 900.0}
        refused.append(PermissionDenied("not yours"))
        assert await charged() == {"s-old": 50.0, "s-new": 900.0}, "what is known stays"
        assert await InstanceWatch("ibm")._view(client), "jobs and alarms are shown nevertheless"

    asyncio.run(looks())


@pytest.mark.usefixtures("quiet_prefect")
def test_what_a_check_read_before_its_time_was_over_is_not_read_again_by_the_next_one() -> None:
    asked = list[tuple[str, int]]()

    class Slow(OneUser):
        async def jobs(self, **options: Any) -> list[Job]:
            if "created_after" in options:
                asked.append(("jobs", (datetime.now(UTC) - options["created_after"]).days))
            return await super().jobs(**options)

        async def workloads(self, **options: Any) -> list[dict[str, Any]]:
            if options.get("mode") == "session":
                asked.append(("sessions", (datetime.now(UTC) - options["created_after"]).days))
                if len(asked) == 2:
                    raise TimeoutError
            return []

    watch, client = InstanceWatch("ibm"), cast("Any", Slow(1))

    async def looks() -> None:
        with pytest.raises(TimeoutError):
            await watch._view(client)
        assert len((await watch._view(client)).past) == 20
        await watch._view(client)

    asyncio.run(looks())
    assert asked == [("jobs", 28), ("sessions", 28), ("jobs", 1), ("sessions", 28), ("jobs", 1), ("sessions", 1)]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize(
    "refusal",
    [None, AuthenticationError("revoked"), PermissionDenied("no role"), ServiceUnavailable("down"), TimeoutError()],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.usefixtures("quiet_prefect")
def test_what_one_key_may_not_read_another_shows(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, int], refusal: Exception | None
) -> None:
    asked: list[str] = []

    async def close(client: Any) -> list[str]:
        asked.append(client.connection.block)
        return []

    monkeypatch.setattr(module, "close_at_limit", close)
    users = {user: OneUser(user) for user in order}
    clients = [cast("Any", one) for one in users.values()]
    watch = InstanceWatch("ibm")

    def shown(view: InstanceView) -> tuple[set[str], set[str], list[str]]:
        return {one.id for one in view.live}, {one.id for one in view.sessions}, list(view.unread)

    async def looks() -> None:
        view = await watch._view(*clients)
        assert shown(view) == ({"d1", "d2"}, {"s1", "s2"}, [])
        assert asked == [f"block{user}" for user in order], "sessions over their limit are closed with their user's key"
        assert len(view.past) == 40
        assert "Incomplete" not in board(view, [])
        users[1].refuses = refusal
        view = await watch._view(*clients)
        assert len(view.past) == 40, "a usual day costs what it did"
        if refusal is not None:
            assert shown(view) == ({"d2"}, {"s2"}, ["block1"])
            assert "keys of block1" in board(view, [])
            assert board_line(view, []).endswith("incomplete")
            with pytest.raises(type(refusal)):
                await InstanceWatch("ibm")._view(clients[order.index(1)])
        users[1].refuses = None
        view = await watch._view(*clients)
        assert shown(view) == ({"d1", "d2"}, {"s1", "s2"}, [])
        assert len((await watch._view(clients[0])).past) == 20, "the other block was deleted"

    run(looks())


@pytest.mark.parametrize("down", [0, 1, None])
@pytest.mark.usefixtures("quiet_prefect")
def test_an_instance_is_read_once_with_a_key_that_several_blocks_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, down: int | None
) -> None:
    """They may differ in the host, the proxy or a time limit; one that leads nowhere leaves nothing unknown."""
    asked: list[int] = []

    async def close(client: Any) -> None:
        asked.append(blocks.index(client))

    monkeypatch.setattr(module, "close_at_limit", close)
    blocks = [OneUser(1) for _ in range(2)]
    blocks[1].connection = replace(blocks[1].connection, request_timeout=60.0)
    if down is not None:
        blocks[down].refuses = ServiceUnavailable("no such host")
    view = asyncio.run(InstanceWatch("ibm")._view(*(cast("Any", one) for one in blocks)))
    assert ({one.id for one in view.live}, list(view.unread)) == ({"d1"}, [])
    assert asked == ([0, 1] if down == 0 else [0])
    for one in blocks:
        one.refuses = ServiceUnavailable("no such host")
    caplog.clear()
    with pytest.raises(ServiceUnavailable):
        asyncio.run(InstanceWatch("ibm")._view(cast("Any", blocks[0])))
    assert "no such host" not in caplog.text, "the watcher logs it"


@pytest.mark.usefixtures("quiet_prefect")
def test_a_key_that_fails_for_a_while_does_not_make_its_idle_session_new() -> None:
    users, watch = [OneUser(1), OneUser(2)], InstanceWatch("ibm")
    clients = [cast("Any", one) for one in users]
    users[0].listed = [users[0].live.model_copy(update={"id": "d50", "status": JobStatus.COMPLETED})]
    users[0].live = users[0].live.model_copy(update={"session_id": None})

    async def looks() -> None:
        await watch._view(*clients)
        since = dict(watch._idle_since)
        assert set(since) == {"s1"}
        users[0].refuses = ServiceUnavailable("down")
        await watch._view(*clients)
        users[0].refuses = None
        await watch._view(*clients)
        assert watch._idle_since == since

    asyncio.run(looks())


@pytest.mark.parametrize("kind", [PermissionDenied, NotFound])
@pytest.mark.usefixtures("quiet_prefect")
def test_an_instance_whose_usage_may_not_be_read_gives_its_other_alarms(kind: type[QuantumRuntimeError]) -> None:
    class Unknown(OneUser):
        async def usage(self) -> Usage:
            raise kind("not yours")

    users = [cast("Any", Unknown(1)), cast("Any", OneUser(2))]
    users[0].live = users[0].live.model_copy(update={"tags": ()})
    view = asyncio.run(InstanceWatch("ibm")._view(users[0]))
    assert names(view) == ["qruntime.job.unowned"]
    assert "· QPU time not known ·" in board(view, [])
    assert board_line(view, []) == "ibm · QPU time not known · 1 live"
    assert asyncio.run(InstanceWatch("ibm")._view(*users)).usage == RICH


def test_an_outage_is_no_refusal() -> None:
    class Down(Client):
        async def session(self, session_id: str) -> Session:
            raise ServiceUnavailable("down")

    client: Any = Down()
    with pytest.raises(ServiceUnavailable):
        asyncio.run(InstanceWatch("ibm")._sessions(client, client.listed, NOW))


class Events:
    """Prefect's events, by id, and what was asked."""

    def __init__(self) -> None:
        self.kept = set[str]()
        self.asked: list[list[str]] = []
        self.down = False

    async def request(self, method: str, path: str, *, json: Any) -> Any:
        assert (method, path) == ("POST", "/events/filter")
        if self.down:
            raise OSError("no Prefect")
        self.asked.append(json["filter"]["id"]["id"])
        found = [{"id": one} for one in json["filter"]["id"]["id"] if one in self.kept]
        assert len(found) <= json["limit"] <= 50
        return SimpleNamespace(json=lambda: {"events": found})


@pytest.mark.parametrize("number", [1, 50, 51, 130])
def test_what_prefect_has_is_not_given_again(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    server = Events()

    async def api() -> Events:
        return server

    monkeypatch.setattr(module, "api", api)
    raised = [Alarm("qruntime.job.unowned", ("job", f"d{one}"), "", "text") for one in range(number)]
    watch = InstanceWatch("ibm")

    def untold(watch: InstanceWatch) -> list[Alarm]:
        return asyncio.run(watch._untold(raised))

    server.down = True
    assert untold(watch) == raised, "rather twice than never"
    server.down = False
    assert untold(watch) == raised
    server.kept = {str(one.id) for one in raised[1:]}
    assert untold(watch) == raised[:1]
    assert untold(InstanceWatch("ibm")) == raised[:1], "a restarted one"
    server.kept.add(str(raised[0].id))
    assert untold(watch) == []
    server.asked.clear()
    assert untold(watch) == []
    assert server.asked == [], "it knows"


def test_a_restarted_watcher_gives_the_same_alarms_and_reads_little_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    written: list[Any] = []

    async def nothing(*args: Any) -> list[Any]:
        return []

    async def upsert(*args: Any, **options: Any) -> None:
        written.append(args)

    async def api() -> Events:
        return Events()

    async def runs(wanted: set[str]) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(module, "api", api)
    monkeypatch.setattr(module, "flow_runs_by_id", runs)
    for name in ("close_at_limit", "read_locks", "read_queue"):
        monkeypatch.setattr(module, name, nothing)
    monkeypatch.setattr(module, "upsert", upsert)
    monkeypatch.setattr(module, "emit", lambda *args, event_id, **options: sent.append(event_id))
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALARM_IDLE_MINUTES", "0.000001")
    client: Any = Client()
    client.listed = [one.model_copy(update={"created_at": datetime.now(UTC)}) for one in client.listed]

    async def looks(number: int) -> None:
        watch = InstanceWatch("ibm")
        for _ in range(number):
            await watch.look(client)

    asyncio.run(looks(2))
    first = list(sent)
    assert len(set(first)) == 3  # two idle sessions, and a job without an owner
    assert client.asked.count("gone") == 1
    begins = [one for one in client.asked if isinstance(one, datetime)]
    assert begins[1] - begins[0] > timedelta(days=26)
    asyncio.run(looks(2))
    assert set(sent) == set(first)
    assert {args[:2] for args in written} == {("instance", written[0][1])}
