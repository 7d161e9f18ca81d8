"""Jobs, sessions and usage as the service writes them, has written them, and might."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.admission.budget_core import tally
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.parsing import (
    complete_backend,
    parse_backends,
    parse_job,
    parse_session,
    parse_session_workload,
    parse_usage,
    parse_versions,
)
from prefect_qruntime.errors import QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import Backend, Job, JobStatus
from prefect_qruntime.redact import register_secret

FULL = {
    "id": "d1abc",
    "backend": "ibm_torino",
    "program": {"id": "sampler"},
    "created": "2026-05-01T10:00:00.000Z",
    "status": "Running",
    "state": {"status": "Running"},
    "cost": 10800,
    "tags": ["wf:1", 7, None],
    "session_id": "s1",
    "usage": {"qpu_charge_time_seconds": 3.0, "status": "pending"},
    "estimated_running_time_seconds": 4.2,
    "private": True,
    "brand_new": {"x": 1},
}


def test_a_whole_job() -> None:
    job = parse_job(FULL, url="u")
    assert job == Job(
        id="d1abc",
        status=JobStatus.RUNNING,
        raw_status="Running",
        backend="ibm_torino",
        program_id="sampler",
        session_id="s1",
        created_at=datetime(2026, 5, 1, 10, tzinfo=UTC),
        tags=("wf:1",),
        usage_seconds=3.0,
        usage_final=False,
        estimated_running_seconds=4.2,
        max_execution_time=10800,
        private=True,
        url="u",
    )


@pytest.mark.parametrize(
    ("top", "state", "status", "raw"),
    [
        ("Queued", "Queued", JobStatus.QUEUED, "Queued"),
        ("RUNNING", "running", JobStatus.RUNNING, "running"),
        (None, "Completed", JobStatus.COMPLETED, "Completed"),
        ("Completed", None, JobStatus.COMPLETED, "Completed"),
        ("Failed", "", JobStatus.FAILED, "Failed"),
        ("canceled", None, JobStatus.CANCELLED, "canceled"),
        (None, "in_progress", JobStatus.RUNNING, "in_progress"),
        (None, "pending", JobStatus.QUEUED, "pending"),
        ("Queued", "Running", JobStatus.RUNNING, "Running"),  # the state is preferred
        ("Completed", "Odd", JobStatus.COMPLETED, "Completed"),  # but not a word nobody knows
        ("Odd", "Odder", None, "Odder"),
        (" Completed ", None, JobStatus.COMPLETED, " Completed "),
        (None, None, None, ""),
        ("Cancelled - Ran too long", "Cancelled", JobStatus.CANCELLED, "Cancelled - Ran too long"),
    ],
)
def test_statuses(top: Any, state: Any, status: JobStatus | None, raw: str) -> None:
    job = parse_job({"id": "d1", "status": top, "state": {"status": state}})
    assert (job.status, job.raw_status) == (status, raw)


@pytest.mark.parametrize(
    ("body", "too_long"),
    [
        ({"status": "Cancelled - Ran too long", "state": {"status": "Cancelled", "reason": "Ran too long"}}, True),
        ({"status": "Cancelled - Ran too long", "state": {"status": "Cancelled", "reasonCode": None}}, True),
        ({"state": {"status": "Cancelled", "reason": "Ran too long"}}, True),
        ({"state": {"status": "Cancelled", "reason_code": 1305}}, True),
        ({"state": {"status": "Cancelled", "reason_code": "1305"}}, True),
        ({"state": {"status": "Cancelled", "reason_code": None, "reasonCode": 1305}}, True),
        ({"state": {"status": "Cancelled", "reason": "by the user"}}, False),
        ({"state": {"status": "Completed", "reason": "Ran too long"}}, False),
        ({"state": {"status": "Failed", "reason": "Ran too long"}}, True),
    ],
)
def test_ran_too_long(body: dict[str, Any], too_long: bool) -> None:
    job = parse_job({"id": "d1", **body})
    assert job.ran_too_long is too_long
    assert (type(job_error(job)).__name__ == "JobRanTooLong") is too_long


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"reason_code": 1006}, 1006),
        ({"reason_code": "1006"}, 1006),
        ({"reasonCode": 1006}, 1006),
        ({"reason_code": "", "reasonCode": "E-5"}, "E-5"),
        ({"reason_code": True}, None),
        ({"reason_code": 1.5}, None),
        ({"reason_code": []}, None),
        ({"reason_code": "²"}, "²"),
        ({"reason_code": "9" * 5000}, "9" * 100),
        ({}, None),
    ],
)
def test_reason_codes(state: dict[str, Any], code: Any) -> None:
    assert parse_job({"id": "d1", "state": {"status": "Failed", **state}}).reason_code == code


@pytest.mark.parametrize(
    ("body", "seconds", "final"),
    [
        ({"usage": {"qpu_charge_time_seconds": 3, "status": "complete"}}, 3.0, True),
        ({"usage": {"qpu_charge_time_seconds": 0, "status": "pending"}}, 0.0, False),
        ({"usage": {"quantum_seconds": 2}}, 2.0, True),
        ({"usage": {"seconds": 4}, "bss": {"seconds": 5}}, 4.0, True),
        ({"bss": {"seconds": 5}}, 5.0, True),
        ({"usage": {"qpu_charge_time_seconds": None}}, None, False),
        ({}, None, False),
        ({"usage": "none"}, None, False),
    ],
)
def test_usage_of_a_finished_job(body: dict[str, Any], seconds: float | None, final: bool) -> None:
    job = parse_job({"id": "d1", "status": "Completed", **body})
    assert (job.usage_seconds, job.usage_final) == (seconds, final)


def test_usage_of_a_running_job_is_not_final() -> None:
    assert parse_job({"id": "d1", "status": "Running", "usage": {"seconds": 1}}).usage_final is False


@pytest.mark.parametrize("body", [{}, {"id": None}, {"id": ""}, {"id": []}])
def test_a_job_without_an_id(body: dict[str, Any]) -> None:
    with pytest.raises(QuantumRuntimeError, match="no id"):
        parse_job(body)


ODD_IDS = ["../../etc", "a/b", "d1\r\nX: y", "x" * 65, "d\u202e1", "<img src=x>", "d1](http://evil) [x", "d 1", "d1\n"]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_an_id_that_cannot_be_one_is_an_unreadable_answer(odd: str) -> None:
    for read in (parse_job, parse_session):
        with pytest.raises(ServiceUnavailable, match="cannot be one"):
            read({"id": odd, "status": "Completed"})
    assert parse_job({"id": "d1", "session_id": odd}).session_id is None


def test_no_model_holds_a_secret_or_a_terminal_sequence() -> None:
    register_secret("a-token-of-ours")
    odd = "\x1b[31m\x1b]0;t\x07\u202e\0a-token-of-ours"
    state = {"status": odd, "reason": f"line 1\n{odd}", "reason_code": odd, "reason_solution": odd}
    body = dict.fromkeys(("backend", "user_id", "calibration_id", "status", "mode", "state_reason", "plan_id"), odd)
    job = parse_job({**body, "id": "d1", "state": state, "program": {"id": odd}, "tags": ["a-token-of-ours", "mine"]})
    assert job.tags == ("********", "mine")
    assert (job.reason or "").startswith("line 1\n")
    backend = {"name": odd, "status": {"name": odd, "reason": odd}, "processor_type": {"family": odd, "revision": 1.1}}
    found = [job, parse_session({**body, "id": "s1", "state": odd, "backend_name": odd}), parse_usage(body)]
    found += parse_backends({"devices": [odd, backend]})
    assert not re.search(r"\\x1b|\\x0|\\u202e|a-token", repr([one.model_dump() for one in found]))
    error = job_error(parse_job({"id": "d1", "state": {**state, "status": "Failed"}}))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]|a-token", str(error))


def test_a_secret_where_a_text_is_cut_is_masked_as_a_whole() -> None:
    register_secret("a-token-of-ours")
    state = {"reason": "x" * 9_990 + "a-token-of-ours", "reason_code": "x" * 90 + "a-token-of-ours"}
    job = parse_job({"id": "d1", "status": "Failed", "state": state})
    assert "a-token" not in f"{job.reason} {job.reason_code}"


@pytest.mark.parametrize("odd", ["d1\x1b[0m", "\x1bd1", "d\x9b1m1", True, 1.5])
def test_what_is_no_id_is_not_made_one(odd: Any) -> None:
    with pytest.raises(ServiceUnavailable):
        parse_job({"id": odd, "status": "Completed"})


def test_long_texts_are_cut() -> None:
    job = parse_job({"id": "d1", "status": "x" * 10**6, "state": {"reason": "y" * 10**6}})
    assert (len(job.raw_status), len(job.reason or "")) == (10_000, 10_000)
    assert parse_job({"id": "d1", "status": "Failed", "reason": 10**5000}).reason is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["Queued", "Running", "Completed", "Failed", "Cancelled", "Paused-By-Magic"]) | VALUES
STATES = st.fixed_dictionaries(
    {}, optional={"status": WORDS, "reason": VALUES, "reason_code": VALUES, "reasonCode": VALUES}
)
JOBS = st.fixed_dictionaries(
    {"id": st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)},
    optional={
        **dict.fromkeys(["backend", "program", "created", "cost", "tags", "session_id", "usage", "bss"], VALUES),
        **dict.fromkeys(["estimated_running_time_seconds", "private", "reason"], VALUES),
        "status": WORDS,
        "state": STATES | VALUES,
    },
)


@given(body=JOBS)
def test_no_job_breaks_the_reader(body: dict[str, Any]) -> None:
    job = parse_job(body)
    assert job.is_terminal == (job.status is not None and job.status.is_terminal)
    assert job.created_at is None or job.created_at.tzinfo is not None
    Job.model_validate_json(job.model_dump_json())
    assert (job_error(job) is None) == (job.status not in (JobStatus.FAILED, JobStatus.CANCELLED))


@given(
    body=st.dictionaries(st.sampled_from(["id", "state", "mode", "max_ttl", "started_at", "accepting_jobs"]), VALUES)
)
def test_no_session_breaks_the_reader(body: dict[str, Any]) -> None:
    session = parse_session({**body, "id": "s1"})
    assert session.ref().id == "s1"


@given(body=st.dictionaries(st.sampled_from(["usage_consumed_seconds", "usage_period", "usage_limit_seconds"]), VALUES))
def test_no_usage_breaks_the_reader(body: dict[str, Any]) -> None:
    """What cannot be read is never taken for no use or no limit."""

    def is_amount(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15

    consumed, limit = body.get("usage_consumed_seconds"), body.get("usage_limit_seconds")
    readable = all(one is None or is_amount(one) for one in (consumed, limit)) and (
        limit is None or is_amount(consumed)
    )
    if not readable:
        with pytest.raises(ServiceUnavailable):
            parse_usage(body)
        return
    usage = parse_usage(body)
    assert (usage.consumed_seconds, usage.limit_seconds) == (consumed or 0.0, limit)


NO_AMOUNTS = [None, "12.5", -5, True, [], {}, float("nan"), float("inf"), 1e300]


@pytest.mark.parametrize("status", ["Completed", "Failed", "Cancelled"])
@pytest.mark.parametrize("word", ["complete", None])
@pytest.mark.parametrize("name", ["qpu_charge_time_seconds", "quantum_seconds", "seconds"])
@pytest.mark.parametrize("wrong", NO_AMOUNTS, ids=repr)
def test_usage_that_cannot_be_read_is_not_final(wrong: Any, name: str, word: str | None, status: str) -> None:
    usage = {name: wrong} | ({"status": word} if word else {})
    job = parse_job({"id": "d1", "state": {"status": status}, "usage": usage, "cost": 300})
    assert (job.usage_seconds, job.usage_final) == (None, False)
    total = tally([job], [])
    assert (total.used, total.reserved) == (0.0, 300.0), "it counts as the most that the job may have used"
    assert parse_session_workload({"id": "s1", "usage": usage}).usage_final is False


@pytest.mark.parametrize(("status", "final"), [("Completed", False), ("Failed", True), ("Cancelled", True)])
def test_a_job_that_did_not_run_may_be_charged_nothing_without_a_number(status: str, final: bool) -> None:
    job = parse_job({"id": "d1", "state": {"status": status}, "usage": {"status": "complete"}})
    assert (job.usage_seconds, job.usage_final) == (None, final)
    in_units = parse_job({"id": "d1", "status": status, "usage": {"status": "complete", "qpu_charge_ru": 3}})
    assert (in_units.usage_units, in_units.usage_final) == (3.0, True)


@given(devices=st.lists(VALUES | st.dictionaries(st.sampled_from(["name", "status", "qubits", "clops"]), VALUES)))
def test_no_backend_breaks_the_reader(devices: list[Any]) -> None:
    for backend in parse_backends({"devices": devices}):
        complete_backend(backend, {}, {})


def test_sessions() -> None:
    session = parse_session(
        json.loads(
            '{"id":"s","backend_name":"","mode":"batch","state":"active","max_session_ttl":60,'
            '"started_at":"2026-05-01T10:00:00+02:00","elapsed_time":12.3,"accepting_jobs":"yes"}'
        )
    )
    assert (session.backend, session.mode, session.max_ttl, session.elapsed_time) == (None, "batch", 60, 12.3)
    assert session.started_at is not None
    assert session.started_at.utcoffset() == timedelta(hours=2)
    assert session.accepting_jobs is None
    assert session.ref().mode == "batch"
    with pytest.raises(QuantumRuntimeError):
        parse_session({"state": "open"})


@given(
    item=st.dictionaries(st.sampled_from(["mode", "created", "ended", "usage", "user_id", "backend"]), VALUES),
    usage=st.dictionaries(st.sampled_from(["qpu_charge_time_seconds", "status", "qpu_charge_ru"]), VALUES),
)
def test_no_workload_breaks_the_reader(item: dict[str, Any], usage: dict[str, Any]) -> None:
    assert parse_session_workload({**item, "id": "s1"}).id == "s1"
    assert parse_session_workload({"usage": usage, "id": "s1"}).id == "s1"


def test_what_a_session_is_charged_comes_from_its_workload() -> None:
    item = {
        "id": "s",
        "mode": "session",
        "created": "2026-05-01T10:00:00Z",
        "ended": "2026-05-01T11:00:00Z",
        "user_id": "IBMid-1",
        "usage": {"qpu_charge_time_seconds": 12.5, "status": "complete", "resource_units": 3},
    }
    session = parse_session_workload(item)
    assert (session.mode, session.usage_seconds, session.usage_units, session.usage_final) == (
        "dedicated",
        12.5,
        3.0,
        True,
    )
    assert (session.user_id, session.closed_at) == ("IBMid-1", datetime(2026, 5, 1, 11, tzinfo=UTC))
    batch = parse_session_workload({"id": "b", "mode": "batch", "usage": {"qpu_charge_time_seconds": 1}})
    assert (batch.mode, batch.usage_units, batch.usage_final) == ("batch", None, False)
    with pytest.raises(ServiceUnavailable):
        parse_session_workload({"mode": "session"})


def test_resource_units_stand_beside_seconds() -> None:
    job = parse_job({**FULL, "user_id": "IBMid-1", "usage": {"qpu_charge_time_seconds": 3.0, "qpu_charge_ru": 12}})
    assert (job.usage_seconds, job.usage_units, job.user_id) == (3.0, 12.0, "IBMid-1")
    usage = parse_usage({"usage_consumed_seconds": 5, "usage_consumed_ru": 20, "instance_limit_ru": 400})
    assert (usage.consumed_seconds, usage.consumed_units, usage.limit_units, usage.allocation_units) == (
        5,
        20,
        400,
        None,
    )
    assert usage.remaining_seconds is None, "a limit in resource units is none in seconds"


def test_versions_and_names() -> None:
    assert parse_versions({"versions": ["a", {"version": "b"}, {"x": 1}, 7]}) == ("a", "b")
    assert parse_versions({"versions": None}) == ()
    assert parse_versions({"versions": ["\x1b[31mBearer abcdef123456", ""]}) == ("Bearer ********",)
    assert [backend.name for backend in parse_backends({"backends": ["a", {"name": "b"}]})] == ["a", "b"]
    with pytest.raises(QuantumRuntimeError):
        parse_backends({"devices": {}})


def test_a_time_without_zone_is_utc() -> None:
    assert parse_job({"id": "d", "created": "2026-05-01T10:00:00"}).created_at == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert parse_job({"id": "d", "created": "yesterday"}).created_at is None


def test_only_the_queue_length_of_a_status_is_certain() -> None:
    backend = complete_backend(Backend(name="b", status="unknown"), {"length_queue": 4}, {})
    assert (backend.status, backend.queue_length, backend.num_qubits) == ("online", 4, None)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-06-30T23:59:60Z", datetime(2026, 6, 30, 23, 59, 59, tzinfo=UTC)),
        ("2026-12-31T23:59:60.250+00:00", datetime(2026, 12, 31, 23, 59, 59, 250_000, tzinfo=UTC)),
        ("2026-05-01T00:30:00+02:00", datetime(2026, 4, 30, 22, 30, tzinfo=UTC)),
        ("2026-05-01T00:30:00", datetime(2026, 5, 1, 0, 30, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00+05:00", None),
        ("9999-12-31T23:59:59-05:00", None),
        ("2026-06-30T23:61:60Z", None),
        ("", None),
        (7, None),
    ],
)
def test_a_moment_has_a_time_in_utc_or_is_none(written: object, read: datetime | None) -> None:
    found = parse_job({**FULL, "created": written}).created_at
    assert found == read
