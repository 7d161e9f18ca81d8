"""Three processes, forty jobs, five creates a minute: the pace is kept by waiting, and nobody is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from prefect_qruntime import InvalidInput
from prefect_qruntime.admission.rate_limit import shared_limits
from prefect_qruntime.cli.operations import setup
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_server import PrefectServer

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent.parent
SCALE = 24.0  # a minute of the service passes in two and a half seconds
SETTINGS = {
    "PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE": "5",
    "PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS": str(60 / SCALE),
}


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"create_limit": 5, "clock_scale": SCALE, "physics": False}


@pytest.fixture
def sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """This process and the sandbox count a minute as short as `SCALE` makes it."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return sandbox


@pytest.fixture
def block(sandbox: Sandbox) -> str:
    name = f"rate-{uuid4().hex[:6]}"
    sandbox.credentials().save(name)
    return name


def actions(capsys: pytest.CaptureFixture[str], block: str, per_minute: int) -> list[str]:
    """What a call of `prefect-qruntime setup --json` did to each limit."""
    capsys.readouterr()
    assert setup(block=[block], per_minute=per_minute, json=True) == 0
    return [row["action"] for row in orjson.loads(capsys.readouterr().out)]


def test_setup_makes_changes_and_keeps_limits(
    sandbox: Sandbox, block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network_loop().run(shared_limits(sandbox.crn)) == []
    assert actions(capsys, block, 5) == ["created"] * 5
    assert actions(capsys, block, 5) == ["unchanged"] * 5
    assert actions(capsys, block, 3) == ["unchanged"] * 3 + ["removed"] * 2
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "60")
    assert actions(capsys, block, 4) == ["updated"] * 3 + ["created"]
    made = network_loop().run(shared_limits(sandbox.crn))
    assert [(limit.limit, round(1 / limit.slot_decay_per_second)) for limit in made] == [(1, 63)] * 4
    with pytest.raises(InvalidInput, match="per_minute"):
        setup(block=[block], per_minute=0, json=True)


def test_forty_jobs_from_three_processes(
    prefect_server: PrefectServer, sandbox: Sandbox, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    actions(capsys, block, 5)
    env = {**prefect_server.env, **SETTINGS, "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("fan_out.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), block, str(number)],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (14, 13, 13)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(said)[-5000:]

    assert not [line for text in said for line in text.splitlines() if "within this process only" in line]
    statuses = [entry["status"] for entry in sandbox.control.journal("POST", "/jobs")]
    assert (statuses.count(200), statuses.count(429)) == (40, 0), "\n".join(said)[-20000:]
    created = sorted(job["created"] for job in sandbox.control.jobs())
    most = max(sum(start <= other < start + 60 for other in created) for start in created)
    assert most == 5
