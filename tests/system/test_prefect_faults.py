"""A plain Prefect server that fails, is slow or is restarted: what was paid for is handed on, and nothing hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from prefect_qruntime.sandbox import Sandbox
from tests.support.api_proxy import ApiProxy, Fault
from tests.support.command_line import command
from tests.support.plain_server import PlainServer

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400.0

FLOW = """
import asyncio, os, sys, orjson
from prefect import flow
import prefect_qruntime as qr

C = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
order = orjson.loads(sys.stdin.readline())
if order.get("quick_lock"):
    from prefect_qruntime.admission import lock_core, locks
    for module in (lock_core, locks):
        for name, value in (("LEASE", 6.0), ("ANSWER", 1.0), ("BEAT", 1.0), ("SILENCE", 7.5)):
            if hasattr(module, name):
                setattr(module, name, value)

@flow(**qr.hooks.cancel)
async def gathered(order):
    if "block" in order:
        credentials = await qr.QuantumRuntimeCredentials.aload(order["block"])
    else:
        credentials = qr.QuantumRuntimeCredentials(**order["connection"])
    jobs = (qr.arun_job(credentials, [C], backend="sandbox_ideal", shots=10) for _ in range(order["jobs"]))
    return [result.counts() for result in await asyncio.gather(*jobs)]

@flow(**qr.hooks.cancel)
def in_session(order):
    credentials = qr.QuantumRuntimeCredentials(**order["connection"])
    with qr.runtime_session(credentials, "sandbox_ideal", max_ttl=600) as session:
        job = qr.submit_job(credentials, [C], backend="sandbox_ideal", shots=10, session=session)
        print("submitted", flush=True)
        qr.wait_for_completion(credentials, job)
        return qr.fetch_results(credentials, job).counts()

@flow(**qr.hooks.cancel)
def keyed(order):
    credentials = qr.QuantumRuntimeCredentials(**order["connection"])
    job = qr.submit_job(credentials, [C], backend="sandbox_ideal", shots=10, submission_key=order["key"])
    return job.id

print("ready", flush=True)
work = {"gathered": gathered, "in_session": in_session, "keyed": keyed}[order["flow"]]
result = asyncio.run(work(order)) if order["flow"] == "gathered" else work(order)
print("result " + orjson.dumps(result).decode(), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    plain = PlainServer(tmp_path_factory.mktemp("plain"))
    plain.start()
    yield plain
    plain.stop()


@pytest.fixture(scope="module")
def running_sandbox() -> Iterator[Sandbox]:
    with Sandbox(queue_time=0.3, run_time=0.3) as running:
        running.warm_up()
        yield running


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Sandbox:
    running_sandbox.reset()
    return running_sandbox


@pytest.fixture
def proxy(server: PlainServer) -> Iterator[ApiProxy]:
    with ApiProxy(server.port).running() as running:
        yield running


def start(server: PlainServer, sandbox: Sandbox, order: dict[str, Any], url: str | None = None) -> Any:
    child = subprocess.Popen(
        [sys.executable, "-c", FLOW],
        env=server.env(url),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(orjson.dumps({"connection": sandbox.connection("cloud"), **order}) + b"\n")
    child.stdin.flush()
    return child


def end(child: subprocess.Popen[bytes]) -> tuple[Any, str]:
    """The flow's result, and what the process wrote to stderr."""
    try:
        out, err = child.communicate(timeout=LIMIT)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    last = out.splitlines()[-1] if out else b""
    assert last.startswith(b"result "), (out[-500:], err.decode()[-3000:])
    return orjson.loads(last.removeprefix(b"result ")), err.decode()


def test_ten_jobs_gathered_in_a_flow_take_few_requests(server: PlainServer, sandbox: Sandbox, proxy: ApiProxy) -> None:
    result, err = end(start(server, sandbox, {"flow": "gathered", "jobs": 10}, proxy.url))
    assert result == [{"1": 10}] * 10
    counts = proxy.counts()
    assert sum(counts.values()) <= 25, counts
    assert counts["POST /api/artifacts/"] == 11
    assert not any("concurrency" in name for name in counts)
    assert "Traceback" not in err


def test_a_server_that_wants_csrf_tokens_gets_them(tmp_path: Path, sandbox: Sandbox) -> None:
    server = PlainServer(tmp_path, PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true")
    server.start()
    try:
        with ApiProxy(server.port).running() as proxy:
            result, err = end(start(server, sandbox, {"flow": "gathered", "jobs": 2}, proxy.url))
            assert result == [{"1": 10}] * 2
            assert proxy.counts()["POST /api/artifacts/"] >= 3
            assert "Traceback" not in err
            assert "could not be written" not in err
    finally:
        server.stop()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"/api/(artifacts|v2|variables|events|flow_run_states)", status=500),
        Fault(r"/api/(artifacts|v2|variables|events)", status=409),
        Fault(r"POST /api/artifacts/$", lose=True, times=3),
    ],
    ids=["500", "409", "lost answers"],
)
def test_whatever_prefect_answers_after_the_purchase_the_result_comes_and_the_session_closes(
    server: PlainServer, sandbox: Sandbox, proxy: ApiProxy, fault: Fault
) -> None:
    sandbox.control.hold()
    child = start(server, sandbox, {"flow": "in_session"}, proxy.url)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert child.stdout.readline() == b"submitted\n"
    proxy.faults.append(fault)
    sandbox.control.release()
    result, err = end(child)
    assert result == {"1": 10}
    assert len(sandbox.control.jobs()) == 1
    assert sandbox.control.open_sessions() == []
    assert err.count("\n") < 12, err


def test_errors_before_the_purchase_are_asked_again(server: PlainServer, sandbox: Sandbox, proxy: ApiProxy) -> None:
    proxy.faults += [
        Fault("GET /api/flow_run_states", status=500, times=2),
        Fault("POST /api/variables/$", status=503, times=1),
        Fault("POST /api/variables/$", lose=True, times=1),
        Fault("POST /api/artifacts/", status=500, times=2),
    ]
    result, _ = end(start(server, sandbox, {"flow": "keyed", "key": "errors-before"}, proxy.url))
    assert [job["id"] for job in sandbox.control.jobs()] == [result]
    assert all(fault.hits for fault in proxy.faults)
    assert server.locks() == []


def test_all_pages_are_written_by_a_process_that_ends_at_once(
    server: PlainServer, sandbox: Sandbox, proxy: ApiProxy
) -> None:
    proxy.faults.append(Fault("/api/artifacts/", delay=0.15))
    _, err = end(start(server, sandbox, {"flow": "gathered", "jobs": 30}, proxy.url))
    assert err == ""
    ids = {job["id"] for job in sandbox.control.jobs()}
    pages = {facts["id"]: facts["state"] for facts in server.artifacts("job")}
    assert {job_id: pages.get(job_id) for job_id in ids} == dict.fromkeys(ids, "Completed")
    assert "30" in [facts["jobs"] for facts in server.artifacts("summary")]


def test_pages_that_cannot_be_written_are_reported_once_and_completed_by_the_sweep(
    server: PlainServer, sandbox: Sandbox, proxy: ApiProxy
) -> None:
    save = "import sys, orjson; from prefect_qruntime import QuantumRuntimeCredentials as C; "
    save += "C(**orjson.loads(sys.argv[1])).save('faults', overwrite=True)"
    key, crn = sandbox.instances[2]  # of its own: the sandbox has forgotten the sessions that other tests recorded
    connection = orjson.dumps({**sandbox.connection("cloud"), "api_key": key, "crn": crn}).decode()
    subprocess.run([sys.executable, "-c", save, connection], env=server.env(), cwd=ROOT, check=True, timeout=300)
    proxy.faults.append(Fault("(PATCH|POST) /api/artifacts/", status=500))
    _, err = end(start(server, sandbox, {"flow": "gathered", "jobs": 3, "block": "faults"}, proxy.url))
    said, *more = [line for line in err.splitlines() if "sweep" in line]
    assert not more, err
    assert "3 job pages could not be written" in said
    assert err.count("\n") < 20, err
    command(server.env(), "sweep", "--block", "faults", "--json").check_returncode()
    pages = {facts["id"]: facts["state"] for facts in server.artifacts("job")}
    for job in sandbox.control.jobs():
        assert pages.get(job["id"]) == "Completed"


def test_a_killed_holder_s_lock_is_taken_over_and_a_restart_of_the_server_loses_none(
    server: PlainServer, sandbox: Sandbox
) -> None:
    order = {"flow": "keyed", "key": "killed", "quick_lock": True}
    sandbox.control.set_option("queue_time", 0.1)
    sandbox.control.add_fault("POST", "/jobs", delay=60.0)  # the lock is held meanwhile
    first = start(server, sandbox, order)
    until = time.monotonic() + 240
    while not server.locks():
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1.0)
    first.kill()
    first.wait()
    server.stop()
    server.start()
    assert len(server.locks()) == 1
    sandbox.reset()
    began = time.monotonic()
    result, err = end(start(server, sandbox, order))
    assert [job["id"] for job in sandbox.control.jobs()] == [result]
    assert "taken over" in err
    assert time.monotonic() - began < 60
    assert server.locks() == []
