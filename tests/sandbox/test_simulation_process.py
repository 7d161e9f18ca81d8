"""Circuits are simulated in a process of its own, which can be bounded, cancelled and killed at any time."""

import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from prefect_qruntime.client.failures import retryable_reason
from prefect_qruntime.sandbox import Control, Sandbox, worker
from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.state import Outcome, Run
from prefect_qruntime.sandbox.worker_process import Task, WorkerProcess
from tests.support.sandbox_api import BELL, Api

_LAYER = "".join(f"h q[{n}]; t q[{n}]; cx q[{n}],q[{(n + 1) % 18}]; " for n in range(18))
HEAVY = (
    'OPENQASM 2.0; include "qelib1.inc"; qreg q[18]; creg c[18]; '
    + (_LAYER + "measure q[0] -> c[0]; reset q[0]; ") * 8
    + "measure q -> c;"
)
"""18 qubits with resets in the middle: each shot is a run of its own, minutes for the shots asked for here."""
SHOTS = 20_000


def busy(process):
    """Whether a process computes."""
    before = process.cpu_times()
    time.sleep(0.2)
    after = process.cpu_times()
    return after.user - before.user > 0.05


def workers(pid):
    """The simulation processes below a process."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if any("prefect_qruntime.sandbox.worker" in part for part in child.cmdline())
    ]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(process):
    """Whether a process has ended; one that nobody has waited for yet has."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_package_that_is_missing_is_no_fault_of_the_service(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_aer", None)
    run = Run(Backend("sandbox_ideal", 2, False), 1)
    outcome = worker.execute("sampler", {"pubs": [[BELL, None, 10]], "version": 2}, run)
    assert outcome.status == "Failed"
    assert "qiskit_aer" in outcome.reason
    assert "Install prefect-qruntime[sandbox]" in outcome.solution
    assert "Correct the input" not in outcome.solution
    assert not retryable_reason(outcome.reason_code)


def test_the_server_answers_while_a_heavy_circuit_runs_and_cancel_stops_it(cloud, fast):
    job_id = cloud.job_id([[HEAVY, None, SHOTS]])
    wait_until(lambda: [one for one in workers(os.getpid()) if busy(one)])
    for _ in range(30):  # minutes before the simulation ends; how quickly is for the benchmarks to say
        assert cloud("GET", "/versions").status_code == 200
    assert cloud.status(job_id) == "Running"
    (running,) = workers(os.getpid())
    assert cloud("POST", f"/jobs/{job_id}/cancel").status_code == 204
    wait_until(lambda: gone(running))
    assert cloud.run([[BELL, None, 5]])["results"]
    assert cloud.status(job_id) == "Cancelled"


def test_max_execution_time_bounds_the_simulation(cloud, fast):
    job_id = cloud.job_id([[HEAVY, None, SHOTS]], cost=1)
    job = cloud.control.wait_job(job_id)
    assert (job["status"], job["reason"], job["reason_code"]) == ("Cancelled", "Ran too long", 1305)
    assert job["usage_seconds"] == pytest.approx(1, abs=0.3)
    assert cloud.run([[BELL, None, 5]])["results"]


def test_a_reset_ends_what_runs(cloud, fast):
    cloud.job_id([[HEAVY, None, SHOTS]])
    wait_until(lambda: [one for one in workers(os.getpid()) if busy(one)])
    fast.reset()
    fast.control.set_times(queue_time=0, run_time=0)
    fresh = Api(fast)
    assert fresh.run([[BELL, None, 5]])["results"]
    fresh.http.close()


def test_one_process_serves_all_sandboxes_and_jobs(cloud, fast):
    cloud.run()
    before = [one.pid for one in workers(os.getpid())]
    with Sandbox(queue_time=0, run_time=0) as other:
        api = Api(other)
        api.run()
        api.http.close()
    cloud.run()
    assert [one.pid for one in workers(os.getpid())] == before


def test_a_process_that_dies_fails_its_job_and_no_other(cloud, fast):
    job_id = cloud.job_id([[HEAVY, None, SHOTS]])
    wait_until(lambda: [one for one in workers(os.getpid()) if busy(one)])
    after = cloud.job_id([[BELL, None, 5]])
    workers(os.getpid())[0].kill()
    job = cloud.control.wait_job(job_id)
    assert (job["status"], job["reason_code"]) == ("Failed", 1000)
    assert "exit code -9" in job["reason"]
    assert cloud.control.wait_job(after)["status"] == "Completed"


def test_queued_tasks_can_be_cancelled_and_close_drops_the_rest():
    process = WorkerProcess()
    ended: list[Outcome] = []
    process.warm_up().result(30)
    fields = {"program_id": "sampler", "seed": 1, "backend": {"name": "b", "qubits": 32, "noisy": False}}
    tasks = [Task({**fields, "params": {"pubs": [[HEAVY, None, SHOTS]]}}, ended.append) for _ in range(3)]
    for task in tasks:
        process.submit(task)
    process.cancel(tasks[1])
    process.cancel(tasks[0])
    process.close()
    assert ended == []


@pytest.fixture
def server():
    """A sandbox in a process of its own that simulates a heavy circuit: the process and its worker."""
    code = (
        "from prefect_qruntime.sandbox import run_forever\n"
        "run_forever(port=0, queue_time=0, run_time=0, on_start=lambda s: print(s.url, *s.instances[0], flush=True))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker = None
    try:
        url, key, crn = process.stdout.readline().split()
        headers = {"Authorization": f"apikey {key}", "Service-CRN": crn}
        body = {"program_id": "sampler", "backend": "sandbox_ideal", "params": {"pubs": [[HEAVY, None, SHOTS]]}}
        assert httpx.post(f"{url}/api/v1/jobs", headers=headers, json=body, trust_env=False).status_code == 200
        wait_until(lambda: Control.connect(url).jobs()[0]["status"] == "Running")
        wait_until(lambda: workers(process.pid))
        (worker,) = workers(process.pid)
        # More than its imports take: by now it simulates.
        wait_until(lambda: worker.cpu_times().user > 3)
        yield process, worker
    finally:
        process.kill()
        process.communicate()
        if worker is not None and worker.is_running():
            worker.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_server_and_its_process_while_it_simulates(server, number):
    process, worker = server
    process.send_signal(number)
    process.communicate(timeout=60)  # not by itself: what it simulates takes minutes
    wait_until(lambda: gone(worker))
