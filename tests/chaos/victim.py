"""The process that gets killed: carries out one order of the campaign, and says what it begins.

Started as a host it imports everything once and forks a child for each order it reads from stdin, which
makes a campaign of hundreds of runs affordable. `python -m tests.chaos.victim ORDER` runs one in a new process.
A child dies in one of two ways: by its own hand in a certain exchange with the service, or by the host's, some time
after it has said that it begins something.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect import flow
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow

import prefect_qruntime as qr
from prefect_qruntime.client import submission_keys
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.suspend.watcher import run_watch
from tests.chaos.campaign import circuit_for
from tests.chaos.killer import follow

BACKEND = "sandbox_ideal"
_out = 1  # where this process says what it begins and how it ended


def say(**facts: Any) -> None:
    """Tell the process that watches this one; the line is out before anything else happens."""
    os.write(_out, json.dumps(facts).encode() + b"\n")


def begin(stage: str) -> None:
    """Say what comes now."""
    say(stage=stage)


def die() -> None:
    """End as a pod eviction ends a process: without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, nth: int, port: int) -> None:
    """Make this process die at `point`, on the service's `nth` matching exchange."""
    if point in ("none", "after-submit"):
        return
    send = httpx.AsyncClient.send
    seen = 0

    async def deadly(self: httpx.AsyncClient, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        nonlocal seen
        if request.url.port != port or not matches(point, request):
            return await send(self, request, **kwargs)
        seen += 1
        if seen != nth:
            return await send(self, request, **kwargs)
        if point.startswith("before-"):
            die()
        answer = asyncio.ensure_future(send(self, request, **kwargs))
        if point.startswith("in-"):
            await asyncio.sleep(0.05)
            die()
        await answer
        die()
        raise AssertionError("dead")

    httpx.AsyncClient.send = deadly  # type: ignore[method-assign,assignment]


def matches(point: str, request: httpx.Request) -> bool:
    """Whether this exchange is the kind that `point` names."""
    path = request.url.path.removeprefix("/api/v1")
    if point.endswith("-post"):
        return request.method == "POST" and path == "/jobs"
    if point.endswith("-open"):
        return request.method == "POST" and path == "/sessions"
    if point == "mid-fetch":
        return path.endswith("/results")
    return request.method == "GET" and path.startswith("/jobs/") and not path.endswith("/results")


def submitted(order: dict[str, Any]) -> None:
    """Where a process dies whose job is noted."""
    if order["kill"]["point"] == "after-submit":
        die()


def session_of(order: dict[str, Any], credentials: Any) -> Any:
    """The session of an order, if it wants one."""
    if not order["session"]:
        return nullcontext()
    begin("open")
    return qr.runtime_session(credentials, BACKEND, max_ttl=300)


def what(order: dict[str, Any], session: Any) -> dict[str, Any]:
    """The submission of an order."""
    return {"backend": BACKEND, "session": session, "shots": 20, "submission_key": order["key"]}


@flow(name="chaos-sync")
def chaos_sync(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch by calling the tasks."""
    begin("start")
    credentials = qr.load_credentials(order["block"])
    with session_of(order, credentials) as session:
        begin("submit")
        job = qr.submit_job(credentials, [order["circuit"]], **what(order, session))
        submitted(order)
        begin("wait")
        qr.wait_for_completion(credentials, job)
        begin("fetch")
        counts = qr.fetch_results(credentials, job).counts()
        begin("close")
    begin("end")
    return counts


@flow(name="chaos-threads")
def chaos_threads(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch on the task runner's threads."""
    begin("start")
    credentials = qr.load_credentials(order["block"])
    with session_of(order, credentials) as session:
        begin("submit")
        job = qr.submit_job.submit(credentials, [order["circuit"]], **what(order, session)).result()
        submitted(order)
        begin("wait")
        qr.wait_for_completion.submit(credentials, job).result()
        begin("fetch")
        counts = qr.fetch_results.submit(credentials, job).result().counts()
        begin("close")
    begin("end")
    return counts


@flow(name="chaos-async")
async def chaos_async(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch in an async flow."""
    begin("start")
    credentials = await qr.aload_credentials(order["block"])
    if order["session"]:
        begin("open")
    context = qr.aruntime_session(credentials, BACKEND, max_ttl=300) if order["session"] else nullcontext()
    async with context as session:
        begin("submit")
        job = await qr.asubmit_job(credentials, [order["circuit"]], **what(order, session))
        submitted(order)
        begin("wait")
        await qr.await_for_completion(credentials, job)
        begin("fetch")
        counts = (await qr.afetch_results(credentials, job)).counts()
        begin("close")
    begin("end")
    return counts


@flow(name="chaos-leave")
def chaos_leave(order: dict[str, Any]) -> str:
    """Submit, and leave the job to the watcher."""
    begin("start")
    credentials = qr.load_credentials(order["block"])
    with session_of(order, credentials) as session:
        begin("submit")
        job = qr.submit_job(credentials, [order["circuit"]], **what(order, session))
        submitted(order)
        begin("leave")
        qr.leave_to_watcher(credentials, job)
        begin("close")
    begin("end")
    return job.id


@flow(name="chaos-suspend")
def chaos_suspend(order: dict[str, Any]) -> dict[str, int]:
    """Submit, give the process back while the job runs, then fetch."""
    begin("start")
    credentials = qr.load_credentials(order["block"])
    with session_of(order, credentials) as session:
        begin("submit")
        job = qr.submit_job(credentials, [order["circuit"]], **what(order, session))
        submitted(order)
        begin("leave")
        qr.suspend_until_done(credentials, job)
        begin("fetch")
        counts = qr.fetch_results(credentials, job).counts()
        begin("close")
    begin("end")
    return counts


def script(order: dict[str, Any]) -> dict[str, int]:
    """What a script or a notebook does, without a flow."""
    return chaos_sync.fn(order)


FLOWS: dict[str, Any] = {
    "sync": chaos_sync,
    "threads": chaos_threads,
    "async": chaos_async,
    "subprocess": chaos_sync,
    "leave": chaos_leave,
    "suspend": chaos_suspend,
}


async def known_run(flow_run_id: str) -> Any:
    """The flow run as Prefect has it."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return await client.read_flow_run(UUID(flow_run_id))


def run_known(order: dict[str, Any]) -> Any:
    """Run a flow run that Prefect has, as a worker's process does."""
    flow_run = asyncio.run(known_run(order["flow_run_id"]))
    outcome = run_flow(FLOWS[order["runner"]], flow_run=flow_run, parameters={"order": order})
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def watch(order: dict[str, Any]) -> dict[str, Any]:
    """What `prefect-qruntime watch --once` does."""
    begin("start")
    return run_watch([order["block"]], once=True).model_dump()


def forget_keys() -> None:
    """Make each process take a job that was submitted before for another one's."""
    submission_keys.key_tag = lambda *args, **kwargs: f"qr-key:{uuid4().hex}"  # type: ignore[assignment]


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order to its end, if this process lives to see it."""
    if order.get("forgets_keys"):
        forget_keys()
    arm(order["kill"]["point"], order["kill"]["nth"], order["port"])
    does: Callable[[dict[str, Any]], Any] = {"script": script, "watch": watch}.get(order["runner"], run_known)
    try:
        return {"result": does(order)}
    except Pause:
        return {"suspended": True}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]}


def load() -> None:
    """Import once what each child would import, and build what a first circuit builds; starts no thread."""
    for name in qr.__all__:
        getattr(qr, name)
    for name in ("prefect.task_engine", "prefect.utilities.visualization", "anyio._backends._asyncio"):
        import_module(name)
    make_spec([circuit_for(0)[0]], backend=BACKEND, shots=20).digest()
    gc.collect()
    gc.freeze()  # a child's collections leave alone what it shares with this process


def host() -> None:
    """Fork a child for each order on stdin; answer with what it said, and with the signal that ended it."""
    global _out
    load()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _out = write
            say(**carry_out(order))
            return  # as a script ends: what is left to be written is written
        os.close(write)
        answer = follow(read, pid, order["kill"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        say(**carry_out(json.loads(sys.argv[1])))
    else:
        host()
