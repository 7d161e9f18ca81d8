"""The flows beside the main one: a sweep of an angle, a variational loop that survives a kill, a report, a table."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import pytest
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Scheduled

from flows.angles_to_table import ANGLES, angles_to_table
from flows.backend_report import backend_report
from flows.parameter_sweep import parameter_sweep, parity
from flows.pictures import line_chart, markdown_image
from flows.vqe_session import ANSATZ, H2, best_step, vqe_session
from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.sweep import run_sweep
from tests.flows.conftest import posts
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
CHEMICAL_ACCURACY = 0.0016  # hartree
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def block(sandbox: Sandbox, dialect: str) -> str:
    name = f"more-{dialect}"
    QuantumRuntimeCredentials(**sandbox.connection(dialect)).save(name, overwrite=True)
    return name


def artifact(key: str) -> str:
    found = Artifact.get(key)
    assert found is not None
    return str(found.data)  # type: ignore[attr-defined]


def picture(markdown: str) -> ElementTree.Element:
    """The picture that a markdown text carries."""
    found = re.search(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None, markdown
    return ElementTree.fromstring(base64.b64decode(found[1]))


def exact_ground_energy() -> float:
    import numpy as np
    from qiskit.quantum_info import SparsePauliOp

    return float(np.linalg.eigvalsh(SparsePauliOp.from_list(list(H2.items())).to_matrix())[0])


def exact_energy(angles: dict[str, float]) -> float:
    from qiskit import qasm3
    from qiskit.quantum_info import SparsePauliOp, Statevector

    circuit = qasm3.loads(ANSATZ).assign_parameters(angles)
    return float(Statevector(circuit).expectation_value(SparsePauliOp.from_list(list(H2.items()))).real)


# --- pictures -------------------------------------------------------------------------------------------------


def test_a_chart_has_a_mark_for_each_finite_point_in_its_place() -> None:
    drawn = ElementTree.fromstring(
        line_chart("a < b & c", {"up": [(0, 0), (1, 5), (2, 10)], "none": [(0, math.nan)]}, x_label="x", y_label="y")
    )
    marks = [(float(mark.get("cx", "")), float(mark.get("cy", ""))) for mark in drawn.iter(f"{SVG}circle")]
    assert len(marks) == 3
    assert marks[0][0] < marks[1][0] < marks[2][0]
    assert marks[0][1] > marks[1][1] > marks[2][1], "larger values stand higher"
    assert "a < b & c" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_a_chart_of_one_point_or_a_flat_line_has_axes() -> None:
    for points in ([(3.0, 0.0)], [(0.0, 2.0), (1.0, 2.0)]):
        drawn = line_chart("flat", {"line": points})
        assert "nan" not in drawn
        assert len(list(ElementTree.fromstring(drawn).iter(f"{SVG}circle"))) == len(points)


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart("nothing", {"line": [(0, math.inf)]})


def test_a_title_cannot_end_the_image_early() -> None:
    shown = markdown_image("a](b\n[c", "<svg/>")
    assert "\n" not in shown
    assert shown.index("](") == shown.index("](data:image/svg+xml;base64,")


# --- parameter sweep ------------------------------------------------------------------------------------------


def test_the_sweep_follows_the_cosine_in_both_programs_and_dialects(sandbox: Sandbox, block: str) -> None:
    rows = parameter_sweep(last=math.pi, points=4, credentials_block=block, backend="sandbox_ideal", shots=4000)

    assert [row["angle"] for row in rows] == pytest.approx([0, math.pi / 3, 2 * math.pi / 3, math.pi])
    for row in rows:
        # Five standard errors of 4000 shots.
        assert row["estimator_value"] == pytest.approx(math.cos(row["angle"]), abs=0.08)
        assert row["sampler_value"] == pytest.approx(math.cos(row["angle"]), abs=0.08)
        assert sum(row["counts"].values()) == 4000
        assert set(row["counts"]) <= {"00", "11"}
    bought = {row[f"{program}_job"]: program for row in rows for program in ("estimator", "sampler")}
    assert {job["id"]: job["program_id"] for job in sandbox.control.jobs()} == bought
    assert len(bought) == 8
    assert {job["session_id"] for job in sandbox.control.jobs()} == {sandbox.control.sessions()[0]["id"]}
    assert sandbox.control.open_sessions() == []
    assert rows[0]["sampler_job"] in artifact("qruntime-parameter-sweep")
    assert len(list(picture(artifact("qruntime-parameter-sweep-picture")).iter(f"{SVG}circle"))) == 8


def test_a_sweep_that_is_retried_buys_nothing_again(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-retry", overwrite=True)
    attempts: list[list[str]] = []

    @flow(retries=1)
    def fails_once() -> None:
        rows = parameter_sweep(
            points=3, programs=["sampler"], mode="job", credentials_block="more-retry", backend="sandbox_ideal"
        )
        attempts.append([row["sampler_job"] for row in rows])
        if len(attempts) == 1:
            raise RuntimeError("after all jobs were bought")

    fails_once()
    assert attempts[0] == attempts[1]
    assert len(set(attempts[0])) == 3
    assert posts(sandbox) == 3


def test_parity_counts_only_the_letters_that_measure() -> None:
    assert parity({"00": 3, "01": 1}, "IZ") == pytest.approx(0.5)
    assert parity({"00": 3, "01": 1}, "ZI") == pytest.approx(1.0)
    assert parity({"11": 2, "10": 2}, "ZZ") == pytest.approx(0.0)


# --- variational loop -----------------------------------------------------------------------------------------


def test_three_values_fix_the_lowest_point_of_a_sinusoid() -> None:
    def energy(angle: float) -> float:
        return 0.3 - 0.7 * math.cos(angle - 1.1)

    step, lowest = best_step(energy(0.4), energy(0.4 + math.pi / 2), energy(0.4 - math.pi / 2))
    assert 0.4 + step == pytest.approx(1.1)
    assert lowest == pytest.approx(-0.4)
    assert best_step(0.3, 0.3, 0.3) == (0.0, 0.3)


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
import asyncio, json, sys
from prefect.flow_engine import run_flow
from flows.vqe_session import vqe_session
from tests.chaos.victim import arm, known_run

flow_run_id, point, nth, port = sys.argv[1:]
arm(point, int(nth), int(port))
flow_run = asyncio.run(known_run(flow_run_id))
rows = run_flow(vqe_session, flow_run=flow_run)
print("ROWS " + json.dumps(rows))
"""


async def new_flow_run(parameters: dict[str, Any]) -> UUID:
    async with get_client() as client:
        return (await client.create_flow_run(vqe_session, parameters=parameters)).id


async def note_crash(flow_run_id: UUID) -> None:
    """Tell Prefect what the runner of a killed process would tell it, and ask for another go."""
    async with get_client() as client:
        for state in (Crashed(message="killed by the test"), Scheduled()):
            await client.set_flow_run_state(flow_run_id, state, force=True)


def attempt(server: PrefectServer, sandbox: Sandbox, flow_run_id: UUID, point: str, nth: int) -> Any:
    """Run the flow run in a process of its own; returns its rows, or the signal that ended it."""
    port = sandbox.url.rsplit(":", 1)[1]
    env = {**server.env, "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "0.4"}
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(flow_run_id), point, str(nth), port],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if done.returncode < 0:
        return -done.returncode
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ROWS "))[5:])


@pytest.mark.slow
@pytest.mark.timeout(300)
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
        assert attempt(prefect_server, sandbox, flow_run_id, point, nth) == 9
        asyncio.run(note_crash(flow_run_id))
    before = {job["id"] for job in sandbox.control.jobs()}
    assert len(before) == paid

    rows = attempt(prefect_server, sandbox, flow_run_id, "none", 0)

    assert [row["attached"] for row in rows] == [True] * paid + [False] * (len(rows) - paid)
    assert {row["job"] for row in rows[:paid]} == before
    jobs = sandbox.control.jobs()
    assert len(jobs) == len(rows) == len({row["job"] for row in rows})
    assert {job["id"] for job in jobs} == {row["job"] for row in rows}
    assert abs(rows[-1]["energy"] - exact_ground_energy()) < CHEMICAL_ACCURACY
    run_sweep([block])
    assert sandbox.control.open_sessions() == []


# --- backends -------------------------------------------------------------------------------------------------


def test_the_report_shows_status_queue_and_errors(sandbox: Sandbox, block: str, caplog: Any) -> None:
    sandbox.control.set_backend("sandbox_noisy", queue_length=7)
    rows = {row["backend"]: row for row in backend_report(credentials_block=block)}

    assert list(rows)[:2] == ["sandbox_ideal", "sandbox_noisy"], "the shortest queue comes first"
    assert {name: row["status"] for name, row in rows.items()} == {
        "sandbox_ideal": "online",
        "sandbox_noisy": "online",
        "sandbox_paused": "paused",
        "sandbox_offline": "offline",
    }
    assert rows["sandbox_noisy"]["queue"] == 7
    assert posts(sandbox) == 0
    shown = artifact("qruntime-backends")
    assert all(name in shown for name in rows)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(line.split()[0] for line in warned if line.startswith("sandbox_")) == [
        "sandbox_offline",
        "sandbox_paused",
    ]


def test_the_report_has_the_errors_that_the_service_tells(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-report", overwrite=True)
    rows = {row["backend"]: row for row in backend_report(credentials_block="more-report", min_qubits=20)}
    assert 0 < rows["sandbox_noisy"]["two_qubit_error"] < 0.1
    assert 0 < rows["sandbox_noisy"]["readout_error"] < 0.1
    assert rows["sandbox_noisy"]["qubits"] == 27


# --- table ----------------------------------------------------------------------------------------------------


def test_angles_become_a_table_in_both_dialects(sandbox: Sandbox, block: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "values.csv"
    rows = angles_to_table(table=target, credentials_block=block, backend="sandbox_ideal", shots=10_000, rows_per_job=4)

    with target.open(newline="") as lines:
        read = list(csv.DictReader(lines))
    assert len(read) == len(rows) == sum(1 for _ in ANGLES.open()) - 1 == 10
    for line in read:
        theta, phi = float(line["theta"]), float(line["phi"])
        # Five standard errors of 10,000 shots.
        assert float(line["X"]) == pytest.approx(math.sin(theta) * math.cos(phi), abs=0.05)
        assert float(line["Y"]) == pytest.approx(math.sin(theta) * math.sin(phi), abs=0.05)
        assert float(line["Z"]) == pytest.approx(math.cos(theta), abs=0.05)
    jobs = list(dict.fromkeys(line["job"] for line in read))
    assert [sum(line["job"] == job for line in read) for job in jobs] == [4, 4, 2]
    assert {job["id"] for job in sandbox.control.jobs()} == set(jobs)
    assert [path.name for path in target.parent.iterdir()] == ["values.csv"]
    assert jobs[0] in artifact("qruntime-angles")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line must name"),
        ("theta,phi\n", "no line of angles"),
        ("theta,theta\n1,2\n", "first line must name"),
        ("theta,phi\n1,2\n3\n", "line 3: phi must be a number"),
        ("theta,phi\n1,2,3\n", "line 2: more fields"),
        ("theta,phi\n1,two\n", "line 2: phi must be a number, not 'two'"),
        ("theta,phi\n1,inf\n", "line 2: phi must be finite"),
        ("theta,X\n1,2\n", "several columns X"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_bought(sandbox: Sandbox, tmp_path: Path, text: str, said: str) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-wrong", overwrite=True)
    angles = tmp_path / "angles.csv"
    angles.write_text(text)
    with pytest.raises(ValueError, match=said):
        angles_to_table(angles=angles, table=tmp_path / "out.csv", credentials_block="more-wrong")
    assert posts(sandbox) == 0
    assert not (tmp_path / "out.csv").exists()


def test_a_table_that_cannot_be_written_is_refused_first(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-wrong", overwrite=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, said in (("out.parquet", "needs pyarrow"), ("out.xlsx", r"\.csv or \.parquet")):
        with pytest.raises(ValueError, match=said):
            angles_to_table(table=tmp_path / name, credentials_block="more-wrong")
    assert posts(sandbox) == 0


def test_parquet_where_pyarrow_is(sandbox: Sandbox, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-parquet", overwrite=True)
    rows = angles_to_table(table=tmp_path / "out.parquet", credentials_block="more-parquet", backend="sandbox_ideal")
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    from flows.angles_to_table import write_table

    target = tmp_path / "out.csv"
    target.write_text("old")
    with pytest.raises(ValueError, match="extra"):
        write_table.fn([{"a": 1}, {"a": 2, "extra": 3}], target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


# --- all ------------------------------------------------------------------------------------------------------


def test_without_a_block_each_uses_the_embedded_sandbox_and_says_so(
    sandbox: Sandbox, dialect: Any, caplog: Any, tmp_path: Path
) -> None:
    runs = [
        lambda: parameter_sweep(points=2, shots=10, dialect=dialect),
        lambda: vqe_session(max_iterations=1, dialect=dialect),
        lambda: backend_report(dialect=dialect),
        lambda: angles_to_table(table=tmp_path / "out.csv", dialect=dialect),
    ]
    for run in runs:
        caplog.clear()
        assert run()
        said = [record.getMessage() for record in caplog.records if "embedded sandbox" in record.getMessage()]
        assert len(said) == 1
    assert sandbox.control.jobs() == [], "one ran on another sandbox than its own"
