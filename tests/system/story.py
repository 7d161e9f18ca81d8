"""A flow that stops at each of its phases until it is told to go on; run as a process by the table of Prefect's faults.

It reads one order a line: the sandbox's connection and a submission key. For each phase it writes `at <phase>` and goes
on when a line comes in; then it writes `result <counts>` or `error <what>`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import orjson
from prefect import flow

import prefect_qruntime as qr
from prefect_qruntime import prefect_api, run_context
from prefect_qruntime.observability import run_page, run_summary

PHASES = ("open", "bought", "wait", "fetch", "close", "end")
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'


def at(phase: str) -> None:
    """Say where the flow is, and wait for a word to go on."""
    print("at", phase, flush=True)
    sys.stdin.readline()


def shorten() -> None:
    """Let seconds pass for minutes, so that every limit is met in a test."""
    prefect_api._PATIENCE = 10.0
    run_page._FIRST = run_page._TOGETHER = 0.1
    run_page._AGAIN, run_page._STUCK = 0.5, 8.0
    run_summary._SETTLING = 0.2
    run_page._TRIES = 20


_noted = run_context.note_job


def _bought(where: run_context.RunContext, job: qr.JobRef) -> None:
    _noted(where, job)
    if not job.attached:
        at("bought")  # the service has the job, and nothing is written about it yet


@flow
def story(order: dict[str, Any]) -> dict[str, int]:
    """One job in a session, phase by phase."""
    credentials = qr.QuantumRuntimeCredentials(**order["connection"])
    at("open")
    with qr.runtime_session(credentials, "sandbox_ideal", max_ttl=600) as session:
        job = qr.submit_job(
            credentials, [CIRCUIT], backend="sandbox_ideal", shots=10, session=session, submission_key=order["key"]
        )
        at("wait")
        qr.wait_for_completion(credentials, job)
        at("fetch")
        result = qr.fetch_results(credentials, job)
        at("close")
    return result.counts()


def main() -> None:
    """Run the flow once for each order."""
    if "QRUNTIME_STORY_LIMITS" not in os.environ:
        shorten()
    run_context.note_job = _bought
    for line in sys.stdin:
        try:
            print("result", orjson.dumps(story(orjson.loads(line))).decode(), flush=True)
        except Exception as error:
            print("error", repr(error), flush=True)
        at("end")


if __name__ == "__main__":
    main()
