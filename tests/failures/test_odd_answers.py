"""One answer that is not the service's own, in every phase and dialect, over real sockets: nothing comes of it.

Generated over statuses × kinds of body × phases × dialects. Whatever stands in between may answer with any of these;
the call goes on as if it had not, no key is called wrong, and never more than one job exists.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.waiting.plan import PollIntervals
from prefect_qruntime.errors import InvalidInput, ServiceUnavailable
from prefect_qruntime.models import JobStatus
from prefect_qruntime.sandbox import Sandbox
from tests.support.odd_answers import CASES, HTML, PAGE, PHASES

CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
# No limit that a busy machine passes: each odd answer is followed by a good one.
CALM = RetryDeadlines(
    **dict.fromkeys(("token", "read", "wait", "fetch", "change", "submit", "open"), 120.0),
    first_pause=0.01,
    longest_pause=0.05,
)
PACE = PollIntervals(queued=0.05, lively=0.05, streamed=0.1, outage=0.02)
_numbers = itertools.count()


# A change's own answer may be any object.
COMBINATIONS = [
    pytest.param(phase, dialect, fault, id=f"{phase}-{dialect}-{name}")
    for phase in PHASES
    for dialect in ("cloud", "legacy")
    for name, fault in CASES
    if (phase, name) not in {("change", f"200 {body}") for body in ("object", "gateway's JSON", "single error")}
]


def test_the_table_is_large() -> None:
    assert len({name for name, _ in CASES}) == len(CASES)
    assert len(COMBINATIONS) >= 400


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(queue_time=0.02, run_time=0.02, websocket=False) as running:
        running.warm_up()
        yield running


def connect(
    sandbox: Sandbox, dialect: str, application: str = "test", patience: RetryDeadlines = CALM
) -> QuantumRuntimeClient:
    connection = Connection(**sandbox.connection(dialect), request_timeout=5.0, application=application)
    return QuantumRuntimeClient(connection, patience=patience)


def intent(grace: float = 0.1) -> Intent:
    key = f"qr-key:{next(_numbers):031d}f"
    spec = make_spec([CIRCUIT], backend="sandbox_ideal", shots=10)
    return Intent(spec, key_tag=lambda generation: key, grace=grace)


@pytest.fixture(scope="module")
def finished(sandbox: Sandbox) -> dict[str, str]:
    """A finished job in each dialect."""
    ids = {}
    for dialect in ("cloud", "legacy"):
        client = connect(sandbox, dialect)
        ids[dialect] = client.run(client.submit(intent())).id
        client.run(client.wait(ids[dialect], pace=PACE))
    return ids


CALLS: dict[str, Callable[[QuantumRuntimeClient, str], Any]] = {
    "token": lambda client, job_id: client.authenticate(),
    "read": lambda client, job_id: client.usage(),
    "list": lambda client, job_id: client.jobs(limit=1),
    "wait": lambda client, job_id: client.wait(job_id, pace=PACE),
    "fetch": lambda client, job_id: client.result(job_id),
    "change": lambda client, job_id: client.replace_tags(job_id, ["a"]),
}


@pytest.fixture(scope="module")
def clients(sandbox: Sandbox) -> dict[str, QuantumRuntimeClient]:
    return {dialect: connect(sandbox, dialect) for dialect in ("cloud", "legacy")}


@pytest.mark.parametrize(("phase", "dialect", "fault"), COMBINATIONS)
def test_one_odd_answer_is_repeated(
    sandbox: Sandbox,
    finished: dict[str, str],
    clients: dict[str, QuantumRuntimeClient],
    phase: str,
    dialect: str,
    fault: dict[str, Any],
) -> None:
    control, method, path = sandbox.control, *PHASES[phase]
    client = clients[dialect]
    if phase == "token":
        client = connect(sandbox, dialect, f"app-{next(_numbers)}")
    number = control.add_fault(method, path, **fault)
    found = client.run(CALLS[phase](client, finished[dialect]))
    if phase == "wait":
        assert found.status is JobStatus.COMPLETED
    elif phase == "fetch":
        assert found.counts() == {"1": 10}
    assert [entry["fault"] for entry in control.journal(method)].count(number) == 1


@pytest.mark.parametrize("phase", ["token", "read", "list", "wait", "change"])
def test_what_was_seen_is_logged_once(
    sandbox: Sandbox, finished: dict[str, str], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(sandbox, "cloud", f"app-{next(_numbers)}")
    if phase != "token":
        client.run(client.authenticate())
    sandbox.control.add_fault(*PHASES[phase], status=403, body=PAGE, headers=HTML, times=4)
    with caplog.at_level(logging.INFO, logger="prefect_qruntime"):
        client.run(CALLS[phase](client, finished["cloud"]))
    assert caplog.text.count("Attention Required! | Cloudflare") == 1
    assert caplog.text.count("WARNING") == 1


# A 2xx is proof of acceptance: what follows if there is no job all the same is for the tests of the submission.
CREATES = [
    pytest.param(("cloud", "legacy")[n % 2], fault, accepted, id=f"{name}{'' if accepted else ', not'} accepted")
    for n, (name, fault) in enumerate(CASES)
    if not name.startswith(("400", "405", "410", "418", "451"))
    for accepted in (True, False)
    if accepted or not name.startswith("200")
]


@pytest.mark.parametrize(("dialect", "fault", "accepted"), CREATES)
def test_one_odd_answer_to_a_create_buys_no_second_job(
    sandbox: Sandbox, clients: dict[str, QuantumRuntimeClient], dialect: str, fault: dict[str, Any], accepted: bool
) -> None:
    client, control = clients[dialect], sandbox.control
    control.clear_faults()
    control.clear_journal()
    before = len(control.jobs())
    control.add_fault("POST", "/jobs", after_handler=accepted, **fault)
    too_large = fault["status"] == 413 and not accepted  # the same request would be too large again
    with pytest.raises(InvalidInput) if too_large else nullcontext():
        ref = client.run(client.submit(intent()))
    posts = [entry for entry in control.journal("POST") if entry["path"] == "/jobs"]
    jobs = len(control.jobs()) - before
    if too_large:
        assert (jobs, len(posts)) == (0, 1)
        return
    assert (jobs, len(posts)) == (1, 1 if accepted else 2)
    assert client.run(client.job(ref.id)).id == ref.id


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_an_answer_about_another_job_is_an_outage(sandbox: Sandbox, finished: dict[str, str], dialect: str) -> None:
    sandbox.control.clear_faults()
    client = connect(sandbox, dialect, f"app-{next(_numbers)}")
    other = {"id": "someone-elses", "status": "Failed", "state": {"status": "Failed"}}
    sandbox.control.add_fault("GET", "/jobs/*", status=200, body=other, times=2)
    assert client.run(client.wait(finished[dialect], pace=PACE)).id == finished[dialect]
    client = connect(sandbox, dialect, f"app-{next(_numbers)}", replace(CALM, read=0.5))
    sandbox.control.add_fault("GET", "/jobs/*", status=200, body=other, times=None)
    with pytest.raises(ServiceUnavailable, match="someone-elses"):
        client.run(client.job(finished[dialect]))
