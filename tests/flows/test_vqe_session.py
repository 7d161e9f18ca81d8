"""The variational loop: right, in one session, and paid for once even when its process is killed."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Crashed, Scheduled

from flows.vqe_session import ANSATZ, H2, best_step, vqe_session
from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.sandbox import Sandbox
from tests.chaos.victim import known_run
from tests.support.flow_runs import SVG, artifact, picture
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
CHEMICAL_ACCURACY = 0.0016  # hartree


def exact_ground_energy() -> float:
    import numpy as np
    from qiskit.quantum_info import SparsePauliOp

    return float(np.linalg.eigvalsh(SparsePauliOp.from_list(list(H2.items())).to_matrix())[0])


def exact_energy(angles: dict[str, float]) -> float:
    from qiskit import qasm3
    from qiskit.quantum_info import SparsePauliOp, Statevector

    circuit = qasm3.loads(ANSATZ).assign_parameters(angles)
    return float(Statevector(circuit).expectation_value(SparsePauliOp.from_list(list(H2.items()))).real)


def test_three_values_fix_the_lowest_point_of_a_sinusoid() -> None:
    def energy(angle: float) -> float:
        return 0.3 - 0.7 * math.cos(angle - 1.1)

    step, lowest = best_step(energy(0.4), energy(0.4 + math.pi / 2), energy(0.4 - math.pi / 2))
    assert 0.4 + step == pytest.approx(1.1)
    assert lowest == pytest.approx(-0.4)
    assert best_step(0.3, 0.3, 0.3) == (0.0, 0.3)


@pytest.mark.parametrize("dialect", ["cloud"], indirect=True)  # in the other one, below
def test_the_loop_reaches_chemical_accuracy_in_one_session(sandbox: Sandbox, block: str) -> None:
    rows = vqe_session(credentials_block=block, backend="sandbox_ideal", shots=1_000_000)

    exact = exact_ground_energy()
    assert rows[-1]["kind"] == "final"
    assert abs(rows[-1]["energy"] - exact) < CHEMICAL_ACCURACY
    assert exact - 1e-9 < exact_energy(rows[-1]["angles"]) < exact + CHEMICAL_ACCURACY
    assert rows[0]["energy"] - exact > 0.1, "it began at the answer"
    jobs = sandbox.control.jobs()
    assert sorted(job["id"] for job in jobs) == sorted(row["job"] for row in rows)
    assert len({job["session_id"] for job in jobs}) == len(sandbox.control.sessions()) == 1
    assert sandbox.control.open_sessions() == []
    shown = artifact("qruntime-vqe")
    assert rows[-1]["job"] in shown
    assert len(list(picture(shown).iter(f"{SVG}circle"))) == len(rows)


def test_the_loop_stops_at_its_limit(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-limit", overwrite=True)
    rows = vqe_session(credentials_block="more-limit", backend="sandbox_ideal", max_iterations=2, mode="batch")
    assert [row["kind"] for row in rows] == ["step", "step", "final"]
    assert len(sandbox.control.jobs()) == 3
    assert {session["mode"] for session in sandbox.control.sessions()} == {"batch"}


VICTIM = """
import asyncio, sys
from prefect.flow_engine import run_flow
from flows.vqe_session import vqe_session
from tests.chaos.victim import arm, known_run

flow_run_id, point, nth, port = sys.argv[1:]
arm(point, int(nth), int(port))
run_flow(vqe_session, flow_run=asyncio.run(known_run(flow_run_id)))
"""


async def new_flow_run(parameters: dict[str, Any]) -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(vqe_session, parameters=parameters)).id


async def note_crash(flow_run_id: UUID) -> None:
    """Tell Prefect what the runner of a killed process would tell it, and ask for another go."""
    async with get_client() as client:
        for state in (Crashed(message="killed by the test"), Scheduled()):
            await client.set_flow_run_state(flow_run_id, state, force=True)


def killed(server: PrefectServer, sandbox: Sandbox, flow_run_id: UUID, point: str, nth: int) -> None:
    """Run the flow run in a process of its own that kills itself at a point."""
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(flow_run_id), point, str(nth), sandbox.url.rsplit(":", 1)[1]],
        cwd=ROOT,
        env={**server.env, "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "0.4"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dialect", "kills", "paid"),
    [
        # The fifth job is bought and its answer never seen; then two more are, and the next is not even asked for.
        ("cloud", [("after-post", 5), ("before-post", 3)], 7),
        ("legacy", [("after-post", 6)], 6),
    ],
    indirect=["dialect"],
)
def test_a_killed_loop_goes_on_without_paying_twice(
    sandbox: Sandbox, block: str, prefect_server: PrefectServer, kills: list[tuple[str, int]], paid: int
) -> None:
    parameters = {"credentials_block": block, "backend": "sandbox_ideal", "shots": 1_000_000}
    flow_run_id = asyncio.run(new_flow_run(parameters))
    for point, nth in kills:
        killed(prefect_server, sandbox, flow_run_id, point, nth)
        asyncio.run(note_crash(flow_run_id))
    before = {job["id"] for job in sandbox.control.jobs()}
    assert len(before) == paid

    # This process knows nothing of what the killed ones knew.
    rows: Any = run_flow(vqe_session, flow_run=asyncio.run(known_run(str(flow_run_id))))

    assert [row["attached"] for row in rows] == [True] * paid + [False] * (len(rows) - paid)
    assert {row["job"] for row in rows[:paid]} == before
    jobs = sandbox.control.jobs()
    assert len(jobs) == len(rows) == len({row["job"] for row in rows})
    assert {job["id"] for job in jobs} == {row["job"] for row in rows}
    assert abs(rows[-1]["energy"] - exact_ground_energy()) < CHEMICAL_ACCURACY
    run_sweep([block])
    assert sandbox.control.open_sessions() == []
