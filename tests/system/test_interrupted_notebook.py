"""A notebook without a Prefect server of its own: what its cells do after one of them was interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_qruntime.sandbox import Sandbox

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]

NOTEBOOK = """
import json, signal, sys

sys.ps1 = "In : "  # as in each interactive process
from prefect.server.api.server import SubprocessASGIServer

import prefect_qruntime as qr
from tests.support.flow_runs import BACKEND, FLIP

credentials = qr.QuantumRuntimeCredentials(**json.loads(sys.argv[1]))
first = qr.run_job(credentials, [FLIP], backend=BACKEND, shots=5).counts()
server = SubprocessASGIServer().server_process
server.send_signal(signal.SIGINT)  # it reaches all processes of a notebook
server.wait()
print(json.dumps([first, qr.run_job(credentials, [FLIP], backend=BACKEND, shots=7).counts()]))
"""


def test_prefect_s_temporary_server_that_an_interruption_ended_is_started_again(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    settings = {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(ROOT),
    }
    with Sandbox(queue_time=0.05, run_time=0.05, physics=False) as sandbox:
        command = [sys.executable, "-c", NOTEBOOK, json.dumps(sandbox.connection("cloud"))]
        run = subprocess.run(command, env={**env, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == [{"0": 5}, {"0": 7}]  # without physics
    assert "is started again" in run.stderr
