"""The process that gets killed: runs one flow of the campaign, and dies where it is told to.

Started as a host it imports everything once and forks a child for each order it reads from stdin, which
makes a campaign of hundreds of runs affordable. `python -m tests.chaos.victim ORDER` runs one in a new process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import httpx
from prefect import flow
from prefect.flow_engine import run_flow

import prefect_qruntime as qr

BACKEND = "sandbox_ideal"


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


@flow(name="chaos-sync")
def chaos_sync(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch by calling the tasks."""
    credentials = qr.load_credentials(order["block"])
    with qr.runtime_session(credentials, BACKEND, max_ttl=300) if order["session"] else nullcontext() as session:
        job = qr.submit_job(
            credentials,
            [order["circuit"]],
            backend=BACKEND,
            session=session,
            shots=20,
            submission_key=order["key"],
        )
        if order["point"] == "after-submit":
            die()
        qr.wait_for_completion(credentials, job)
        return qr.fetch_results(credentials, job).counts()


@flow(name="chaos-threads")
def chaos_threads(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch on the task runner's threads."""
    credentials = qr.load_credentials(order["block"])
    with qr.runtime_session(credentials, BACKEND, max_ttl=300) if order["session"] else nullcontext() as session:
        job = qr.submit_job.submit(
            credentials,
            [order["circuit"]],
            backend=BACKEND,
            session=session,
            shots=20,
            submission_key=order["key"],
        ).result()
        if order["point"] == "after-submit":
            die()
        qr.wait_for_completion.submit(credentials, job).result()
        return qr.fetch_results.submit(credentials, job).result().counts()


@flow(name="chaos-async")
async def chaos_async(order: dict[str, Any]) -> dict[str, int]:
    """Submit, wait and fetch in an async flow."""
    credentials = await qr.aload_credentials(order["block"])
    context = qr.aruntime_session(credentials, BACKEND, max_ttl=300) if order["session"] else nullcontext()
    async with context as session:
        job = await qr.asubmit_job(
            credentials,
            [order["circuit"]],
            backend=BACKEND,
            session=session,
            shots=20,
            submission_key=order["key"],
        )
        if order["point"] == "after-submit":
            die()
        await qr.await_for_completion(credentials, job)
        return (await qr.afetch_results(credentials, job)).counts()


FLOWS: dict[str, Any] = {"sync": chaos_sync, "threads": chaos_threads, "async": chaos_async, "subprocess": chaos_sync}


async def known_run(flow_run_id: str) -> Any:
    """The flow run as Prefect has it."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return await client.read_flow_run(UUID(flow_run_id))


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Run one order to its end, if it lives to see it."""
    arm(order["point"], order["nth"], order["port"])
    chosen = FLOWS[order["runner"]]
    try:
        flow_run = asyncio.run(known_run(order["flow_run_id"]))
        outcome = run_flow(chosen, flow_run=flow_run, parameters={"order": order})
        counts = asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
    return {"counts": counts}


def host() -> None:
    """Fork a child for each order on stdin; answer with its outcome, or with the signal that ended it."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            outcome = carry_out(json.loads(line))
            with os.fdopen(write, "w") as pipe:
                json.dump(outcome, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        answer = json.loads(said) if said else {"killed": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(carry_out(json.loads(sys.argv[1]))) + "\n")
    else:
        host()
