"""The command `jobs`: every QPU second has an owner, or is shown to have none."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from rich.console import Console

import prefect_qruntime as qr
from prefect_qruntime.cli.jobs import _table, jobs as jobs_command
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations.job_listing import ListedJob, list_jobs, parse_since
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import command, exit_code
from tests.support.flow_runs import BACKEND, FLIP, STAY, ran
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
BLOCK = "listing"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    block = qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    block.save(BLOCK, overwrite=True)
    return block.get_client()


@flow
def two_jobs() -> None:
    credentials = qr.load_credentials(BLOCK)
    for circuit in (FLIP, STAY):
        qr.run_job(credentials, [circuit], backend=BACKEND)


def by_hand(client: Any, sandbox: Sandbox, *tags: str, ends: str = "Completed", private: bool = False) -> str:
    """A job that no flow run bought."""
    if ends != "Completed":
        sandbox.control.script_job(status=ends)
    spec = make_spec([FLIP], backend=BACKEND, private=private)
    key = f"qr-key:{uuid4().hex}"
    ref = client.run(client.submit(Intent(spec=spec, key_tag=lambda _: key, tags=tags)))
    sandbox.control.wait_job(ref.id)
    return str(ref.id)


def test_jobs_with_their_flow_run_and_jobs_without(client: Any, sandbox: Sandbox) -> None:
    flow_run, state = ran(two_jobs)
    assert state.is_completed()
    foreign = by_hand(client, sandbox)
    elsewhere = by_hand(client, sandbox, "qr-flow:00000000-0000-4000-8000-000000000000")
    odd = by_hand(client, sandbox, "qr-flow:nightly")

    found = list_jobs([BLOCK])
    assert found.problems == []
    assert len(found.jobs) == 5
    owned = [job for job in found.jobs if job.flow_run_id == str(flow_run.id)]
    assert [(job.flow_run, job.state, job.backend, job.program) for job in owned] == [
        (flow_run.name, "completed", BACKEND, "sampler")
    ] * 2
    others = {job.id: (job.flow_run_id, job.flow_run) for job in found.jobs if job not in owned}
    assert others == {
        foreign: (None, None),
        elsewhere: ("00000000-0000-4000-8000-000000000000", None),
        odd: (None, None),  # no flow run has such an id
    }
    assert [job.created_at for job in found.jobs] == sorted((job.created_at for job in found.jobs), reverse=True)  # type: ignore[type-var]

    ledger = sandbox.control.usage()["usage_consumed_seconds"]
    assert found.totals.qpu_seconds == pytest.approx(ledger)
    assert found.totals.without_owner == 2
    own = sum(job.qpu_seconds or 0 for job in found.jobs if job.id in (foreign, odd))
    assert found.totals.qpu_seconds_without_owner == pytest.approx(own)
    assert found.totals.not_final == 0


def test_jobs_are_summed_up_by_what_owns_them(client: Any, sandbox: Sandbox) -> None:
    async def deployed(prefect: Any) -> Any:
        deployment = await prefect.create_deployment(await prefect.create_flow(two_jobs), "listing")
        return await prefect.create_flow_run_from_deployment(deployment)

    owner = asked(deployed)
    mine = [by_hand(client, sandbox, f"qr-flow:{owner.id}", "team-a", tag) for tag in ("first", "second")]
    foreign = by_hand(client, sandbox, "team-a")

    def sums(by: Any) -> dict[str | None, int]:
        found = list_jobs([BLOCK], by=by)
        assert {job.id for job in found.jobs} == {*mine, foreign}
        assert sum(group.qpu_seconds for group in found.groups) >= found.totals.qpu_seconds
        return {group.value: group.jobs for group in found.groups}

    assert sums("deployment") == {"two-jobs/listing": 2, None: 1}
    assert sums("owner") == {f"{owner.name} ({owner.id})": 2, None: 1}
    assert sums("flow-state") == {"Scheduled": 2, None: 1}
    assert sums("tag") == {"team-a": 3, "first": 1, "second": 1}
    assert list_jobs([BLOCK]).groups == []


def test_states_limits_and_times(client: Any, sandbox: Sandbox) -> None:
    first, failed, last = (by_hand(client, sandbox, ends=ends) for ends in ("Completed", "Failed", "Completed"))
    sandbox.control.hold()
    try:
        spec = make_spec([STAY], backend=BACKEND)
        queued = client.run(client.submit(Intent(spec=spec, key_tag=lambda _: "waits"))).id

        def ids(**wanted: Any) -> list[str]:
            return [job.id for job in list_jobs([BLOCK], **wanted).jobs]

        assert ids() == [queued, last, failed, first]
        assert ids(states=["failed"]) == [failed]
        assert ids(states=["completed"], limit=1) == [last]
        assert ids(states=["queued", "running"]) == [queued]
        assert ids(states=["queued", "completed"]) == [queued, last, first]
        assert list_jobs([BLOCK], limit=3).more
        assert not list_jobs([BLOCK], limit=4).more
        assert ids(since="1h") == [queued, last, failed, first]
        assert ids(since=(datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
        assert list_jobs([BLOCK]).totals.not_final == 1
    finally:
        sandbox.control.release()


def test_two_blocks_of_one_instance_list_a_job_once_and_a_broken_one_stops_none(client: Any, sandbox: Sandbox) -> None:
    job = by_hand(client, sandbox)
    qr.QuantumRuntimeCredentials(**sandbox.connection("legacy")).save("listing-old", overwrite=True)
    qr.QuantumRuntimeCredentials(**{**sandbox.connection(), "api_key": "no-key-0123456789"}).save(
        "listing-broken", overwrite=True
    )
    found = list_jobs([BLOCK, "listing-old", "listing-broken", "listing-gone"])
    assert [one.id for one in found.jobs] == [job]
    assert [problem.split(":")[0] for problem in found.problems] == ["listing-broken", "listing-gone"]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"since": "soon"}, "since"),
        ({"states": ["done"]}, "state"),
        ({"by": "colour"}, "by"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    client: Any, sandbox: Sandbox, wanted: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        list_jobs([BLOCK], **wanted)
    assert caught.value.field == field
    assert sandbox.control.journal() == []


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The time zone of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_the_same_moments_in_every_time_zone(zone: str) -> None:
    now = datetime(2026, 5, 8, 12, tzinfo=UTC)
    assert parse_since("90m", now=now) == now - timedelta(minutes=90)
    assert parse_since("7d", now=now) == now - timedelta(days=7)
    assert parse_since("2026-05-01T08:00:00+02:00") == datetime(2026, 5, 1, 6, tzinfo=UTC)
    assert parse_since("2026-05-01") == datetime(2026, 5, 1, tzinfo=UTC)
    assert parse_since("2026-05-01T08:00") == datetime(2026, 5, 1, 8, tzinfo=UTC)


def test_the_table_has_the_moments_of_the_options(zone: str) -> None:
    late = ListedJob(
        **dict.fromkeys(ListedJob.model_fields, None)
        | {"id": "d0", "block": "b", "state": "queued", "qpu_seconds_final": True, "tags": ()}
        | {"created_at": datetime(2026, 5, 1, 23, 30, tzinfo=UTC)}
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(_table([late], console))
    assert "05-01 23:30" in console.file.getvalue()


def test_the_command_line(client: Any, sandbox: Sandbox, prefect_server: PrefectServer) -> None:
    by_hand(client, sandbox)
    told = command(prefect_server.env, "jobs", "--block", BLOCK, "--state", "completed", "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert [job["flow_run"] for job in report["jobs"]] == [None]
    assert report["totals"]["without_owner"] == 1


def test_what_is_printed(
    client: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert jobs_command(block=[BLOCK]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= columns
        return shown

    assert printed(80).startswith("0 jobs, 0 QPU seconds.")
    flow_run, _ = ran(two_jobs)
    capsys.readouterr()
    assert "; every one belongs to a flow run." in printed(80)
    foreign = by_hand(client, sandbox)
    shown = printed(80)
    assert foreign in shown
    assert "no flow run" in shown
    assert "3 jobs, " in shown
    assert "; 1 without a flow run, " in shown
    assert str(flow_run.id) in printed(120)
    with pytest.raises(InvalidInput):
        jobs_command(block=[BLOCK], since="soon")
    with pytest.raises(InvalidInput, match="no-such-block"):
        jobs_command(block=["no-such-block"])


@pytest.mark.parametrize("words", ["result ID", "result ID --json", "compare ID ID"])
def test_the_only_copy_of_a_private_result_outlives_the_command_that_shows_it(
    client: Any, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    job = by_hand(client, sandbox, private=True)
    shown = []
    for _ in range(2):
        assert exit_code(*words.replace("ID", job).split()) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    reads = [entry for entry in sandbox.control.journal("GET") if entry["path"] == f"/jobs/{job}/results"]
    assert len(reads) == 1
    assert qr.fetch_results(qr.load_credentials(BLOCK), job).counts() == {"1": 4096}
