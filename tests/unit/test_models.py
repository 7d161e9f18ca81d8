"""Models are tolerant, frozen and round-trip."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefect_qruntime import models
from prefect_qruntime.models import (
    Backend,
    InstanceReport,
    Job,
    JobRef,
    JobStatus,
    Provenance,
    Session,
    SessionRef,
    Usage,
    twirled_shots,
)

EXAMPLES = [
    Backend(name="b", num_qubits=5, queue_length=2),
    SessionRef(id="s", mode="batch"),
    Session(id="s", state="open"),
    JobRef(id="j", session=SessionRef(id="s"), tags=("a", "b"), widths=(2, None)),
    Job(id="j", status=None, raw_status="Odd", reason_code="x"),
    Job(id="j", status=JobStatus.RUNNING, reason_code=7),
    Provenance(job_id="j", calibration_id="c", packages={"qiskit": "2.6.2"}),
    Usage(consumed_seconds=1.5),
    InstanceReport(ok=True, dialect="cloud", host="h", crn="c", region="r"),
]


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda m: type(m).__name__)
def test_models_round_trip_are_frozen_and_ignore_what_is_new(model: Any) -> None:
    assert type(model).model_validate_json(model.model_dump_json()) == model
    assert type(model).model_validate({**model.model_dump(), "brand_new": 1}) == model
    with pytest.raises(ValidationError):
        model.id = "other"


def test_every_public_model_has_an_example() -> None:
    others = ("FLOW_TAG", "KEY_TAG", "MOST_TTL", "JobStatus", "is_mock", "mock_backend", "twirled_shots")
    classes = {name for name in models.__all__ if name not in others}
    assert {type(m).__name__ for m in EXAMPLES} == classes


def test_terminal_states() -> None:
    assert {s.value for s in JobStatus if s.is_terminal} == {"completed", "cancelled", "failed"}
    assert Job(id="j", status=None).is_terminal is False


@pytest.mark.parametrize(
    ("usage", "left"),
    [
        (Usage(consumed_seconds=10), None),
        (Usage(consumed_seconds=10, limit_seconds=25), 15.0),
        (Usage(consumed_seconds=30, limit_seconds=25), 0.0),
        (Usage(consumed_seconds=10, allocation_seconds=12), 2.0),
        (Usage(consumed_seconds=10, limit_seconds=50, limit_reached=True), 0.0),
        (Usage(consumed_seconds=10, limit_reached=True), 0.0),
        (Usage(consumed_seconds=0, limit_seconds=0, allocation_seconds=9), 0.0),
    ],
)
def test_remaining_seconds(usage: Usage, left: float | None) -> None:
    assert usage.remaining_seconds == left


@pytest.mark.parametrize(
    ("state", "closed"),
    [("closed", True), ("Closed", True), ("canceled", True), ("pending_closed", False), (None, False)],
)
def test_closed_sessions(state: str | None, closed: bool) -> None:
    assert SessionRef(id="s", state=state).is_closed is closed


@pytest.mark.parametrize(
    ("status", "online"), [("online", True), ("active", True), ("Online", True), ("paused", False), ("unknown", False)]
)
def test_online_backends(status: str, online: bool) -> None:
    assert Backend(name="b", status=status).is_online is online


def test_a_job_gives_its_handle() -> None:
    job = Job(
        id="j", status=JobStatus.QUEUED, backend="b", session_id="s", tags=("x", "qr-key:1"), url="u", private=True
    )
    ref = job.ref()
    assert (ref.id, ref.backend, ref.tags, ref.url, ref.private) == ("j", "b", ("x", "qr-key:1"), "u", True)
    assert ref.session is not None
    assert ref.session.id == "s"
    assert ref.submission_key == "qr-key:1"
    assert Job(id="j", status=None).ref().session is None


BOTH = {"num_randomizations": 3, "shots_per_randomization": 5}


@pytest.mark.parametrize(
    ("asked", "default", "level", "options", "expected"),
    [
        (10, 20, 0, {}, (10, 10)),
        (None, 20, 0, {}, (20, 20)),
        (None, 20, 0, {"twirling": BOTH}, (20, 20)),
        (10, 20, 0, {"twirling": {"enable_gates": True}}, (10, 64)),
        (10_000, 20, 0, {"twirling": {"enable_measure": True}}, (10_000, 32 * 313)),
        (10, 20, 1, {}, (10, 64)),
        (10, 20, 1, {"twirling": {"enable_measure": False}}, (10, 10)),
        (10, 20, 1, {"twirling": {"enable_measure": None, "num_randomizations": None}}, (10, 64)),
        (10, 20, 2, {"twirling": {"enable_measure": False}}, (10, 64)),
        (10_000, 20, 2, {"resilience": {"pec_mitigation": True}}, (10_000, 64 * 157)),
        (None, 20, 1, {"twirling": BOTH}, (15, 15)),
        (10, 20, 1, {"twirling": BOTH}, (10, 12)),
        (10, 20, 1, {"twirling": {"num_randomizations": 4, "shots_per_randomization": "auto"}}, (10, 12)),
        (10, 20, 1, {"twirling": {"num_randomizations": "auto", "shots_per_randomization": 4}}, (10, 12)),
        (None, 20, 1, {"twirling": {"num_randomizations": "auto", "shots_per_randomization": 7}}, (20, 21)),
        (10, 20, 1, {"twirling": {"num_randomizations": 0, "shots_per_randomization": True}}, (10, 64)),
        (10, 20, 1, {"twirling": "odd", "resilience": []}, (10, 64)),
    ],
)
def test_twirling_runs_whole_randomizations(
    asked: int | None, default: int, level: int, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    """As IBM's reference of the twirling options says; by each number alone, both and neither."""
    assert twirled_shots(options, asked, default, level=level) == expected
