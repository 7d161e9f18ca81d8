"""The flow that the distributed tests spread over threads, processes, Dask and workers."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, unmapped

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
