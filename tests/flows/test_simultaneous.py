"""Several processes that use one explicit submission key at the same moment buy one job together."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import posts
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server

CHILD = """
import sys, orjson
from prefect import flow
from prefect_qruntime import QuantumRuntimeCredentials, submit_job

CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'

@flow
def slot(connection: str):
    credentials = QuantumRuntimeCredentials(**orjson.loads(connection))
    job = submit_job(credentials, [CIRCUIT], backend="sandbox_ideal", submission_key=sys.argv[1])
    return job.id, job.attached

print("ready", flush=True)
job, attached = slot(sys.stdin.readline())
print(orjson.dumps([job, attached]).decode(), flush=True)
"""


@pytest.mark.parametrize("lag", [3, 60], ids=["within the grace period", "beyond it"])
def test_processes_that_start_together_share_one_job(sandbox: Sandbox, prefect_server: PrefectServer, lag: int) -> None:
    # The list does not show the new job for a while, as on the real service.
    sandbox.control.set_option("list_lag", lag)
    env = {
        **prefect_server.env,
        "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "4",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-c", CHILD, f"slot/{lag}"]
    children = [subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write(orjson.dumps(sandbox.connection("cloud")) + b"\n")
            child.stdin.flush()
        said = [orjson.loads(child.communicate(timeout=300)[0].splitlines()[-1]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
        sandbox.control.set_option("list_lag", 0)
    assert len({job for job, _ in said}) == 1, said
    assert sorted(attached for _, attached in said) == [False, True]
    assert posts(sandbox) == 1
