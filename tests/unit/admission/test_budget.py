"""What a budget leaves, what is counted, and which reservations stay."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import given, settings, strategies as st
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_qruntime import Budget, QuantumRuntimeCredentials, QuantumRuntimePolicy
from prefect_qruntime.admission import (
    budget as budget_module,
    guard as gate_module,
    policy as policy_module,
    rate_limit,
)
from prefect_qruntime.admission.budget import as_budget, scopes
from prefect_qruntime.admission.budget_core import (
    Remaining,
    Reservation,
    SessionHold,
    allowed_seconds,
    job_limit,
    tally,
    used_up,
)
from prefect_qruntime.admission.guard import BudgetsAlone, admission_guard
from prefect_qruntime.admission.ledger import Ledger, ledger
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import (
    BudgetExhausted,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PolicyRefused,
    QuantumRuntimeError,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import Job, JobRef, JobStatus, Session, SessionRef, Usage
from prefect_qruntime.observability.artifacts import Record
from prefect_qruntime.run_context import RunContext

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
RUN = RunContext("f1", "flow-run:f1", False, False, 1, 0.0)
FLOW = "qr-flow:f1"


class TestTheBlock(BlockStandardTestSuite):
    """Prefect's own rules for blocks."""

    @pytest.fixture
    def block(self) -> type[Block]:
        return Budget

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Without the network: it is the one of the credentials block."""
        assert block._logo_url == QuantumRuntimeCredentials._logo_url


def room(limit: str = "max_seconds_per_run", allowed: float = 100, used: float = 0, reserved: float = 0) -> Remaining:
    return Remaining("mine", limit, allowed, used, reserved)


@pytest.mark.parametrize(
    ("rooms", "wanted", "cap"),
    [
        ([], None, None),
        ([], 7, 7),
        ([room()], 100, 100),
        ([room(used=59.5)], None, 40),
        ([room(allowed=1e6)], None, MOST_SECONDS),
        ([room(used=10, reserved=20), room(allowed=90)], None, 70),
        ([room("max_jobs_per_run", 2, 1)], None, None),
        ([room("max_jobs_per_run", 2, 1), room()], None, 100),
    ],
)
def test_what_a_job_may_use(rooms: list[Remaining], wanted: int | None, cap: int | None) -> None:
    assert allowed_seconds(rooms, wanted) == cap


@pytest.mark.parametrize(
    ("rooms", "wanted", "limit"),
    [
        ([room()], 101, "max_seconds_per_run"),
        ([room(used=61)], 40, "max_seconds_per_run"),
        ([room(reserved=61)], 40, "max_seconds_per_run"),
        ([room(used=99.5)], None, "max_seconds_per_run"),
        ([room(used=130)], 1, "max_seconds_per_run"),
        ([room(), room("min_remaining_seconds", 50, 20)], 40, "min_remaining_seconds"),
        ([room("max_jobs_per_run", 2, 2), room(used=100)], 1, "max_jobs_per_run"),
    ],
)
def test_what_does_not_fit(rooms: list[Remaining], wanted: int | None, limit: str) -> None:
    with pytest.raises(BudgetExhausted) as caught:
        allowed_seconds(rooms, wanted)
    error = caught.value
    assert (error.limit, error.budget, error.needed) == (limit, "mine", None if limit == "max_jobs_per_run" else wanted)
    assert not error.advice.may_repeat
    assert limit in str(error)
    again: BudgetExhausted = pickle.loads(pickle.dumps(error))
    assert again.fields == error.fields


@pytest.mark.parametrize("bad", [0, 5.0, "", "  ", [], object()])
def test_what_is_no_budget(bad: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        as_budget(bad)
    assert caught.value.field == "budget"


@pytest.mark.parametrize("imposed", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("no route"),
        httpx.ReadTimeout("slow"),
        httpx.HTTPStatusError("500", request=httpx.Request("GET", "http://x"), response=httpx.Response(500)),
        RuntimeError("the server does not start"),
    ],
)
def test_a_budget_that_prefect_does_not_hand_out_refuses_in_our_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, imposed: bool
) -> None:
    async def down(*_: object, **__: object) -> Budget:
        raise error

    monkeypatch.setattr(budget_module, "load_saved", down)
    if imposed:
        monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK", "mine")
    with pytest.raises(QuantumRuntimeError, match=r"budget 'mine' cannot be read.*was not sent") as caught:
        asyncio.run(budget_module.budgets_in_force(None if imposed else "mine"))
    assert caught.value.advice.may_repeat


NUMBERS = [name for name, one in Budget.model_fields.items() if one.annotation is not bool]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, -1, "many", [5]])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_limit_is_a_finite_number_however_it_is_given(name: str, bad: Any) -> None:
    """JSON has no infinity: such a limit would be saved as none."""
    budget = Budget()
    with pytest.raises(ValidationError, match=name):
        Budget(**{name: bad})
    with pytest.raises(ValidationError, match=name):
        setattr(budget, name, bad)
    assert budget == Budget()


@pytest.mark.parametrize("days", [5e-324, 1e-320, 1e-300, 1e-9, 0.0, 0.039, 366.1, 1e308])
def test_a_period_is_one_that_can_be_calculated_with_and_limits_something(days: float) -> None:
    """Within less than an hour hardly anything counts, and a tiny number of days has no place in a calendar."""
    with pytest.raises(ValidationError, match="period_days"):
        Budget(max_seconds_per_deployment=10, period_days=days)


def job(number: int, status: JobStatus = JobStatus.QUEUED, used: float | None = None, **fields: Any) -> Job:
    given = {"usage_final": used is not None, "max_execution_time": 40, **fields}
    return Job(id=f"d{number}", status=status, tags=(f"qr-key:{number}", FLOW), usage_seconds=used, **given)


def reserved(number: int, seconds: float = 40, **fields: Any) -> Reservation:
    return Reservation(f"qr-key:{number}", "f1", None, seconds, time.monotonic(), **fields)


def test_every_job_counts_once() -> None:
    total = tally(
        [
            job(1, JobStatus.COMPLETED, 11.5),
            job(2, JobStatus.FAILED, 3),
            job(3, JobStatus.CANCELLED, 0),
            job(4, JobStatus.RUNNING),
            job(5, JobStatus.COMPLETED, 7, usage_final=False),
            job(6, max_execution_time=None),
            job(9, backend="mock_sandbox_ideal"),  # a dry run costs nothing
        ],
        [
            reserved(1, job_id="d1"),  # listed
            reserved(4),  # listed, though its answer is not here yet
            reserved(7),  # on its way
            reserved(8, job_id="d8", job=job(8, JobStatus.COMPLETED, 5)),  # seen elsewhere, not listed yet
        ],
    )
    assert total.jobs == 8
    assert total.used == 11.5 + 3 + 0 + 5
    assert total.reserved == 40 + 40 + MOST_SECONDS + 40
    assert total.settling == {"d5": 40}


class Instance:
    """What the ledger asks of a client.

    Attributes:
        listed: What lists show, live and over.
        known: What single looks show besides.
        left: QPU seconds the instance has left.
    """

    def __init__(self, *listed: Job, left: float | None = None) -> None:
        self.connection = Connection(api_key="unit-test-key", crn=CRN, base_url="http://127.0.0.1:9/api/v1")
        self.listed = list(listed)
        self.known: dict[str, Job] = {}
        self.left = left

    async def jobs_tagged(self, tag: str) -> list[Job]:
        await asyncio.sleep(0)
        return [job for job in self.listed if tag in job.tags]

    async def jobs(self, *, pending: bool, **filters: Any) -> list[Job]:
        return [job for job in self.listed if job.is_terminal is not pending]

    async def job(self, job_id: str) -> Job:
        if job_id not in self.known:
            raise NotFound("not yet")
        return self.known[job_id]

    async def usage(self) -> Usage:
        await asyncio.sleep(0)
        return Usage(limit_seconds=None if self.left is None else 600, consumed_seconds=600 - (self.left or 0))


def reserve(book: Ledger, instance: Any, budget: Budget, number: int = 1, wanted: int | None = None) -> Any:
    async def main() -> Any:
        made, cap = await book.reserve(instance, [budget], RUN, f"qr-key:{number}", wanted)
        return made, cap

    return asyncio.run(main())


def test_two_submissions_never_share_the_last_seconds() -> None:
    book, instance = Ledger(), Instance(left=500)
    # Two limits: what the first one found is old when the second one is known.
    budget = Budget(max_seconds_per_run=100, min_remaining_seconds=1)

    async def main() -> list[Any]:
        calls = (book.reserve(instance, [budget], RUN, f"qr-key:{n}", 40) for n in range(10))  # type: ignore[arg-type]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(main())
    assert sum(isinstance(one, BudgetExhausted) for one in found) == 8
    assert len(book.reservations) == 2


def test_a_second_post_of_one_intent_reserves_once() -> None:
    book, instance = Ledger(), Instance()
    for _ in range(2):
        assert reserve(book, instance, Budget(max_seconds_per_run=60, default_max_execution_time=40))[1] == 40
    assert len(book.reservations) == 1


def test_the_stricter_of_two_budgets_holds() -> None:
    book, instance = Ledger(), Instance()
    two = [Budget(max_seconds_per_run=60, default_max_execution_time=50), Budget(default_max_execution_time=30)]

    async def main() -> Any:
        return await book.reserve(instance, two, RUN, "qr-key:1", None)  # type: ignore[arg-type]

    assert asyncio.run(main())[1] == 30


def test_the_instance_keeps_its_minimum() -> None:
    stranger = Job(id="x1", status=JobStatus.RUNNING, max_execution_time=100)
    endless = Job(id="x2", status=JobStatus.QUEUED, max_execution_time=MOST_SECONDS, estimated_running_seconds=20)
    book, instance = Ledger(), Instance(stranger, endless, left=300)
    budget = Budget(min_remaining_seconds=100, default_max_execution_time=40)
    first, _ = reserve(book, instance, budget, 1)
    first.job_id = "d1"
    # 300 left, 100 to keep, 100 + 20 for live jobs of others, 40 reserved: 40 more fit, no second time.
    second, _ = reserve(book, instance, budget, 2)
    second.job_id = "d2"
    with pytest.raises(BudgetExhausted) as caught:
        reserve(book, instance, budget, 3)
    assert (caught.value.limit, caught.value.reserved) == ("min_remaining_seconds", 200)
    # Over and final: now the instance's own number says it.
    instance.known = {"d1": job(1, JobStatus.COMPLETED, 15), "d2": job(2, JobStatus.COMPLETED, 15)}
    instance.left = 270
    assert reserve(book, instance, budget, 3)[1] == 40


def test_a_deleted_job_is_not_reserved_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    book, instance = Ledger(), Instance(left=100)
    budget = Budget(min_remaining_seconds=50, default_max_execution_time=40)
    first, _ = reserve(book, instance, budget, 1)
    first.job_id = "d1"
    with pytest.raises(BudgetExhausted):  # it may be too new to be shown
        reserve(book, instance, budget, 2)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0")
    assert reserve(book, instance, budget, 2)[1] == 40


def test_an_instance_without_a_limit_has_no_minimum() -> None:
    assert reserve(Ledger(), Instance(left=None), Budget(min_remaining_seconds=100))[1] is None


@pytest.fixture
def book() -> Iterator[Ledger]:
    """The ledger that `gate` uses for the instance, with nothing in it."""
    found = ledger(CRN)
    found.reservations.clear()
    yield found
    found.reservations.clear()


BUDGET = Budget(max_seconds_per_run=100, default_max_execution_time=40)


async def submit(instance: Any, error: BaseException | None, *, post: bool = True, attached: bool = False) -> JobSpec:
    """Go through the gate as a submission that ends with `error`."""
    async with admission_guard(instance, JobSpec("sampler", "b"), RUN, BUDGET) as passing:
        spec = await passing.before_post("qr-key:1") if post else None
        if error is not None:
            raise error
        passing.bought(JobRef(id="d1", attached=attached))
    return spec or JobSpec("none", "")


def test_a_bought_job_stays_reserved_and_carries_its_limit(book: Ledger) -> None:
    assert asyncio.run(submit(Instance(), None)).max_execution_time == 40
    assert [one.job_id for one in book.reservations] == ["d1"]


def test_attaching_reserves_nothing(book: Ledger) -> None:
    asyncio.run(submit(Instance(), None, post=False, attached=True))
    assert book.reservations == []


@pytest.mark.parametrize("error", [InvalidInput("no"), QuantumRuntimeError("refused")])
def test_a_refused_job_leaves_no_reservation(book: Ledger, error: Exception) -> None:
    with pytest.raises(QuantumRuntimeError):
        asyncio.run(submit(Instance(), error))
    assert book.reservations == []


@pytest.mark.parametrize("error", [SubmissionUncertain("?"), asyncio.CancelledError(), RuntimeError("odd")])
def test_what_may_have_been_bought_counts_until_the_list_must_show_it(
    book: Ledger, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.05")
    with pytest.raises(type(error)):
        asyncio.run(submit(Instance(), error))
    assert len(book.reservations) == 1
    until = book.reservations[0].doubtful_until
    assert until is not None
    while time.monotonic() <= until:
        time.sleep(0.01)
    reserve(book, Instance(), BUDGET, 2)
    assert [one.key for one in book.reservations] == ["qr-key:2"]


def test_a_submission_cancelled_while_it_waits_for_its_turn_leaves_nothing(
    book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "1")
    pacer = rate_limit.RateLimiter(CRN)
    network_loop().keep(pacer, rate_limit.limit_name(CRN))

    async def main() -> None:
        turn = await pacer.take(1, 60.0, shared=False)
        waiting = asyncio.ensure_future(submit(Instance(), None))
        while not book.reservations:  # noqa: ASYNC110  what is waited for is the state itself
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        turn.drop(sent=False)
        await asyncio.wait_for(pacer.take(1, 60.0, shared=False), 1)

    asyncio.run(main())
    assert book.reservations == []


def test_an_outage_while_the_budget_is_checked_buys_nothing(book: Ledger) -> None:
    instance = Instance()

    async def down(tag: str) -> list[Job]:
        raise ServiceUnavailable("down")

    instance.jobs_tagged = down  # type: ignore[method-assign]
    with pytest.raises(ServiceUnavailable):
        asyncio.run(submit(instance, None))
    assert book.reservations == []


@pytest.mark.parametrize("limit", [{"max_seconds_per_run": 90}, {"max_jobs_per_run": 2}])
def test_outside_a_flow_the_process_is_the_run(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    book, instance = Ledger(), Instance()
    budget, nowhere = Budget(default_max_execution_time=40, **limit), RunContext(None, "call:1", False, False, 0, 0.0)

    async def spend_once(number: int) -> Reservation:
        return (await book.reserve(instance, [budget], nowhere, f"qr-key:{number}", None))[0]  # type: ignore[arg-type]

    for number in (1, 2):
        made = asyncio.run(spend_once(number))
        made.job_id = f"d{number}"
        instance.known[made.job_id] = job(number, JobStatus.COMPLETED, 39)
    made.began -= 1e6  # a notebook may live for weeks
    for _ in range(2):
        with pytest.raises(BudgetExhausted) as caught:
            asyncio.run(spend_once(3))
        assert (caught.value.used, caught.value.reserved) == ((78, 0) if "max_seconds_per_run" in limit else (2, 0))
    # Runs have limits of their own.
    assert reserve(book, instance, budget, 4)[1] == 40


@pytest.mark.parametrize(
    ("budget", "held"),
    [
        ({"default_max_execution_time": 3}, ()),
        ({"max_jobs_per_run": 1}, ("run:f1",)),
        ({"max_seconds_per_deployment": 1, "max_seconds_per_run": 1}, ("deployment:d1", "run:f1")),
        ({"min_remaining_seconds": 1}, (f"instance:{CRN}",)),
    ],
)
def test_what_processes_must_not_count_at_once(budget: Any, held: tuple[str, ...]) -> None:
    inside = RunContext("f1", "flow-run:f1", False, False, 1, 0.0, deployment_id="d1")
    assert scopes([Budget(**budget)], inside, CRN) == held
    nowhere = RunContext(None, "call:1", False, False, 0, 0.0)
    assert scopes([Budget(**budget)], nowhere, CRN) == tuple(name for name in held if name.startswith("instance"))


def test_where_prefect_gives_no_lock_nothing_is_bought(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Any] = []

    @contextlib.asynccontextmanager
    async def lock(wanted: Any) -> Any:
        tries.append(wanted)
        if len(tries) == 1:
            raise QuantumRuntimeError("Prefect is away")
        yield ()

    monkeypatch.setattr(gate_module, "budget_lock", lock)
    monkeypatch.setattr(gate_module, "in_run", lambda: True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.05")
    with pytest.raises(QuantumRuntimeError, match="Prefect is away"):
        asyncio.run(submit(Instance(), None))
    assert book.reservations == []
    assert asyncio.run(submit(Instance(), None)).max_execution_time == 40
    assert tries == [("run:f1",)] * 2


@pytest.mark.parametrize("trouble", [QuantumRuntimeError("Prefect is away"), asyncio.CancelledError()])
def test_a_lock_that_was_given_back_is_taken_again(
    book: Ledger, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    held: list[tuple[str, ...]] = []
    troubles = [None, trouble, None]

    @contextlib.asynccontextmanager
    async def lock(wanted: Any) -> Any:
        failure = troubles.pop(0)
        if failure is not None:
            raise failure
        held.append(wanted)
        try:
            yield ()
        finally:
            held.remove(wanted)

    monkeypatch.setattr(gate_module, "budget_lock", lock)
    monkeypatch.setattr(gate_module, "in_run", lambda: True)
    wider = Budget(max_seconds_per_run=100, min_remaining_seconds=1)

    async def main() -> None:
        locked = BudgetsAlone(BUDGET, RUN, CRN)
        async with locked.stack:
            assert await locked.read() == [BUDGET]
            locked.own = wider
            with pytest.raises(type(trouble)):
                await locked.read()
            locked.own = BUDGET
            await locked.read()
            assert held == [("run:f1",)]

    asyncio.run(main())


LOWER = Budget(max_seconds_per_run=30, default_max_execution_time=40)
ELSEWHERE = QuantumRuntimePolicy(hosts=["another.example"])


@pytest.mark.parametrize("wait", ["the team's turn", "the budget's lock", "the create rate"])
@pytest.mark.parametrize("change", ["lowered", "deleted", "replaced", "a policy"])
def test_what_an_administrator_changes_holds_for_submissions_that_wait(
    book: Ledger, monkeypatch: pytest.MonkeyPatch, wait: str, change: str
) -> None:
    """Whatever a submission waits for, it goes by the budget and the policy that are there when it is sent."""
    saved: list[Any] = [BUDGET]
    policies: list[QuantumRuntimePolicy | None] = [None]
    held: list[tuple[str, ...]] = []
    monkeypatch.setattr(gate_module, "_FRESH", 0.0)
    monkeypatch.setattr(gate_module, "in_run", lambda: True)
    monkeypatch.setattr(gate_module, "report_exhausted", lambda *args, **more: None)

    def waited(what: str) -> None:
        if what == wait:
            new = {"lowered": LOWER, "deleted": InvalidInput("no budget"), "replaced": Budget(max_jobs_per_run=7)}
            saved[0] = new.get(change, BUDGET)
            policies[0] = ELSEWHERE if change == "a policy" else None

    async def in_force(own: Any) -> list[Budget]:
        if isinstance(saved[0], Exception):
            raise saved[0]
        return [saved[0]]

    async def policy() -> QuantumRuntimePolicy | None:
        return policies[0]

    async def permit(connection: Connection) -> None:
        waited("the create rate")

    @contextlib.asynccontextmanager
    async def turn(*_: object) -> Any:
        waited("the team's turn")
        yield

    @contextlib.asynccontextmanager
    async def lock(wanted: Any) -> Any:
        waited("the budget's lock")
        held.append(wanted)
        try:
            yield ()
        finally:
            held.remove(wanted)

    for name, double in (("budgets_in_force", in_force), ("acquire", permit), ("share_turn", turn)):
        monkeypatch.setattr(gate_module, name, double)
    monkeypatch.setattr(gate_module, "budget_lock", lock)
    monkeypatch.setattr(policy_module, "policy_in_force", policy)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.05")

    async def main() -> JobSpec | None:
        async with admission_guard(Instance(), JobSpec("sampler", "b"), RUN, "b") as passing:  # type: ignore[arg-type]
            return await passing.before_post("qr-key:1")

    if change == "replaced":  # by one that counts jobs, so that no limit is sent
        assert asyncio.run(main()) is None
        return
    with pytest.raises({"lowered": BudgetExhausted, "deleted": InvalidInput, "a policy": PolicyRefused}[change]):
        asyncio.run(main())
    assert (book.reservations, held) == ([], [])


@pytest.mark.parametrize("refusal", ["no room", "an outage", "a cancelled read"])
def test_a_second_post_that_is_refused_leaves_the_first_one_reserved(
    book: Ledger, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "report_exhausted", lambda *args, **more: None)
    instance, wider = Instance(), JobSpec("sampler", "b", max_execution_time=101)

    async def down(tag: str) -> list[Job]:
        raise asyncio.CancelledError if refusal == "a cancelled read" else ServiceUnavailable("down")

    async def main() -> None:
        async with admission_guard(instance, JobSpec("sampler", "b"), RUN, BUDGET) as passing:  # type: ignore[arg-type]
            await passing.before_post("qr-key:1")
            if refusal == "no room":
                passing.spec = wider
            else:
                instance.jobs_tagged = down  # type: ignore[method-assign]
            await passing.before_post("qr-key:1")

    with pytest.raises((QuantumRuntimeError, asyncio.CancelledError)):
        asyncio.run(main())
    (kept,) = book.reservations
    assert (kept.key, kept.seconds) == ("qr-key:1", 40)
    assert kept.doubtful_until is not None


SECONDS = st.none() | st.integers(1, 200)


@given(wish=SECONDS, default=SECONDS, ceiling=SECONDS, left=st.none() | st.floats(0.5, 300), in_budget=st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_lowest_of_wish_or_default_policy_and_what_is_left_is_sent(
    wish: int | None, default: int | None, ceiling: int | None, left: float | None, in_budget: bool
) -> None:
    """`left` may be what a budget has left, or what the session has left in which the job runs."""
    budget = Budget(max_seconds_per_run=left, default_max_execution_time=default) if in_budget else None
    asked = wish if wish is not None else default if budget else None
    left = left if budget else None
    limits = [one for one in (asked, ceiling, MOST_SECONDS if left is not None else None) if one is not None]
    expected = min(limits, default=None)
    if asked is None and left is not None:
        expected = min([*limits, math.floor(left)])
    fits = left is None or (expected is not None and 1 <= expected <= left)

    async def admit(*args: Any) -> tuple[int | None, None]:
        return ceiling, None

    async def sent() -> int | None:
        spec = JobSpec("sampler", "b", max_execution_time=wish)
        async with admission_guard(Instance(), spec, RUN, budget) as passing:  # type: ignore[arg-type]
            spec = await passing.before_post("qr-key:1") or spec
            raise InvalidInput(str(spec.max_execution_time))  # it leaves no reservation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module.policy, "admit", admit)
        patch.setattr(gate_module, "report_exhausted", lambda *args, **more: None)
        with pytest.raises(InvalidInput if fits else BudgetExhausted) as caught:
            asyncio.run(sent())
    if fits:
        assert caught.value.message == str(expected)


@given(wish=SECONDS, ceiling=SECONDS, left=st.floats(0.5, 300))
def test_a_session_s_job_keeps_to_the_policy_too(wish: int | None, ceiling: int | None, left: float) -> None:
    session = Remaining("mine", "session", left, 0.0)
    try:
        outside: object = allowed_seconds([session], wish, ceiling)
    except BudgetExhausted as error:
        outside = error.fields
    try:
        inside: object = job_limit([Remaining("mine", "max_seconds_per_run", 1, 1)], session, wish, ceiling)
    except BudgetExhausted as error:
        inside = error.fields
    assert inside == outside


def test_usage_that_becomes_final_is_waited_for_with_the_policy_s_limit() -> None:
    book, instance = Ledger(), Instance(job(1, JobStatus.COMPLETED, 1, usage_final=False))
    budget = Budget(max_seconds_per_run=60)

    async def main() -> tuple[Any, ...]:
        asyncio.get_running_loop().call_later(0.2, instance.listed.__setitem__, 0, job(1, JobStatus.COMPLETED, 1))
        wanted = book.reserve(instance, [budget], RUN, "qr-key:2", None, ceiling=30)  # type: ignore[arg-type]
        first = (await wanted)[1]
        wanted = book.reserve(instance, [budget], RUN, "qr-key:3", 30, ceiling=29)  # type: ignore[arg-type]
        return first, (await wanted)[1]

    # 20 are left at once, and that will do where nobody asked for more.
    assert asyncio.run(main()) == (20, 29)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("step", ["session", "close_session"])
@pytest.mark.parametrize("kind", [PermissionDenied, NotFound, InvalidInput, ServiceUnavailable])
def test_a_session_that_is_refused_keeps_no_other_open_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, kind: type[QuantumRuntimeError], step: str, place: int
) -> None:
    closed: list[str] = []
    holds = [
        SessionHold(f"t{n}", 10.0, CRN, 0.0, session_id=f"s{n}", closes=True, begun_after=time.time() - 60)
        for n in range(3)
    ]

    class Service:
        connection = Connection(api_key="unit-test-key", crn=CRN)

        def refuse(self, name: str, session_id: str) -> None:
            if (name, session_id) == (step, f"s{place}"):
                raise kind("not yours")

        async def session(self, session_id: str) -> Session:
            self.refuse("session", session_id)
            return Session(id=session_id, state="active")

        async def close_session(self, session_id: str, *, drain: bool) -> Session | None:
            try:
                self.refuse("close_session", session_id)
            except NotFound:
                return None
            closed.append(session_id)
            return Session(id=session_id, state="closed")

        async def jobs(self, **_: Any) -> list[Job]:
            return []

        def known_clock_skew(self) -> float:
            return 0.0

    async def read_holds(*_: Any) -> list[SessionHold]:
        return holds

    def told(_: str, ref: SessionRef, **__: Any) -> None:
        assert ref.id in closed, "what this key does not see is not called closed"

    monkeypatch.setattr(budget_module, "read_holds", read_holds)
    monkeypatch.setattr(budget_module.notifications, "session_event", told)
    client: Any = Service()
    if kind is ServiceUnavailable:  # no other would be answered
        with pytest.raises(ServiceUnavailable):
            asyncio.run(budget_module.close_at_limit(client))
        assert closed == [f"s{n}" for n in range(place)]
    else:
        assert asyncio.run(budget_module.close_at_limit(client)) == closed == [f"s{n}" for n in range(3) if n != place]


@pytest.mark.parametrize("kind", [PermissionDenied, NotFound])
@pytest.mark.parametrize(
    ("age", "begun", "used"), [(60, True, 60), (3000, True, 600), (60, False, 0), (3000, False, 0)]
)
def test_a_session_of_another_user_counts_by_the_clock(
    kind: type[QuantumRuntimeError], age: float, begun: bool, used: float
) -> None:
    """Whichever answer the service has for another user's session: it refuses no submission of this one."""

    class Service(Instance):
        connection = Connection(api_key="unit-test-key", crn=CRN)

        async def session(self, session_id: str) -> Session:
            raise kind("another user's")

        def known_clock_skew(self) -> float:
            return 0.0

    async def submits() -> float:
        book, opened = Ledger(), time.time() - age
        hold = SessionHold("t1", 600.0, CRN, opened, session_id="s1", begun_after=opened if begun else None)
        book.sessions.holds["t1"] = hold
        await book.reserve(Service(), [Budget(max_seconds_per_run=2000)], replace(RUN, flow_run_id=None), "k", 20)
        return used_up(book.sessions.holds["t1"], opened + age)

    assert asyncio.run(submits()) == pytest.approx(used)


@pytest.mark.parametrize("name", ["allotted", "opened", "told", "over", "final", "begun_after"])
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "soon"])
def test_a_hold_that_holds_no_numbers_lifts_no_limit(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    facts = {"token": "t1", "allotted": "600", "crn": CRN, "opened": f"{time.time()}", "session_id": "s1", name: text}

    async def find_records(*_: Any, **__: Any) -> list[Record]:
        return [Record(UUID(int=1), "qruntime-hold-t1", facts, None, None)]

    monkeypatch.setattr(budget_module, "find_records", find_records)
    assert asyncio.run(budget_module.read_holds(CRN, datetime.now(UTC))) == []


@pytest.mark.parametrize("days", [2, 10, 25])
def test_a_session_that_is_open_for_weeks_counts_in_other_processes(
    monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    written = datetime.now(UTC) - timedelta(days=days)
    facts = {"token": "t1", "allotted": "600", "crn": CRN, "opened": f"{written.timestamp()}", "session_id": "s1"}
    record = Record(UUID(int=1), "qruntime-hold-t1", {**facts, "flow_run_id": "f1"}, None, written)

    async def find_records(kind: str, *, since: datetime) -> list[Record]:
        return [record] if kind == "hold" and written >= since else []

    class Service(Instance):
        connection = Connection(api_key="unit-test-key", crn=CRN)

        async def session(self, session_id: str) -> Session:
            return Session(id=session_id, state="open")

        def known_clock_skew(self) -> float:
            return 0.0

    monkeypatch.setattr(budget_module, "find_records", find_records)
    monkeypatch.setattr(budget_module, "in_run", lambda: True)
    with pytest.raises(BudgetExhausted) as caught:
        asyncio.run(Ledger().reserve(Service(), [Budget(max_seconds_per_run=610)], RUN, "k", 20))
    assert caught.value.reserved == 600


@pytest.mark.parametrize("refusal", [PermissionDenied, NotFound])
@pytest.mark.parametrize("refused", [1, 3])
def test_a_session_of_ones_own_that_is_refused_for_a_while_is_closed_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, refused: int, refusal: type[QuantumRuntimeError]
) -> None:
    closed: list[str] = []

    class Service:
        connection = Connection(api_key="unit-test-key", crn=CRN)
        reads = 0

        async def session(self, session_id: str) -> Session:
            self.reads += 1
            if 1 < self.reads <= 1 + refused:
                raise refusal("not now")
            return Session(id=session_id, state="active")

        async def close_session(self, session_id: str, *, drain: bool) -> Session | None:
            if 1 < self.reads <= 1 + refused:
                return None  # the session is not known to it either
            closed.append(session_id)
            raise asyncio.CancelledError  # enough is seen

        async def jobs(self, **_: Any) -> list[Job]:
            return []

        def known_clock_skew(self) -> float:
            return 0.0

    async def main() -> None:
        opened, known = time.time() - 3600, budget_module.SessionHolds()
        hold = SessionHold("t1", 3605.0, CRN, opened, session_id="s1", closes=True, begun_after=opened)
        known.holds["t1"] = hold
        client: Any = Service()
        await known.look_at(client, "s1", hold)
        known.holds["t1"] = replace(known.holds["t1"], allotted=10.0)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(known._close_at_limit(client, "t1"), 30)

    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SESSION_WATCH_SECONDS", "0.01")
    asyncio.run(main())
    assert closed == ["s1"]
