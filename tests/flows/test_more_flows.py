"""The flows beside the main one: a sweep of an angle, a report, a table of a pipeline, a saved job."""

from __future__ import annotations

import asyncio
import csv
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from flows.angles_to_table import ANGLES, angles_to_table, check_columns, input_names
from flows.backend_report import backend_report
from flows.leave_and_collect import leave
from flows.parameter_sweep import parameter_sweep, parity, tell
from flows.run_circuits import run_circuits
from flows.run_saved_job import run_saved_job
from flows.sweep_sessions import sweep_sessions
from flows.usage_report import usage_report
from flows.vqe_session import vqe_session
from flows.watch_jobs import watch_jobs
from prefect_qruntime import Budget, BudgetExhausted, InvalidInput, QuantumRuntimeCredentials, QuantumRuntimeJob
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, STAY, SVG, artifact, picture, posts
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def _files_of_the_test_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", str(tmp_path))


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
        ("theta,phi\n1,2\n3\n", "line 3: 1 field, but the first line names 2 columns"),
        ("theta,phi\n1,2,3\n", "line 2: 3 fields"),
        ("theta,phi\n1,two\n", "line 2, column 2: not a number"),
        ("theta,phi\n1,inf\n", "line 2, column 2: not a finite number"),
        ("theta,X\n1,2\n", "must name the circuit's inputs: theta, phi"),
        ("SECRET=0123\n1,2\n", "first line must name each column once"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_bought(sandbox: Sandbox, tmp_path: Path, text: str, said: str) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-wrong", overwrite=True)
    angles = tmp_path / "angles.csv"
    angles.write_text(text)
    with pytest.raises(InvalidInput, match=said) as caught:
        angles_to_table(angles=angles, table=tmp_path / "out.csv", credentials_block="more-wrong")
    assert caught.value.field == "angles"
    assert "two" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert posts(sandbox) == 0
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"angles": "/etc/passwd"}, "angles"),
        ({"angles": "/dev/zero"}, "angles"),
        ({"angles": "a\nb"}, "angles"),
        ({"angles": "folder/angles.csv"}, "angles"),
        ({"table": "/tmp/other.csv"}, "table"),
        ({"table": "folder/precious.csv"}, "table"),
        ({"table": "precious-link.csv"}, "table"),
        ({"circuit": "/etc/passwd"}, "circuit"),
    ],
)
def test_a_form_reaches_no_file_outside_the_allowed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], field: str
) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (outside / "precious.csv").write_text("kept")
    (outside / "angles.csv").write_text("theta,phi\n1,2\n")
    (allowed / "folder").symlink_to(outside)
    (allowed / "precious-link.csv").symlink_to(outside / "precious.csv")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", str(allowed))
    monkeypatch.chdir(allowed)
    with pytest.raises(InvalidInput, match=r"folders|not a path") as caught:
        angles_to_table(**{"table": Path("out.csv"), **parameters})
    assert caught.value.field == field
    assert (outside / "precious.csv").read_text() == "kept"


def test_columns_that_would_overwrite_each_other_are_refused() -> None:
    with pytest.raises(InvalidInput, match="observables: the table would have several columns X"):
        check_columns(["theta", "X"], ["X", "Y"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("input float[64] theta; input angle phi; qubit q;", ["theta", "phi"]),
        ("// input float x;\ninput float theta; /* input float[64] y; */", ["theta"]),
        ("qubit q;", []),
        ("gate g a { x a; }\ninput float[64] theta; qubit q;", ["theta"]),
        ("def f(qubit a) { x a; } input angle[8]\n  phi; qubit q;", ["phi"]),
        ("input int[8] n; qubit q;", None),
        ("input array[float, 2] x;", None),
    ],
)
def test_the_inputs_of_a_text(text: str, names: list[str] | None) -> None:
    assert input_names(text) == names


def test_a_table_that_cannot_be_written_is_refused_first(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("more-wrong", overwrite=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, said in (("out.parquet", "needs pyarrow"), ("out.xlsx", r"\.csv or \.parquet")):
        with pytest.raises(InvalidInput, match=said) as caught:
            angles_to_table(table=tmp_path / name, credentials_block="more-wrong")
        assert caught.value.field == "table"
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


# --- saved job ------------------------------------------------------------------------------------------------


def test_a_job_saved_from_the_form_runs_by_name(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    credentials_id = credentials.save("more-form", overwrite=True)
    QuantumRuntimeJob.register_type_and_schema()

    async def fill_the_form(client: Any) -> Any:
        """What the UI sends when its form is saved; a block in a block is a reference."""
        kind = await client.read_block_type_by_slug("quantum-runtime-job")
        checksum = QuantumRuntimeJob._calculate_schema_checksum()
        form = {
            "name": f"form-{uuid4().hex[:8]}",
            "block_type_id": str(kind.id),
            "block_schema_id": str((await client.read_block_schema_by_checksum(checksum)).id),
            "data": {
                "credentials": {"$ref": {"block_document_id": str(credentials_id)}},
                "backend": "sandbox_ideal",
                "pubs": [FLIP],
                "shots": 11,
            },
        }
        answer = await client._client.post("/block_documents/", json=form)
        assert answer.status_code == 201, answer.text
        return form["name"]

    name = asked(fill_the_form)
    rows: Any = asyncio.run(run_saved_job(name))  # type: ignore[arg-type]

    assert [(row["bitstring"], row["count"]) for row in rows] == [("1", 11)]
    (job,) = sandbox.control.jobs()
    assert '"bitstring": "1"' in artifact("qruntime-saved-job")
    (record,) = network_loop().run(find_records("job", identifiers=[job["id"]]))
    assert record.meta["block"] == "more-form", "the hooks find the credentials by this name"


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


@pytest.mark.parametrize("values", [[math.nan], [math.nan, 0.5]])
def test_a_sweep_whose_values_are_not_all_known_ends_well(values: list[float]) -> None:
    rows = [{"angle": float(place), "estimator_value": value} for place, value in enumerate(values)]
    flow(tell)(rows, "Z", f"backend-{len(values)}")


@pytest.mark.parametrize("angle", [math.nan, math.inf, "nan"])
@pytest.mark.parametrize("name", ["first", "last"])
def test_an_angle_that_is_no_number_is_named_as_in_the_form(sandbox: Sandbox, name: str, angle: Any) -> None:
    with pytest.raises(InvalidInput, match="finite") as caught:
        parameter_sweep(**{name: angle})
    assert caught.value.field == name


BOUGHT = [
    (run_circuits, {"circuits": [FLIP] * 2, "mode": "job", "backend": BACKEND}),
    (parameter_sweep, {"points": 2, "programs": ["sampler"], "mode": "job", "backend": BACKEND}),
    (vqe_session, {"shots": 10, "backend": BACKEND}),
    (angles_to_table, {"rows_per_job": 1, "backend": BACKEND}),
]


@pytest.mark.parametrize(("bought", "parameters"), BOUGHT)
def test_a_form_can_name_a_budget(sandbox: Sandbox, tmp_path: Path, bought: Any, parameters: dict[str, Any]) -> None:
    name = f"form-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    Budget(max_jobs_per_run=1).save(name)
    if bought is angles_to_table:
        parameters = {**parameters, "table": tmp_path / "table.csv"}
    with pytest.raises(BudgetExhausted) as caught:
        bought(credentials_block=name, budget_block=name, **parameters)
    assert caught.value.budget == name
    assert posts(sandbox) == 1


@pytest.mark.parametrize(
    ("bought", "parameters"),
    [*BOUGHT, (leave, {"circuit": FLIP, "backend": BACKEND})],
    ids=lambda of: getattr(of, "name", ""),
)
def test_an_empty_name_of_a_budget_is_none(
    sandbox: Sandbox, tmp_path: Path, bought: Any, parameters: dict[str, Any]
) -> None:
    """As the form says, and as `--param budget_block=` sends it."""
    name = f"form-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    if bought is angles_to_table:
        parameters = {**parameters, "table": tmp_path / "table.csv"}
    if bought is vqe_session:
        parameters = {**parameters, "max_iterations": 1}
    bought(credentials_block=name, budget_block="", **parameters)
    assert posts(sandbox) > 0


@pytest.mark.parametrize(
    "repeated",
    [
        lambda: run_circuits(circuits=[FLIP]),
        lambda: sweep_sessions(),
        lambda: usage_report(),
        lambda: watch_jobs(minutes=None),
    ],
    ids=["run_circuits", "sweep_sessions", "usage_report", "watch_jobs"],
)
def test_a_wrong_setting_ends_a_flow_with_its_name(monkeypatch: pytest.MonkeyPatch, repeated: Any) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "abc")
    with pytest.raises(InvalidInput, match=r"^PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE: .* not 'abc'"):
        repeated()


def test_a_job_that_is_left_or_saved_is_limited_by_the_form(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    name = f"limited-{uuid4().hex[:6]}"
    credentials.save(name)
    Budget(max_seconds_per_run=30).save(name)
    QuantumRuntimeJob(credentials=credentials, backend=BACKEND, pubs=[FLIP], max_execution_time=50).save(name)
    left = {"credentials_block": name, "circuit": FLIP, "backend": BACKEND, "budget_block": name}
    for refused in (
        lambda: leave(**left, max_execution_time=50),
        lambda: asyncio.run(run_saved_job(name, budget_block=name)),  # type: ignore[arg-type]
    ):
        with pytest.raises(BudgetExhausted) as caught:
            refused()
        assert caught.value.budget == name
    assert posts(sandbox) == 0
    job_id = leave(**left, max_execution_time=20)
    assert credentials.get_client().run(credentials.get_client().job(job_id)).max_execution_time == 20


@pytest.mark.parametrize("mode", ["job", "session"])
def test_a_missing_extra_ends_a_run_on_the_embedded_sandbox_with_one_error(
    monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr("prefect_qruntime.sandbox.service.missing_packages", lambda *, physics: ("qiskit_aer",))
    with pytest.raises(
        InvalidInput, match=r"Not installed: qiskit_aer.* Install prefect-qruntime\[sandbox\]"
    ) as caught:
        run_circuits(circuits=[FLIP], mode=mode)
    assert "service's own fault" not in str(caught.value)
    assert "Correct the input" not in str(caught.value)


def test_a_refusal_does_not_say_that_nothing_was_sent_by_a_run_that_has_opened_a_session(sandbox: Sandbox) -> None:
    name = f"refused-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    Budget(max_jobs_per_run=1).save(name)
    with pytest.raises(BudgetExhausted, match=r"This request was not sent\.$") as caught:
        run_circuits(credentials_block=name, circuits=[FLIP] * 2, backend=BACKEND, budget_block=name)
    assert len(sandbox.control.sessions()) == posts(sandbox) == 1
    assert "Nothing" not in str(caught.value)


def test_runs_of_two_deployments_of_one_name_buy_their_own_jobs_in_a_slot(sandbox: Sandbox) -> None:
    name = f"slot-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    when = datetime(2026, 5, 1, 2, tzinfo=UTC)
    other = run_circuits.with_options(name=f"others-{name}")

    def run_of(bought: Any) -> str:
        async def create(client: PrefectClient) -> Any:
            deployment = await client.create_deployment(await client.create_flow(bought), name="nightly")
            return await client.create_flow_run_from_deployment(
                deployment,
                parameters={"circuits": [FLIP], "credentials_block": name, "mode": "job", "once_per_slot": True},
                state=Scheduled(scheduled_time=when),
            )

        flow_run = asked(create)
        rows: Any = run_flow(bought, flow_run=flow_run, parameters=flow_run.parameters)
        return str(rows[0]["job"])

    assert run_of(run_circuits) == run_of(run_circuits)
    assert posts(sandbox) == 1
    run_of(other)
    assert posts(sandbox) == 2


@pytest.mark.parametrize("once_per_slot", [True, False])
def test_a_run_that_is_started_by_hand_has_the_jobs_of_the_slot_that_it_names(
    sandbox: Sandbox, once_per_slot: bool
) -> None:
    name = f"by-hand-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    given: dict[str, Any] = {"circuits": [FLIP, STAY], "credentials_block": name, "backend": BACKEND, "mode": "job"}
    given["once_per_slot"] = once_per_slot
    slot = datetime(2026, 5, 1, 2, tzinfo=UTC)

    async def deploy(client: PrefectClient) -> Any:
        return await client.create_deployment(await client.create_flow(run_circuits), name=name, parameters=given)

    deployment_id = asked(deploy)

    def jobs_of(state: Any = None, **parameters: Any) -> list[str]:
        """What Quick run and `prefect deployment run` create, or with a state what the scheduler creates."""
        flow_run = asked(
            lambda client: client.create_flow_run_from_deployment(deployment_id, parameters=parameters, state=state)
        )
        rows: Any = run_flow(run_circuits, flow_run=flow_run, parameters=flow_run.parameters)
        assert (flow_run.expected_start_time == slot) == (state is not None)
        return [row["job"] for row in rows]

    of_the_slot = {"state": Scheduled(scheduled_time=slot)} if once_per_slot else {"slot": "2026-05-01T02:00:00Z"}
    first = jobs_of(**of_the_slot)
    assert posts(sandbox) == 2
    assert jobs_of(slot="2026-05-01T04:00:00+02:00") == first
    assert posts(sandbox) == 2
    assert not set(jobs_of()) & set(first), "without the slot it is another intent"
    assert posts(sandbox) == 4


def test_a_slot_without_a_time_zone_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ParameterTypeError, match="timezone"):
        run_circuits(circuits=[FLIP], slot="2026-05-01T02:00:00")
    assert posts(sandbox) == 0


@pytest.mark.parametrize(
    ("made", "parameters"),
    [(run_circuits, {"circuits": []}), (parameter_sweep, {"programs": []}), (angles_to_table, {"observables": []})],
)
def test_an_empty_list_of_the_form_is_refused_before_anything_is_sent(
    sandbox: Sandbox, block: str, made: Any, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ParameterTypeError, match=next(iter(parameters))):
        made(credentials_block=block, **parameters)
    assert sandbox.control.journal("POST") == []
