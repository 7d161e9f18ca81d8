"""Sessions over real sockets: opened once, closed as asked, nothing dropped by mistake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_qruntime.client.sessions import close_session, session_memory
from prefect_qruntime.errors import PermissionDenied, SessionClosed, SubmissionUncertain
from prefect_qruntime.models import JobStatus, SessionRef
from tests.support.scenario import BACKEND, World

CLOUD_ONLY = pytest.mark.parametrize("dialect", ["cloud"], indirect=True)


def begin(world: World, **options: Any) -> SessionRef:
    """A session that exists, whatever the dialect needs for it."""
    session: SessionRef = world.run(world.client.open_session(BACKEND, max_ttl=600, **options))
    if session.id is None:
        assert world.control.sessions() == []
        ref = world.submit("qr-key:first", session=session)
        assert ref.session is not None
        world.wait(ref)
        session = ref.session
    return session


def test_jobs_of_a_session(world: World) -> None:
    session = begin(world)
    assert session.id is not None
    refs = [world.submit(f"qr-key:{n}-", session=session) for n in range(3)]
    assert all(world.wait(ref).session_id == session.id for ref in refs)
    (kept,) = world.control.sessions()
    assert kept["id"] == session.id
    closed = world.run(world.client.close_session(session.id, drain=True))
    assert closed is not None
    assert closed.ref().is_closed
    assert world.control.open_sessions() == []
    with pytest.raises(SessionClosed):
        world.submit("qr-key:late", session=session)


def test_drain_lets_queued_jobs_run(world: World) -> None:
    session = begin(world)
    world.control.hold()
    refs = [world.submit(f"qr-key:{n}-", session=session) for n in range(2)]
    read = world.run(world.client.close_session(str(session.id), drain=True))
    assert (read.accepting_jobs, read.ref().is_closed) == (False, False)
    world.control.release()
    assert {world.wait(ref).status for ref in refs} == {JobStatus.COMPLETED}


@pytest.mark.parametrize("lag", ["list_lag", "get_lag"])
def test_drain_drops_no_job_that_does_not_show_yet(world: World, lag: str) -> None:
    session = begin(world)
    world.control.hold()
    world.control.set_option("list_lag", 30.0)
    world.control.set_option(lag, 30.0)
    ref = world.submit("qr-key:new", session=session)
    world.run(world.client.close_session(str(session.id), drain=True))
    assert world.control.job(ref.id)["status"] == "Queued"
    world.control.release()
    world.control.wait_job(ref.id)
    assert world.control.job(ref.id)["status"] == "Completed"


def test_drop_ends_queued_jobs(world: World) -> None:
    session = begin(world)
    world.control.hold()
    refs = [world.submit(f"qr-key:{n}-", session=session) for n in range(2)]
    read = world.run(world.client.close_session(str(session.id), drain=False))
    assert read.ref().is_closed
    world.control.release()
    assert not {world.wait(ref).status for ref in refs} & {JobStatus.COMPLETED}
    assert world.control.open_sessions() == []


@pytest.mark.parametrize("path", ["/sessions/*", "/sessions/*/close"])
@pytest.mark.parametrize("fault", [{"drop": "after"}, {"status": 503}, {"status": 503, "after_handler": True}], ids=str)
def test_trouble_while_closing(world: World, path: str, fault: dict[str, Any]) -> None:
    session = begin(world)
    for method in ("PATCH", "DELETE", "GET"):
        world.control.add_fault(method, path, times=2, **fault)
    assert world.run(world.client.close_session(str(session.id), drain=True)).ref().is_closed


@pytest.mark.parametrize("drain", [True, False])
def test_a_session_nobody_knows(world: World, monkeypatch: pytest.MonkeyPatch, drain: bool) -> None:
    defaults = close_session.__kwdefaults__
    monkeypatch.setattr(close_session, "__kwdefaults__", {**defaults, "patience": 1.0})  # 20 seconds for users
    assert world.run(world.client.close_session("nobody", drain=drain)) is None
    asked = [call for call in world.asked() if "/sessions/nobody" in call["path"]]
    assert len(asked) >= 2, "one answer proves nothing"


@CLOUD_ONLY
@pytest.mark.parametrize("mode", ["dedicated", "batch"])
@pytest.mark.parametrize(
    "fault", [{"drop": "after"}, {"drop": "middle"}, {"status": 503, "after_handler": True}], ids=str
)
def test_a_lost_answer_opens_no_second_session(world: World, mode: str, fault: dict[str, Any]) -> None:
    world.control.add_fault("POST", "/sessions", **fault)
    session = world.run(world.client.open_session(BACKEND, mode=mode, max_ttl=600))
    assert [kept["id"] for kept in world.control.sessions()] == [session.id]
    assert len(world.asked("POST", "/sessions")) == 1


@CLOUD_ONLY
def test_a_lost_answer_and_a_list_that_lags(world: World) -> None:
    world.control.set_option("list_lag", 0.6)
    world.control.add_fault("POST", "/sessions", drop="after")
    session = world.run(world.client.open_session(BACKEND))
    assert [kept["id"] for kept in world.control.sessions()] == [session.id]


@CLOUD_ONLY
def test_an_equal_session_of_our_own_is_not_mistaken_for_the_lost_one(world: World) -> None:
    first = world.run(world.client.open_session(BACKEND))
    world.control.add_fault("POST", "/sessions", drop="after")
    second = world.run(world.client.open_session(BACKEND))
    assert first.id != second.id
    assert len(world.control.sessions()) == 2
    assert {first.id, second.id} <= world.run(_handed_out())


async def _handed_out() -> set[str]:
    return set(session_memory().ours)


@CLOUD_ONLY
def test_a_lost_answer_and_no_list_is_uncertain(world: World) -> None:
    world.control.add_fault("POST", "/sessions", drop="after")
    world.control.add_fault("GET", "/workloads", status=403)
    with pytest.raises(SubmissionUncertain):
        world.run(world.client.open_session(BACKEND))
    assert len(world.control.sessions()) == 1


@CLOUD_ONLY
def test_a_plan_without_dedicated_sessions(world: World) -> None:
    world.control.set_option("allow_dedicated", False)
    with pytest.raises(PermissionDenied) as caught:
        world.run(world.client.open_session(BACKEND))
    assert caught.value.code == 1352
    assert "batch" in str(caught.value)
    assert world.run(world.client.open_session(BACKEND, mode="batch")).mode == "batch"


@CLOUD_ONLY
def test_cancelled_while_opening_nothing_is_left_open(world: World) -> None:
    world.control.add_fault("POST", "/sessions", delay=0.4)

    async def main() -> None:
        work = asyncio.create_task(world.client.open_session(BACKEND))
        while not world.asked("POST", "/sessions"):  # noqa: ASYNC110 - the journal is all there is
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert len(world.control.sessions()) == 1
    assert world.control.open_sessions() == []


@CLOUD_ONLY
@pytest.mark.parametrize("fault", [{"status": 200, "body": ""}, {"status": 200, "body": {"session": "x"}}], ids=str)
def test_no_other_session_is_opened_after_a_2xx(world: World, fault: dict[str, Any]) -> None:
    world.control.add_fault("POST", "/sessions", after_handler=True, **fault)
    session = world.run(world.client.open_session(BACKEND))
    assert [kept["id"] for kept in world.control.sessions()] == [session.id]
    assert len(world.asked("POST", "/sessions")) == 1


@CLOUD_ONLY
def test_two_lost_answers_at_once_open_two_sessions(world: World) -> None:
    world.control.add_fault("POST", "/sessions", drop="after", times=2)

    async def main() -> list[SessionRef]:
        return await asyncio.gather(*(world.client.open_session(BACKEND, max_ttl=600) for _ in range(2)))

    opened = {session.id for session in world.run(main())}
    assert opened == {kept["id"] for kept in world.control.sessions()}
    assert len(opened) == len(world.asked("POST", "/sessions")) == 2
