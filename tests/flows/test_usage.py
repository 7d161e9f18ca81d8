"""The command `usage`, its flow and its files: every QPU second of a Prefect server's flows and deployments."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, get_client
from prefect.flow_engine import run_flow

import prefect_qruntime as qr
from flows.usage_report import usage_report
from prefect_qruntime.cli.jobs import usage as usage_command
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations.job_listing import list_jobs
from prefect_qruntime.operations.usage import report_usage
from prefect_qruntime.operations.usage_tables import write_parquet
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, artifact

pytestmark = pytest.mark.server
BLOCK = "usage"


@flow(name="paid-work")
def paid_work() -> None:
    """A flow that never runs: its flow runs are made through Prefect's API."""


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    sandbox.control.set_option("resource_unit_rate", 2.0)
    block = qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    block.save(BLOCK, overwrite=True)
    return block.get_client()


def flow_run(deployment: str | None, *tags: str) -> Any:
    """A flow run as Prefect keeps it, of a deployment or of none."""
    with get_client(sync_client=True) as prefect:
        if deployment is None:
            return prefect.create_flow_run(paid_work, tags=tags)
        flow_id = prefect.create_flow(paid_work)
        deployment_id = prefect.create_deployment(flow_id, deployment, tags=[*tags])
        return prefect.create_flow_run_from_deployment(deployment_id, tags=[*tags])


def bought(client: Any, sandbox: Sandbox, *tags: str, ends: str = "Completed", session: Any = None) -> str:
    if ends != "Completed":
        sandbox.control.script_job(status=ends)
    ref = client.run(client.post_job(make_spec([FLIP], backend=BACKEND), (f"qr-key:{uuid4().hex}", *tags), session))
    sandbox.control.wait_job(ref.id)
    return str(ref.id)


@pytest.fixture
def story(client: Any, sandbox: Sandbox) -> dict[str, Any]:
    """Two deployments, a run without one, a session, failed and cancelled jobs, and one job of nobody."""
    nightly, weekly, by_hand = flow_run("nightly", "team-a"), flow_run("weekly", "team-b"), flow_run(None)
    bought(client, sandbox, f"qr-flow:{nightly.id}", "paper")
    bought(client, sandbox, f"qr-flow:{nightly.id}", ends="Failed")
    bought(client, sandbox, f"qr-flow:{weekly.id}", ends="Ran too long")
    bought(client, sandbox, f"qr-flow:{by_hand.id}")
    session = client.run(client.post_session(BACKEND, mode="dedicated", max_ttl=60))
    bought(client, sandbox, f"qr-flow:{weekly.id}", session=session)
    client.run(client.close_session(session.id, drain=True))
    return {"nobody": bought(client, sandbox), "runs": (nightly, weekly, by_hand), "session": session.id}


@pytest.mark.parametrize("deployment_too", [False, True])
def test_a_deleted_flow_run_counts_for_its_deployment(client: Any, sandbox: Sandbox, deployment_too: bool) -> None:
    name = f"deleted-{uuid4().hex[:6]}"

    @flow(name=f"flow-of-{name}")
    def paid() -> None:
        qr.run_job(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND, shots=10)

    with get_client(sync_client=True) as prefect:
        deployment_id = prefect.create_deployment(prefect.create_flow(paid), name, tags=["team-c"])
        run = prefect.create_flow_run_from_deployment(deployment_id)
        run_flow(paid, flow_run=run)
        before, told = report_usage([BLOCK]), f"flow-of-{name}/{name}"
        assert [row.keys["deployment"] for row in before.rows] == [told]
        prefect.delete_flow_run(run.id)
        if deployment_too:
            prefect.delete_deployment(deployment_id)
    flow_too, tag = ("deleted flow", "no tag") if deployment_too else (f"flow-of-{name}", "team-c")
    told = f"deleted flow/deleted deployment {deployment_id}" if deployment_too else told
    for by, shown in (
        ("deployment", told),
        ("flow", flow_too),
        ("tag", tag),
        ("flow-run", f"deleted flow run ({run.id})"),
    ):
        report = report_usage([BLOCK], by=[by])
        assert [row.keys[by] for row in report.rows] == [shown]
        assert report.total == before.total
    assert [(job.deployment, job.flow_run) for job in list_jobs([BLOCK]).jobs] == [(told, None)], "no name is made up"
    foreign = bought(client, sandbox, f"qr-flow:{uuid4()}")
    assert {job.id: job.deployment for job in list_jobs([BLOCK]).jobs}[foreign] is None


def test_usage_by_everything_and_what_the_service_says(
    story: dict[str, Any], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nightly, weekly, by_hand = story["runs"]
    said = sandbox.control.usage()["usage_consumed_seconds"]

    def rows(by: str) -> dict[str, Any]:
        report = report_usage([BLOCK], by=[by])
        assert report.is_complete
        assert report.total.qpu_seconds == pytest.approx(said)
        assert report.total.resource_units == pytest.approx(2 * said, abs=1e-4)
        return {row.keys[by]: row for row in report.rows}

    deployments = rows("deployment")
    assert set(deployments) == {"paid-work/nightly", "paid-work/weekly", "no deployment", "no owner"}
    assert deployments["paid-work/nightly"].states == {"completed": 1, "failed": 1}
    assert deployments["paid-work/weekly"].states == {"completed": 1, "cancelled": 1}
    clocked = sandbox.control.session(story["session"])["usage_seconds"]
    other = next(job for job in sandbox.control.jobs() if job["session_id"] is None and job["reason_code"] == 1305)
    assert deployments["paid-work/weekly"].qpu_seconds == pytest.approx(clocked + other["usage_seconds"], abs=1e-6)
    assert set(rows("flow")) == {"paid-work", "no owner"}
    names = {f"{run.name} ({run.id})" for run in (nightly, weekly, by_hand)}
    assert set(rows("flow-run")) == {*names, "no owner"}
    assert set(rows("tag")) == {"team-a", "team-b", "paper", "no tag"}
    assert rows("session")[story["session"]].qpu_seconds == clocked
    assert set(rows("user")) == {sandbox.control.jobs()[0]["user"]}
    assert set(rows("month")) == {f"{datetime.now(UTC):%Y-%m}"}
    report = report_usage([BLOCK])
    assert [job.id for job in report.without_owner] == [story["nobody"]]
    whole = [line for line in report.reconciled if line.what == "instance"]
    assert [(line.unit, line.difference) for line in whole] == [("QPU seconds", 0), ("resource units", 0)]

    assert usage_command(block=[BLOCK], csv=True, by=["deployment"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["deployment"]: Decimal(row["qpu_seconds"]) for row in table} == {
        name: Decimal(str(row.qpu_seconds)) for name, row in deployments.items()
    }
    assert usage_command(block=[BLOCK], json=True) == 0
    assert json.loads(capsys.readouterr().out)["total"]["jobs"] == 6

    monkeypatch.setenv("COLUMNS", "80")
    assert usage_command(block=[BLOCK]) == 0
    shown = capsys.readouterr().out
    assert "paid-work/nightly" in shown
    assert "Without an owner: 1 job, " in shown
    assert story["nobody"] in shown
    assert "usage, instance: the service says" in shown
    assert "They agree." in shown
    assert "resource units" in shown
    sandbox.control.set_usage(consumed=1000)
    usage_command(block=[BLOCK], since="2026-01-01")
    assert "Another user used the instance" in " ".join(capsys.readouterr().out.split())


def test_pending_usage_is_marked(
    client: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sandbox.control.set_option("usage_lag", 1e6)
    sandbox.control.set_times(run_time=0.01)
    bought(client, sandbox)
    assert usage_command(block=[BLOCK]) == 0
    assert "of jobs or of sessions, are not final yet (…)." in " ".join(capsys.readouterr().out.split())


def test_the_nightly_flow_makes_a_table_and_a_picture_and_a_file_holds_decimals(
    story: dict[str, Any], sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = usage_report([BLOCK])
    assert sum(Decimal(str(row["qpu_seconds"])) for row in rows) == Decimal(
        str(sandbox.control.usage()["usage_consumed_seconds"])
    )
    shown = artifact("qruntime-usage")
    assert "data:image/svg+xml;base64," in shown
    assert story["nobody"] in shown
    assert "They agree." in shown
    table = {row["deployment"]: row for row in json.loads(artifact("qruntime-usage-table"))}
    assert {"jobs", "completed", "failed", "QPU seconds"} <= set(table["paid-work/nightly"])
    assert "not final" not in table["paid-work/nightly"], "all are final"
    assert table["no owner"]["QPU seconds"] == round(
        next(row["qpu_seconds"] for row in rows if row["deployment"] == "no owner"), 2
    )
    assert usage_report([BLOCK], by="tag", since="1m")

    from pyarrow import parquet

    path = tmp_path / "usage.parquet"
    assert usage_command(block=[BLOCK], parquet=path, json=True) == 0
    kept = parquet.read_table(path).to_pylist()
    assert sum(row["qpu_seconds"] for row in kept) == Decimal(str(sandbox.control.usage()["usage_consumed_seconds"]))
    assert {row["deployment"] for row in kept} >= {"paid-work/nightly", "no owner"}
    with pytest.raises(InvalidInput, match="cannot write"):
        write_parquet(report_usage([BLOCK]), tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match="needs pyarrow, which is not installed"):
        usage_command(block=[BLOCK], parquet=tmp_path / "other.parquet")
    assert not (tmp_path / "other.parquet").exists()


def test_a_month_without_jobs(client: Any) -> None:
    assert usage_report([BLOCK]) == []
    assert "No QPU seconds were used." in artifact("qruntime-usage")


def test_the_legacy_dialect_and_a_broken_block(client: Any, sandbox: Sandbox) -> None:
    session = client.run(client.post_session(BACKEND, mode="dedicated", max_ttl=60))
    bought(client, sandbox, session=session)
    client.run(client.close_session(session.id, drain=True))
    qr.QuantumRuntimeCredentials(**sandbox.connection("legacy")).save("usage-old", overwrite=True)
    broken = {**sandbox.connection(), "api_key": "no-key-0123456789"}
    qr.QuantumRuntimeCredentials(**broken).save("usage-broken", overwrite=True)
    old, new = report_usage(["usage-old"]), report_usage([BLOCK])
    assert (old.total, old.total.jobs) == (new.total, 1)
    report = report_usage([BLOCK, "usage-broken", "usage-gone"])
    assert [problem.split(":")[0] for problem in report.problems] == ["usage-broken", "usage-gone"]
    assert report.total.jobs == 1
    assert not report.is_complete
    assert report.reconciled == [], "a part is not compared with the whole"
    assert usage_command(block=[BLOCK, "usage-broken"], json=True) == 1


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"by": ["colour"]}, "by"),
        ({"since": "soon"}, "since"),
        ({"until": "later"}, "until"),
        ({"since": "1d", "until": "2d"}, "until"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    client: Any, sandbox: Sandbox, wanted: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        report_usage([BLOCK], **wanted)
    assert caught.value.field == field
    assert sandbox.control.journal() == []
    with pytest.raises(InvalidInput, match="cannot be given together"):
        usage_command(csv=True, json=True)
