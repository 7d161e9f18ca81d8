"""Two hundred waits over real sockets: requests, ends in time, callers of every kind, forks and the process's end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.client.waiting.poller import JobPoller
from prefect_qruntime.models import Job, JobStatus
from tests.support.scenario import World

MANY = 200


async def submit_all(world: World, number: int) -> list[str]:
    refs = await asyncio.gather(*(world.client.submit(world.intent(f"qr-key:{n}-")) for n in range(number)))
    return [ref.id for ref in refs]


def lists(world: World) -> int:
    return len([entry for entry in world.asked("GET", "/jobs*") if entry["path"].partition("?")[0] == "/jobs"])


def looks(world: World) -> int:
    return len(world.asked("GET", "/jobs/*")) - len(world.asked("GET", "/jobs/*/results"))


def test_submit_wait_and_fetch_two_hundred_in_at_most_500_requests(world: World) -> None:
    world.control.set_times(queue_time=0.5, run_time=0.5)

    async def one(number: int) -> Any:
        ref = await world.client.submit(world.intent(f"qr-key:{number}-"))
        job = await world.client.wait(ref.id, deadlines=Deadlines(total=60.0), stream="never")
        assert job.status is JobStatus.COMPLETED
        return await world.client.result(ref)

    async def main() -> list[Any]:
        return await asyncio.gather(*(one(number) for number in range(MANY)))

    began = time.monotonic()
    results = asyncio.run(main())
    took = time.monotonic() - began
    assert all(sum(result.counts().values()) == 10 for result in results)
    assert (world.posts, len(world.asked("GET", "/jobs/*/results"))) == (MANY, MANY)
    polls = lists(world) + looks(world)
    assert polls <= max(99, 10 * took)  # at most 500 requests in all, unless the machine is very slow
    assert world.control.tcp_connections() <= 8 + 2 * took  # eight at once; one idle for four seconds is not used again


def test_a_hundred_waits_share_their_looks_in_the_queue(world: World) -> None:
    world.control.hold()
    ids = asyncio.run(submit_all(world, MANY // 2))
    world.control.clear_journal()

    async def main() -> list[Job]:
        waits = [asyncio.ensure_future(world.client.wait(job_id, stream="never")) for job_id in ids]
        await asyncio.to_thread(six_lists)
        world.control.release()
        return await asyncio.gather(*waits)

    def six_lists() -> None:
        while lists(world) < 6:
            time.sleep(0.05)

    assert {job.status for job in asyncio.run(main())} == {JobStatus.COMPLETED}
    assert looks(world) + lists(world) <= 80


@pytest.mark.parametrize("lag", [0.0, 1.0])
def test_a_list_that_lags_or_is_refused_is_made_up_for(world: World, lag: float) -> None:
    if lag:
        world.control.set_option("list_lag", lag)
    else:
        world.control.add_fault("GET", "/jobs", status=403, times=None)
    ids = asyncio.run(submit_all(world, 15))

    async def main() -> list[Job]:
        limits = Deadlines(total=30.0)
        return await asyncio.gather(*(world.client.wait(i, deadlines=limits, stream="never") for i in ids))

    assert {job.status for job in asyncio.run(main())} == {JobStatus.COMPLETED}
    assert lists(world) >= 1


def test_callers_of_every_kind_share_the_watcher(world: World) -> None:
    """Async tasks of several loops, threads without a loop, and a loop that already runs."""
    world.control.set_times(queue_time=1.0, run_time=0.2)
    pollers = len(network_loop().all_of(JobPoller))
    ids = asyncio.run(submit_all(world, 30))
    world.control.clear_journal()
    threads_before = threading.active_count()
    told: list[str] = []

    async def on_change(job: Job, waited: float) -> None:
        told.append(threading.current_thread().name)

    def sync(job_id: str) -> Job:
        return world.run(world.client.wait(job_id, stream="never", on_change=on_change))

    async def several(own: list[str]) -> list[Job]:
        return await asyncio.gather(*(world.client.wait(job_id, stream="never") for job_id in own))

    async def blocking_in_a_running_loop(job_id: str) -> Job:
        return sync(job_id)

    with ThreadPoolExecutor(14) as pool:
        futures = [pool.submit(sync, job_id) for job_id in ids[:10]]
        futures.append(pool.submit(asyncio.run, blocking_in_a_running_loop(ids[10])))
        groups = [pool.submit(asyncio.run, several(own)) for own in (ids[11:20], ids[20:30])]
        jobs = [future.result(30) for future in futures] + [job for group in groups for job in group.result(30)]
    assert [job.id for job in jobs] == ids
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert set(told) == {"qruntime-network"}
    assert looks(world) + lists(world) <= 20
    assert threading.active_count() <= threads_before
    assert len(network_loop().all_of(JobPoller)) == pollers + 1


def test_cancelled_callers_take_their_waits_along(world: World) -> None:
    world.control.hold()
    ids = asyncio.run(submit_all(world, 20))

    async def main() -> None:
        waits = [asyncio.ensure_future(world.client.wait(job_id, stream="never")) for job_id in ids]
        await asyncio.sleep(0.5)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)

    asyncio.run(main())
    world.control.clear_journal()
    time.sleep(0.8)  # nothing may happen in it: there is no state to wait for
    assert world.asked() == []
    world.control.release()


SCRIPT = """
import asyncio, os, threading, time
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.sandbox import Sandbox

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'

def client_of(sandbox):
    return QuantumRuntimeClient(Connection(**sandbox.connection()))

async def submit(client, number):
    spec = make_spec([BELL], backend="sandbox_ideal")
    refs = [client.submit(Intent(spec, lambda g, n=n: f"qr-key:{n}-{g}")) for n in range(number)]
    return [ref.id for ref in await asyncio.gather(*refs)]

async def wait(client, ids):
    return await asyncio.gather(*(client.wait(i) for i in ids))
"""


def script(code: str) -> str:
    """Run a script of its own, which must end well and quietly, and return what it printed."""
    shown = ("-W", "default::ResourceWarning", "-W", "default::RuntimeWarning")
    command = [sys.executable, *shown, "-c", SCRIPT + code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.strip()


def test_after_a_fork_parent_and_child_wait_each_for_themselves() -> None:
    # The child is forked while the parent's watcher is at work, from a thread that the fork leaves behind.
    code = """
with Sandbox(physics=False, queue_time=1.5, run_time=0.1) as sandbox:
    client = client_of(sandbox)
    ids = client.run(submit(client, 10))
    ended = []
    thread = threading.Thread(target=lambda: ended.extend(client.run(wait(client, ids))))
    thread.start()
    while not sandbox.control.journal("GET"):
        time.sleep(0.02)
    pid = os.fork()
    if pid == 0:
        mine = client.run(wait(client, ids))
        os._exit(len(mine))
    status = os.waitpid(pid, 0)[1]
    thread.join()
    print(os.waitstatus_to_exitcode(status), len(ended), {job.raw_status for job in ended})
"""
    assert script(code) == "10 10 {'Completed'}"


def test_the_process_ends_promptly_with_many_waits_under_way() -> None:
    code = """
sandbox = Sandbox(physics=False, queue_time=3600, websocket="both").start()
client = client_of(sandbox)
ids = client.run(submit(client, 30))
def forever():
    try:
        client.run(wait(client, ids))
    except BaseException:
        pass
threading.Thread(target=forever, daemon=True).start()
while not sandbox.control.journal("GET"):
    time.sleep(0.02)
print("leaving")
"""
    began = time.monotonic()
    assert script(code) == "leaving"
    assert time.monotonic() - began < 200  # the jobs take an hour
