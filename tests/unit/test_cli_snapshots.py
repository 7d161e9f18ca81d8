"""What each command prints on a terminal of 80 columns: its help and its tables, as files beside this one.

`QRUNTIME_SNAPSHOTS=write` writes them anew.
"""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefect_qruntime.cli import app, jobs, operations
from prefect_qruntime.cli.options import print_rows
from prefect_qruntime.diagnostics.fields import hint, ok, problem
from prefect_qruntime.models import Backend
from prefect_qruntime.operations.doctor import DoctorReport
from prefect_qruntime.operations.job_listing import JobList, ListedJob, Totals, group_jobs
from prefect_qruntime.operations.session_listing import OpenSession, SessionList
from prefect_qruntime.operations.sweep import StalledRun, SweepReport, Swept
from prefect_qruntime.operations.usage_tables import UnownedJob, UsageLine, UsageReport
from tests.support.command_line import exit_code

FOLDER = Path(__file__).parent / "cli_snapshots"
COLUMNS = 80
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
JOBS = ["d3j5k2l0s6ag008z1abc", "d3j5k31gs6ag008z2abd", "d3j5k3s8s6ag008z3abe"]
SESSIONS = ["5f0c1f3e-7a55-4c56-9a1d-0d6f2b7c1a11", "c0ffee00-7a55-4c56-9a1d-0d6f2b7c1a12"]
RUN = "0197a8c2-3f61-7d3b-9f10-5b8d7e6c4a21"


def job(number: int, **facts: Any) -> ListedJob:
    given: dict[str, Any] = {
        "id": JOBS[number],
        "block": "ibm",
        "state": "completed",
        "backend": "ibm_marrakesh",
        "program": "sampler",
        "created_at": NOON,
        "qpu_seconds": 12.5,
        "qpu_seconds_final": True,
        "flow_run_id": RUN,
        "flow_run": "graceful-caterpillar",
        "url": None,
        "flow_state": "Completed",
        "deployment": "run-circuits/circuits-nightly",
        "tags": ("team-a", "calibration-2026-w18"),
    }
    return ListedJob(**{**given, **facts})


LISTED = [
    job(0),
    job(1, state="running", qpu_seconds=None, qpu_seconds_final=False, block="ibm-frankfurt"),
    job(2, flow_run_id=None, flow_run=None, flow_state=None, deployment=None, tags=(), qpu_seconds=300.25),
]
TOTALS = Totals(jobs=3, qpu_seconds=312.75, not_final=1, without_owner=1, qpu_seconds_without_owner=300.25)


def listed(by: Any = None) -> JobList:
    groups = group_jobs(LISTED, by) if by is not None else []
    return JobList(jobs=LISTED, totals=TOTALS, more=True, problems=[], groups=groups)


def open_session(number: int, **facts: Any) -> OpenSession:
    given: dict[str, Any] = {
        "id": SESSIONS[number],
        "block": "ibm",
        "mode": "dedicated",
        "backend": "ibm_marrakesh",
        "state": "active",
        "accepting_jobs": True,
        "opened_at": NOON,
        "age_seconds": 754.0,
        "max_ttl": 7200,
        "unfinished_jobs": 2,
    }
    return OpenSession(**{**given, **facts})


def swept(kind: str, identifier: str, **facts: Any) -> Swept:
    given = {"block": "ibm", "flow_run": RUN, "flow_state": "Cancelled", "action": kind}
    return Swept(**{**given, "id": identifier, **facts})


REPORT = SweepReport(
    dry_run=False,
    blocks=["ibm", "ibm-frankfurt"],
    sessions=[
        swept("closed", SESSIONS[0]),
        swept("could not be closed: The service is unavailable.", SESSIONS[1], block="ibm-frankfurt"),
    ],
    jobs=[swept("left alone", JOBS[0], flow_run=None, flow_state="Ended", process="script vqe.py (4711 on lab-7)")],
    problems=[],
    stalled=[
        StalledRun(
            id=RUN,
            name="graceful-caterpillar",
            evidence="Its last heartbeat is 40 minutes old.",
            next_step=f"Run `prefect-qruntime resume {RUN}`.",
        )
    ],
)
FINDINGS = DoctorReport(
    findings=(
        ok("server", "Prefect answers at http://127.0.0.1:4200/api"),
        hint("limits", "No create limits are set for this account.", "Run `prefect-qruntime setup` once."),
        problem("region", "The instance is in eu-de by its CRN, base_url belongs to us-east.", "Leave base_url empty."),
    )
)
BACKENDS = [
    ("ibm", Backend(name="ibm_marrakesh", status="online", num_qubits=156, queue_length=1204, two_qubit_error=0.0031)),
    ("ibm-frankfurt", Backend(name="ibm_aachen", status="paused", status_reason="calibrating", num_qubits=156)),
]
LIMITS = [{"blocks": "ibm, ibm-frankfurt", "limit": "qruntime-create-9f31c2d47ab0-1", "action": "created"}]


def line(**facts: Any) -> UsageLine:
    given: dict[str, Any] = {
        "keys": {"deployment": "run-circuits/circuits-nightly", "flow-run": f"graceful-caterpillar ({RUN})"},
        "jobs": 12,
        "states": {"completed": 10, "failed": 1, "cancelled": 1},
        "qpu_seconds": 12.5,
        "pending_qpu_seconds": 0.0,
        "resource_units": None,
        "pending_resource_units": None,
        "not_final": 0,
    }
    return UsageLine(**{**given, **facts})


USAGE = UsageReport(
    by=["deployment", "flow-run"],
    since=NOON,
    until=None,
    rows=[line(), line(keys={"deployment": "none", "flow-run": "none"}, not_final=1, pending_qpu_seconds=3.0)],
    total=line(keys={}, jobs=24, qpu_seconds=25.0, not_final=1, pending_qpu_seconds=3.0),
    without_owner=[
        UnownedJob(
            id=JOBS[2],
            block="ibm",
            user="IBMid-1",
            state="completed",
            created_at=NOON,
            qpu_seconds=300.25,
            qpu_seconds_final=True,
        )
    ],
    jobs_without_owner=1,
    qpu_seconds_without_owner=300.25,
    reconciled=[],
    problems=[],
    notes=[],
)


# A row that has three keys, one of them long, and more unowned jobs than the report lists.
USAGE_BY_THREE = USAGE.model_copy(
    update={
        "by": ["flow", "month", "tag"],
        "rows": [
            line(keys={"flow": "parameter-sweep", "month": "2026-05", "tag": "calibration-2026-w18"}),
            line(keys={"flow": "none", "month": "2026-05", "tag": "no tag"}, qpu_seconds=1234567.25),
        ],
        "without_owner": USAGE.without_owner * 100,
        "jobs_without_owner": 667,
    }
)


def tables() -> dict[str, Any]:
    """What prints each table on a console."""
    return {
        "jobs": lambda console: jobs._print(listed(), console, None),
        **{
            f"jobs-by-{by}": lambda console, by=by: jobs._print(listed(by), console, by)
            for by in ("deployment", "owner", "tag", "flow-state")
        },
        "usage": lambda console: jobs._print_usage(USAGE, console),
        "usage-by-three": lambda console: jobs._print_usage(USAGE_BY_THREE, console),
        "sessions": lambda console: operations._print_sessions(
            SessionList(
                sessions=[
                    open_session(0, flow_run_id=RUN, flow_run="graceful-caterpillar", flow_run_state="Running"),
                    open_session(1, accepting_jobs=False, process="notebook on lab-7", process_state="ended"),
                ],
                problems=[],
            ),
            console,
        ),
        "sweep": lambda console: operations._print_swept(REPORT, console),
        "doctor": lambda console: operations._print_report(FINDINGS, console),
        "backends": lambda console: operations._print_backends(BACKENDS, console),
        "setup": lambda console: print_rows(LIMITS, "Create limits, 5 jobs a minute", "none", console),
    }


def held(name: str, text: str) -> None:
    """Compare a text with its file, and hold what every output keeps to."""
    lines = text.splitlines()
    # What is to be copied is not broken into lines.
    assert all(len(line) <= COLUMNS for line in lines if "prefect-qruntime" not in line), name
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    file = FOLDER / f"{name}.txt"
    if os.environ.get("QRUNTIME_SNAPSHOTS") == "write":
        file.write_text(text)
    assert text == file.read_text(), "run this file with QRUNTIME_SNAPSHOTS=write and look at what changed"


@pytest.mark.parametrize("name", tables())
def test_a_table_fits_and_breaks_no_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    shown = io.StringIO()
    tables()[name](Console(file=shown, width=COLUMNS, color_system=None))
    text = shown.getvalue()
    for identifier in (*JOBS, *SESSIONS):
        if identifier[:12] in text:
            assert identifier in text, f"{identifier} is broken"
    held(f"table-{name}", text.replace(f"{NOON.astimezone():%m-%d %H:%M}", "05-01 12:00"))


def test_many_small_amounts_add_up_without_rounding_noise() -> None:
    assert group_jobs([job(0, qpu_seconds=0.2)] * 2000, "owner")[0].qpu_seconds == 400.0


COMMANDS = sorted(name for name in app if not name.startswith("-"))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_is_short(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert exit_code(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "--no-" not in text
    assert len(text.splitlines()) <= 45
    held(f"help-{command or 'all'}", text)


def test_each_file_belongs_to_a_test() -> None:
    wanted = {f"table-{name}" for name in tables()} | {f"help-{name}" for name in ("all", *COMMANDS)}
    assert {file.stem for file in FOLDER.glob("*.txt")} == wanted
