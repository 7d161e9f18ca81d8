"""The flow that the distributed tests spread over threads, processes, Dask and workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task, unmapped
from prefect.futures import wait

import prefect_qruntime as qr
from tests.system.nightly import BACKEND

BITS = 8


def circuit(number: int) -> str:
    """A circuit whose every shot reads `number`."""
    flips = " ".join(f"x q[{bit}];" for bit in range(BITS) if number >> bit & 1)
    return f'OPENQASM 3.0; include "stdgates.inc"; qubit[{BITS}] q; bit[{BITS}] c; {flips} c = measure q;'


def expected(numbers: list[int], shots: int) -> list[dict[str, int]]:
    return [{format(number, f"0{BITS}b"): shots} for number in numbers]


@flow(name="spread")
def spread(credentials_block: str, numbers: list[int], shots: int = 7, key: str | None = None) -> list[dict[str, int]]:
    """Submit, wait and fetch by mapped tasks, on whatever runner the flow has."""
    credentials = unmapped(qr.load_credentials(credentials_block))
    circuits: Any = [[circuit(number)] for number in numbers]
    jobs = qr.submit_job.map(credentials, circuits, backend=BACKEND, shots=shots, submission_key=key)
    done = qr.wait_for_completion.map(credentials, jobs)
    counts = [result.counts() for result in qr.fetch_results.map(credentials, done).result()]
    get_run_logger().info("%s", counts)
    return counts


@task
def lose_the_worker(killed: str) -> str:
    """Kill the process that runs this task, the first time; returns where the second time was noted."""
    mark = Path(killed)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return killed


@flow(name="spread and lose a worker")
def spread_and_lose(credentials_block: str, numbers: list[int], killed: str, shots: int = 7) -> list[dict[str, int]]:
    """As `spread`, but a worker process is lost when all jobs are bought and none is waited for.

    So it is when four batches are open, which are closed at the end.
    """
    credentials = unmapped(qr.load_credentials(credentials_block))
    batches = qr.open_session.map(credentials, [BACKEND] * 4, mode="batch", max_ttl=600)
    wait(batches)
    circuits: Any = [[circuit(number)] for number in numbers]
    jobs = qr.submit_job.map(credentials, circuits, backend=BACKEND, shots=shots)
    wait(jobs)
    lost = lose_the_worker.submit(killed)
    lost.wait()
    qr.close_session.map(credentials, batches).result()
    done = qr.wait_for_completion.map(credentials, jobs)
    return [result.counts() for result in qr.fetch_results.map(credentials, done).result()]
