"""Processes of two teams share the create rate by weight, and one that is killed delays the others by seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_qruntime import QuantumRuntimePolicy
from prefect_qruntime.admission.guard import read_queue
from prefect_qruntime.admission.policy import TeamShare
from prefect_qruntime.admission.share_core import Row
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import until

pytestmark = [pytest.mark.server, pytest.mark.timeout(480)]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    """No simulation: only who comes when matters."""
    return {"physics": False, "api_key": "share-tests-key-0123456789"}


@contextmanager
def team(block: str, tag: str, number: int, first: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that submits jobs for a team."""
    command = [sys.executable, "-m", "tests.system.team", block, tag, str(number), str(first)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def queue(sandbox: Sandbox) -> list[Row]:
    return network_loop().run(read_queue(sandbox.credentials().crn))


def test_two_teams_and_a_killed_process(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "1")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "1000")  # the first turn only
    name = f"policy-{uuid4().hex[:8]}"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", name)
    shares = [TeamShare(name="a", tag="team-a", weight=3), TeamShare(name="b", tag="team-b")]
    QuantumRuntimePolicy(hosts=[], shares=shares).save(name)
    block = f"shares-{uuid4().hex[:6]}"
    sandbox.credentials().save(block)
    sandbox.control.hold()
    with ExitStack() as stack:
        # One takes the only turn of the long period; the other waits, and is killed.
        stack.enter_context(team(block, "team-a", 1, 100))
        until(lambda: len(sandbox.control.jobs()) == 1, 100)
        dead = stack.enter_context(team(block, "team-b", 1, 200))
        until(lambda: any(row.granted is None for row in queue(sandbox)), 100)
        dead.kill()
        dead.wait()
        # The others find its ticket before theirs.
        monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "2")
        both = [stack.enter_context(team(block, tag, 5, first)) for tag, first in (("team-a", 0), ("team-b", 20))]
        for process in both:
            assert process.wait(300) == 0
    numbers = [next(int(tag[3:]) for tag in job["tags"] if tag.startswith("no:")) for job in sandbox.control.jobs()]
    assert sorted(numbers) == [*range(5), *range(20, 25), 100]
    rows = queue(sandbox)
    assert all(row.granted is not None for row in rows), "the dead one's ticket is gone"
    # While both waited, three of four were the first team's.
    ordered = [number for number in _by_creation(sandbox) if number < 100]
    begin = max(ordered.index(next(n for n in ordered if n >= 20)), ordered.index(next(n for n in ordered if n < 20)))
    end = min(max(i for i, n in enumerate(ordered) if n >= 20), max(i for i, n in enumerate(ordered) if n < 20))
    together = ordered[begin : end + 1]
    of_a, of_b = sum(n < 20 for n in together), sum(n >= 20 for n in together)
    assert abs(of_a - 3 * of_b) <= 4, ordered


def _by_creation(sandbox: Sandbox) -> list[int]:
    jobs = sorted(sandbox.control.jobs(), key=lambda job: job["created"])
    return [next(int(tag[3:]) for tag in job["tags"] if tag.startswith("no:")) for job in jobs]
