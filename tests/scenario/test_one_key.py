"""One submission key used several times in one process over real sockets: one job, whatever the list shows."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import JobRef, JobStatus
from tests.support.scenario import BACKEND, BELL, World

FLIP = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; x q[0]; x q[1]; measure q -> c;'
UNREADABLE: list[dict[str, Any]] = [
    {"status": 200, "body": ""},
    {"status": 200, "body": "<html>welcome</html>"},
    {"status": 200, "body": {"job_id": "x"}},
    {"status": 200, "body": []},
    {"status": 202, "body": "null"},
    {"drop": "middle"},  # the status line arrives, and half of the body
]


def explicit(world: World, **options: Any) -> Any:
    return world.client.submit(world.intent(**{"search_seconds": 0.3, "grace": 5.0, **options}))


def one_job(world: World, refs: list[JobRef]) -> None:
    assert len({ref.id for ref in refs}) == 1
    assert [job["id"] for job in world.control.jobs()] == [refs[0].id]
    assert sorted(ref.attached for ref in refs) == [False, *[True] * (len(refs) - 1)]
    assert world.posts == 1


def test_one_after_the_other_although_the_list_lags(world: World) -> None:
    world.control.set_option("list_lag", 3.0)
    one_job(world, [world.run(explicit(world)) for _ in range(3)])


@pytest.mark.parametrize("lag", [0.0, 0.5, 30.0])
def test_gathered(world: World, lag: float) -> None:
    world.control.set_option("list_lag", lag)

    async def main() -> list[JobRef]:
        return await asyncio.gather(*(explicit(world) for _ in range(5)))

    one_job(world, world.run(main()))


def test_twenty_threads(world: World) -> None:
    world.control.set_option("list_lag", 30.0)
    with ThreadPoolExecutor(20) as pool:
        one_job(world, list(pool.map(lambda _: world.run(explicit(world)), range(20))))


def test_two_clients_of_one_instance(world: World) -> None:
    world.control.set_option("list_lag", 30.0)
    other = world.another(application="another")
    first = world.run(explicit(world))
    one_job(world, [first, other.run(other.submit(world.intent(search_seconds=0.3)))])


def test_two_instances_do_not_share_a_job(world: World) -> None:
    other = world.another(2)
    first = world.run(explicit(world))
    second = other.run(other.submit(world.intent(search_seconds=0.3)))
    assert first.id != second.id
    assert not second.attached


def test_a_lost_answer_serves_all_who_wait(world: World) -> None:
    world.control.set_option("list_lag", 0.5)
    world.control.add_fault("POST", "/jobs", drop="after")

    async def main() -> list[JobRef]:
        return await asyncio.gather(*(explicit(world) for _ in range(4)))

    refs = world.run(main())
    assert {ref.id for ref in refs} == {job["id"] for job in world.control.jobs()}
    assert (world.posts, all(ref.attached for ref in refs)) == (1, True)


def test_a_refusal_serves_the_next_one(world: World) -> None:
    world.control.add_fault("POST", "/jobs", status=400)

    async def main() -> list[Any]:
        return await asyncio.gather(*(explicit(world) for _ in range(3)), return_exceptions=True)

    ends = world.run(main())
    assert sum(isinstance(end, QuantumRuntimeError) for end in ends) == 1
    assert (world.posts, len(world.control.jobs())) == (2, 1)


@pytest.mark.parametrize("fault", UNREADABLE, ids=str)
def test_nothing_is_posted_after_a_2xx(world: World, fault: dict[str, Any]) -> None:
    world.control.set_option("list_lag", 30.0)
    world.control.add_fault("POST", "/jobs", times=None, **{"after_handler": "drop" not in fault, **fault})
    for _ in range(2):  # the second caller, too, knows that it was accepted
        with pytest.raises(SubmissionUncertain, match="accepted") as caught:
            world.run(explicit(world, grace=0.5))
        assert caught.value.submission_key == "qr-key:test0"
        assert "qr-key:test0" in caught.value.solution
    assert (world.posts, len(world.control.jobs())) == (1, 1)
    world.control.set_option("list_lag", 0.0)
    ref = world.run(explicit(world, grace=0.5))
    assert (ref.id, ref.attached, world.posts) == (world.control.jobs()[0]["id"], True, 1)


def test_an_unreadable_2xx_is_found_when_the_list_has_caught_up(world: World) -> None:
    world.control.set_option("list_lag", 0.5)
    world.control.add_fault("POST", "/jobs", after_handler=True, status=200, body="")
    ref = world.run(explicit(world))
    assert (ref.attached, world.posts, len(world.control.jobs())) == (True, 1, 1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pubs": [FLIP]}, "circuit"),
        ({"shots": 7}, "shots"),
        ({"pubs": [BELL, BELL]}, "2 PUBs"),
        ({"private": True}, "private"),
        ({"options": {"default_shots": 3}}, "is not what was asked for|"),
    ],
    ids=str,
)
def test_a_copied_tag_is_not_attached_to(world: World, changed: dict[str, Any], words: str) -> None:
    # Somebody else with the same rights has put our tag on another job.
    other = world.another(application="another")
    spec = make_spec(**{"pubs": [BELL], "backend": BACKEND, "shots": 10, **changed})
    theirs = other.run(other.post_job(spec, ("qr-key:test0",), None))
    if "options" in changed:  # what was not asked for may have been filled in by the service
        assert world.run(explicit(world)).id == theirs.id
        return
    with pytest.raises(SubmissionUncertain, match="not what was asked for") as caught:
        world.run(explicit(world))
    assert words in str(caught.value)
    assert caught.value.candidates == [theirs.id]
    assert world.posts == 1


def test_a_copied_tag_is_not_attached_to_after_a_lost_answer_either(world: World) -> None:
    other = world.another(application="another")
    other.run(other.post_job(make_spec([FLIP], backend=BACKEND, shots=10), ("qr-key:test0",), None))
    world.control.add_fault("POST", "/jobs", drop="before")
    with pytest.raises(SubmissionUncertain, match="not what was asked for"):
        world.submit()
    assert len(world.control.jobs()) == 1


def test_a_job_is_reported_in_the_session_it_is_in(world: World) -> None:
    first = world.run(world.client.open_session(BACKEND, max_ttl=600))
    ref = world.submit(session=first)
    assert world.wait(ref).status is JobStatus.COMPLETED
    service_says = world.run(world.client.job(ref.id)).session_id
    second = world.run(world.client.open_session(BACKEND, max_ttl=600))
    world.run(_forgotten())
    again = world.submit(session=second, search_until=0.0)
    assert again.session is not None
    assert (again.id, again.session.id) == (ref.id, service_says)
    known = world.submit(session=second, search_until=0.0)
    assert known.session is not None
    assert (known.id, known.session.id) == (ref.id, service_says)


async def _forgotten() -> None:
    from prefect_qruntime.client.submission import submission_memory

    submission_memory().forget()
