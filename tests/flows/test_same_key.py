"""One explicit submission key, used several times in one process: one job, and every caller gets it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect import flow

from prefect_qruntime import JobRef, QuantumRuntimeCredentials, SubmissionUncertain, asubmit_job, submit_job
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import posts
from tests.support.scenario import forget_submissions

pytestmark = pytest.mark.server
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
BACKEND = "sandbox_ideal"
GRACE = "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS"


@pytest.fixture(autouse=True)
def _lagging(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    # A new job is listed after 3 s, and jobs do not end: what is known must come from memory.
    monkeypatch.setenv(GRACE, "6")
    sandbox.control.hold()
    sandbox.control.set_option("list_lag", 3)


def one_job(sandbox: Sandbox, refs: list[JobRef]) -> None:
    assert len({ref.id for ref in refs}) == 1
    assert sorted(ref.attached for ref in refs) == [False, *[True] * (len(refs) - 1)]
    assert posts(sandbox) == 1


def test_one_after_the_other(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    def slot() -> list[JobRef]:
        return [submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key="turn") for _ in range(2)]

    refs = slot()
    one_job(sandbox, refs)
    time.sleep(3)  # now the list shows it, and a later run of the slot is not stuck
    assert slot()[0].id == refs[0].id
    assert posts(sandbox) == 1


def test_gathered(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    async def slot() -> Any:
        one = asubmit_job
        return await asyncio.gather(
            *(one(credentials, [CIRCUIT], backend=BACKEND, submission_key="gathered") for _ in range(3))
        )

    one_job(sandbox, asyncio.run(slot()))  # type: ignore[arg-type]


def test_submitted(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    def slot() -> list[JobRef]:
        futures = [submit_job.submit(credentials, [CIRCUIT], backend=BACKEND, submission_key="sub") for _ in range(3)]
        return [future.result() for future in futures]

    one_job(sandbox, slot())


@pytest.mark.parametrize("number", [2, 20])
def test_flow_runs_in_threads(sandbox: Sandbox, credentials: QuantumRuntimeCredentials, number: int) -> None:
    @flow
    def slot() -> JobRef:
        return submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key=f"threads-{number}")

    with ThreadPoolExecutor(number) as pool:
        one_job(sandbox, list(pool.map(lambda _: slot(), range(number))))


def test_a_fresh_key_is_bought_at_once(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GRACE)  # the default, 30 s

    @flow
    def slot(key: str) -> tuple[JobRef, float]:
        began = time.monotonic()
        ref = submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key=key)
        return ref, time.monotonic() - began

    ref, took = slot("fresh")
    assert not ref.attached
    assert took < 20, "the grace was not waited for"
    looks = [entry for entry in sandbox.control.journal("GET", "/jobs") if entry["status"] != 401]
    assert len(looks) == 1, "one look for those who leave no marks in this Prefect"


@pytest.mark.parametrize("lag", [0, 1, 60], ids=["none", "short", "beyond the grace"])
def test_what_another_process_bought_is_attached_to(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, lag: int
) -> None:
    sandbox.control.set_option("list_lag", lag)

    @flow
    def slot() -> JobRef:
        return submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key=f"other-{lag}")

    bought = slot()
    forget_submissions()  # from here on as in another process, which knows what is noted in Prefect
    again = slot()
    assert (again.id, again.attached, posts(sandbox)) == (bought.id, True, 1)


def test_what_another_process_could_not_read_is_not_bought_again(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GRACE, "1")
    sandbox.control.set_option("list_lag", 60)
    sandbox.control.add_fault("POST", "/jobs", status=200, body="", after_handler=True)

    @flow
    def slot() -> JobRef:
        return submit_job(credentials, [CIRCUIT], backend=BACKEND, submission_key="unreadable")

    for _ in range(3):
        with pytest.raises(SubmissionUncertain, match="accepted"):
            slot()
        forget_submissions()
    assert posts(sandbox) == 1
    sandbox.control.set_option("list_lag", 0)
    assert slot().attached
    assert posts(sandbox) == 1
