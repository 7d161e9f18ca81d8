"""Kill it anywhere, break the network, run it again: one job for each submission key, no session left open.

Seeded. `QRUNTIME_CHAOS_RUNS=500 pytest tests/chaos` is the long campaign; `QRUNTIME_CHAOS_SEED` moves the seeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Scheduled

from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.sandbox import Sandbox
from tests.chaos import campaign
from tests.chaos.victim import FLOWS

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.1, "run_time": 0.2, "api_key": "chaos-key-of-the-campaign"}


@pytest.fixture(scope="module")
def blocks(running_sandbox: Sandbox, prefect_server: Any) -> dict[str, str]:
    from prefect_qruntime import QuantumRuntimeCredentials

    names = {}
    for dialect in ("cloud", "legacy"):
        names[dialect] = f"chaos-{dialect}"
        facts = {**running_sandbox.connection(dialect), "request_timeout": 1.5}
        QuantumRuntimeCredentials(**facts).save(names[dialect], overwrite=True)
    return names


@pytest.fixture(scope="module")
def host(blocks: dict[str, str], prefect_server: Any) -> Iterator[campaign.Host]:
    env = {
        **prefect_server.env,
        "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": str(campaign.GRACE),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    running = campaign.Host(env)
    yield running
    running.stop()


async def new_flow_run(runner: str, order: dict[str, Any]) -> str:
    async with get_client() as client:
        flow_run = await client.create_flow_run(FLOWS[runner], parameters={"order": order})
        return str(flow_run.id)


async def note(flow_run_id: str, *states: Any) -> None:
    """Tell Prefect what the runner of a killed process would tell it."""
    async with get_client() as client:
        for state in states:
            await client.set_flow_run_state(flow_run_id, state, force=True)


async def free_locks() -> None:
    """Remove at once what a killed process held; another process does so after a minute without a sign of life."""
    async with get_client() as client:
        for variable in await client.read_variables(limit=200):
            if variable.name.startswith("qruntime-submit-"):
                await client.delete_variable_by_name(variable.name)


def go(host: campaign.Host, plan: campaign.Plan, blocks: dict[str, str], port: int) -> tuple[dict[str, Any], list[str]]:
    """Run the plan, then again until it ends."""
    order = {
        "runner": plan.runner,
        "block": blocks[plan.dialect],
        "circuit": plan.circuit,
        "key": f"chaos/{plan.seed}" if plan.explicit else None,
        "session": plan.session,
        "point": plan.point,
        "nth": plan.nth,
        "port": port,
    }
    flow_runs = [asyncio.run(new_flow_run(plan.runner, order))]
    answer = host.run({**order, "flow_run_id": flow_runs[-1]})
    for _ in range(3):
        if "counts" in answer:
            break
        asyncio.run(note(flow_runs[-1], Crashed(message="killed by the campaign")))
        asyncio.run(free_locks())
        if plan.explicit:
            flow_runs.append(asyncio.run(new_flow_run(plan.runner, order)))
        else:
            asyncio.run(note(flow_runs[-1], Scheduled()))
        answer = host.run({**order, "point": "none", "flow_run_id": flow_runs[-1]})
    return answer, flow_runs


@pytest.mark.timeout(7200)
def test_one_job_for_each_intent_whatever_happens(
    sandbox: Sandbox, blocks: dict[str, str], host: campaign.Host
) -> None:
    port = int(sandbox.url.rsplit(":", 1)[1])
    broken: list[str] = []
    killed = 0
    for seed in range(campaign.first_seed(), campaign.first_seed() + campaign.runs()):
        plan = campaign.draw(seed)
        sandbox.reset()
        campaign.inject(sandbox.control, plan)
        answer, flow_runs = go(host, plan, blocks, port)
        killed += len(flow_runs) - 1 if plan.explicit else int(plan.point != "none")
        sandbox.control.clear_faults()
        jobs = sandbox.control.jobs()
        report = run_sweep(list(blocks.values()))
        left_open = sandbox.control.open_sessions()
        wrong = []
        if answer.get("counts") != plan.expected:
            wrong.append(f"result {answer}")
        if len(jobs) != 1:
            wrong.append(f"{len(jobs)} jobs: {[job['tags'] for job in jobs]}")
        if left_open:
            wrong.append(f"sessions left open: {left_open}; sweep said {report}")
        if wrong:
            broken.append(f"{plan}: {'; '.join(wrong)}")
    assert not broken, "\n\n".join(broken)
    assert killed, "no process was killed: the campaign tested nothing"
