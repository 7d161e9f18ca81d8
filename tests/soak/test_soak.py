"""An hour of waiting in a fraction of a minute, with faults all the time: every wait ends, and nothing is left over.

`QRUNTIME_SOAK_JOBS` (60) and `QRUNTIME_SOAK_SECONDS` (10) set how many jobs and how many real seconds the hour takes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.client.waiting.poller import JobPoller
from prefect_qruntime.errors import JobTimeout
from prefect_qruntime.models import JobStatus
from prefect_qruntime.sandbox import Control, Sandbox

JOBS = int(os.environ.get("QRUNTIME_SOAK_JOBS", "60"))
SECONDS = float(os.environ.get("QRUNTIME_SOAK_SECONDS", "10"))
SEED = int(os.environ.get("QRUNTIME_SOAK_SEED", "1"))
HOUR = 3600.0
WARM = 10
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
PATIENCE = RetryDeadlines(
    token=5.0, read=5.0, wait=0.3, fetch=5.0, change=5.0, submit=60.0, open=5.0, first_pause=0.05, longest_pause=0.5
)


def breakages(control: Control, rng: random.Random, scale: float) -> list[Callable[[], object]]:
    def fault(method: str, path: str, **what: Any) -> Callable[[], object]:
        return lambda: control.add_fault(method, path, times=rng.randint(1, 6), **what)

    reads = ("/jobs", "/jobs/*")
    return [
        *(fault("GET", path, status=status) for path in reads for status in (500, 503, 520)),
        *(fault("GET", path, drop=drop) for path in reads for drop in ("before", "middle")),
        *(fault("GET", path, status=429, retry_after=1) for path in reads),
        *(fault("GET", path, delay=0.5 * scale) for path in reads),
        fault("GET", "/jobs", status=200, body="<html>a gateway</html>"),
        fault("GET", "/jobs", status=403),
        fault("POST", "/identity/token", status=503),
        fault("WS", "/stream/jobs/*", status=503),
        fault("WS", "/stream/jobs/*", ws_close=1011),
        fault("WS", "/stream/jobs/*", ws_silence=True),
    ]


def home_tasks() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return network_loop().run(count())


async def warm_up(client: QuantumRuntimeClient) -> None:
    """Load and open what the first jobs need, so that it is not taken for growth."""
    spec = make_spec([CIRCUIT], backend="sandbox_ideal")
    refs = [await client.submit(Intent(spec, lambda g, n=n: f"qr-key:warm-{n}-{g}")) for n in range(WARM)]  # type: ignore[misc]
    await asyncio.gather(*(client.wait(ref.id, stream="always") for ref in refs))


def open_sockets(sandbox: Sandbox) -> int:
    port = int(sandbox.url.rpartition(":")[2])
    return len([c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port])


@pytest.mark.timeout(120 + 6 * SECONDS + JOBS)
@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_an_hour_of_faults(dialect: Any) -> None:
    rng = random.Random(SEED)
    scale = HOUR / SECONDS
    with Sandbox(physics=False, clock_scale=scale, token_lifetime=HOUR, websocket="both", list_lag=2.0) as sandbox:
        client = QuantumRuntimeClient(Connection(**{**sandbox.connection(dialect)}), patience=PATIENCE)
        control = sandbox.control
        client.run(warm_up(client))
        tasks_before = home_tasks()
        gc.collect()
        memory_before = psutil.Process().memory_info().rss
        over = threading.Event()
        draw = random.Random(SEED + 1)

        def break_things() -> None:
            faults = breakages(control, draw, scale)
            for step in range(180):
                if over.wait(SECONDS / 60):
                    break
                control.clear_faults()  # those that nobody met
                draw.choice(faults)()
                if step % 20 == 19:
                    control.revoke_tokens()
            control.clear_faults()

        # A token of a minute must not grow old while its request waits for one of eight connections.
        desk = asyncio.Semaphore(30)

        async def one(number: int) -> str:
            await asyncio.sleep(rng.uniform(0, 0.3) * SECONDS)
            spec = make_spec([CIRCUIT], backend="sandbox_ideal")
            async with desk:
                ref = await client.submit(Intent(spec, lambda g: f"qr-key:{dialect}-{number}-{g}", grace=2.0))
            kind = rng.choice(["plain", "plain", "stream", "short", "cancelled"])
            wait = client.wait(
                ref.id,
                deadlines=Deadlines(total=rng.uniform(0.1, 0.4) * SECONDS if kind == "short" else None),
                stream="always" if kind == "stream" else "never",
                in_session=rng.random() < 0.2,
            )
            if kind == "cancelled":
                task = asyncio.ensure_future(wait)
                await asyncio.sleep(rng.uniform(0, 0.2) * SECONDS)
                task.cancel()
                await asyncio.wait([task])
                return "cancelled" if task.cancelled() else task.result().raw_status
            try:
                job = await wait
            except JobTimeout as error:
                return f"{kind}: {error.limit}"
            assert job.status is JobStatus.COMPLETED
            return job.raw_status

        async def batch(numbers: range) -> list[str]:
            return await asyncio.gather(*(one(number) for number in numbers))

        breaker = threading.Thread(target=break_things)
        breaker.start()
        began = time.monotonic()
        try:
            control.set_times(queue_time=HOUR / 4, run_time=HOUR / 20)
            ends = asyncio.run(batch(range(JOBS // 2)))
            gc.collect()
            memory_between = psutil.Process().memory_info().rss
            ends += asyncio.run(batch(range(JOBS // 2, JOBS)))
        finally:
            over.set()
            breaker.join()
        took = time.monotonic() - began
        kinds = Counter(ends)
        assert kinds.keys() <= {"Completed", "cancelled", "short: timeout"}
        assert kinds["Completed"] >= JOBS / 3
        assert len(control.jobs()) == JOBS + WARM
        watched = network_loop().all_of(JobPoller)
        for watcher in watched:
            kept = watcher.footprint
            assert {name: size for name, size in kept.items() if size and name not in ("ended", "calendar")} == {}
            assert kept["calendar"] <= 64
        wait_until(lambda: home_tasks() <= tasks_before, "tasks are left on the network loop")
        wait_until(lambda: open_sockets(sandbox) <= 8, "sockets are left open")
        gc.collect()
        first = (memory_between - memory_before) / 1e6
        second = (psutil.Process().memory_info().rss - memory_between) / 1e6
        requests = len(control.journal())
        # What is loaded and what buffers take is there after the first half; from then on only the sandbox, which lives
        # in this process too, keeps its jobs and its journal.
        assert second <= 4 + 0.03 * JOBS  # megabytes
        print(
            f"\n{dialect}: {JOBS} jobs, {took:.1f} s, {dict(kinds)}, {requests} requests, "
            f"{control.tcp_connections()} TCP connections over time, {first:.1f} MB, then {second:.1f} MB more"
        )


def wait_until(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.1)
