"""What is known of a result's origin, from one look a calibration that nothing waits for."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import pickle
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.provenance import ProvenanceNotes, package_versions, read_versions
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.errors import ServiceUnavailable
from prefect_qruntime.models import Job, JobRef, JobStatus, Provenance
from prefect_qruntime.redact import register_secret

CREATED = datetime(2026, 5, 1, 10, tzinfo=UTC)
PROPERTIES = {
    "backend_name": "ibm_a",
    "backend_version": "1.2.3",
    "last_update_date": "2026-05-01T09:00:00Z",
    "qubits": [[{"name": "T1", "unit": "us", "value": 100.5, "date": "2026-05-01T09:00:00Z"}]] * 5,
}
REF = JobRef(id="j", backend="ibm_a", program_id="sampler", payload_digest="d" * 64, submission_key="qr-key:1")


def job(**fields: Any) -> Job:
    given = {"id": "j", "status": JobStatus.COMPLETED, "backend": "ibm_a", "program_id": "executor"}
    return Job(**{**given, "calibration_id": "c1", "created_at": CREATED, "usage_seconds": 3.0, **fields})


class Backend:
    """A backend whose properties are asked for."""

    def __init__(self, answer: Callable[[], dict[str, Any]] | None = lambda: PROPERTIES) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.now = 0.0
        self._answer = answer
        self.notes = ProvenanceNotes(self.read, clock=lambda: self.now)

    async def read(self, backend: str, calibration_id: str | None) -> dict[str, Any]:
        self.asked.append((backend, calibration_id))
        if self._answer is None:
            await asyncio.Event().wait()
        assert self._answer is not None
        return self._answer()

    def seen(self, one: Job) -> None:
        self.notes.saw(one)
        self.notes.look(one)


async def test_all_that_was_seen() -> None:
    backend = Backend()
    backend.seen(job())
    backend.notes.timed("j", 12.5, 3.5)
    found = await backend.notes.of(REF, patience=60)
    assert found == Provenance(
        job_id="j",
        backend="ibm_a",
        program_id="sampler",
        wire_program="executor",
        calibration_id="c1",
        calibrated_at=datetime(2026, 5, 1, 9, tzinfo=UTC),
        backend_version="1.2.3",
        properties_data=found.properties_data,
        payload_digest="d" * 64,
        submission_key="qr-key:1",
        created_at=CREATED,
        queue_seconds=12.5,
        run_seconds=3.5,
        usage_seconds=3.0,
        packages=package_versions(),
    )
    assert found.properties == PROPERTIES
    assert not found.dry_run
    assert {"python", "prefect-qruntime", "prefect"} <= found.packages.keys()
    assert "properties_data" not in repr(found) + found._repr_html_()


async def test_no_word_of_the_service_keeps_a_secret_or_a_terminal_sequence() -> None:
    register_secret("secret-of-the-properties")
    backend = Backend(lambda: {"backend_version": "\x1b[31msecret-of-the-properties 1.2"})
    backend.seen(job())
    found = await backend.notes.of(REF, patience=60)
    assert found.backend_version == "******** 1.2"


async def test_it_survives_storing() -> None:
    backend = Backend()
    backend.seen(job(backend="mock_a"))
    result = JobResult(body={"x": 1}, job_id="j", provenance=await backend.notes.of(REF, patience=60))
    for copy in (
        pickle.loads(pickle.dumps(result)),
        JobResult.model_validate_json(result.model_dump_json()),
        JobResult.model_validate(json.loads(result.model_dump_json())),
        result.in_memory(),
    ):
        assert copy.provenance == result.provenance
        assert copy.provenance.properties == PROPERTIES
        assert copy.provenance.dry_run


async def test_a_calibration_is_asked_for_once() -> None:
    backend = Backend()
    for number in range(50):
        backend.seen(job(id=f"j{number}"))
        await backend.notes.of(JobRef(id=f"j{number}"), patience=60)
    backend.seen(job(calibration_id="c2"))
    await backend.notes.of(REF, patience=60)
    backend.now = 1e6
    backend.seen(job(calibration_id="c1"))
    assert backend.asked == [("ibm_a", "c1"), ("ibm_a", "c2")]


async def test_without_an_id_the_present_ones_count_for_a_while_and_doubt_is_said() -> None:
    backend = Backend()
    backend.seen(job(calibration_id=None))
    assert not (await backend.notes.of(REF, patience=60)).missing[1:]
    old = CREATED - timedelta(hours=2)
    backend.seen(job(calibration_id=None, created_at=old))
    found = await backend.notes.of(REF, patience=60)
    assert found.backend_version == "1.2.3"
    assert any("calibrated after the job was submitted" in word for word in found.missing)
    assert len(backend.asked) == 1
    backend.now = 601.0
    backend.seen(job(calibration_id=None))
    await backend.notes.of(REF, patience=60)
    assert len(backend.asked) == 2


def _broken() -> dict[str, Any]:
    raise ServiceUnavailable("no answer from h")


def _odd() -> dict[str, Any]:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("answer", [_broken, _odd])
async def test_a_failed_look_is_said_and_not_repeated_at_once(answer: Callable[[], dict[str, Any]]) -> None:
    backend = Backend(answer)
    for _ in range(5):
        backend.seen(job())
        found = await backend.notes.of(REF, patience=60)
        assert found.backend_version is None
        assert found.properties is None
        assert found.calibration_id == "c1", "what the job says needs no look"
        assert "could not be read" in found.missing[0]
    assert len(backend.asked) == 1
    backend.now = 301.0
    backend.seen(job())
    await backend.notes.of(REF, patience=60)
    assert len(backend.asked) == 2


async def test_a_look_that_hangs_holds_nothing_up() -> None:
    backend = Backend(None)
    backend.seen(job())
    found = await backend.notes.of(REF)
    assert "did not arrive in time" in found.missing[0]
    assert found.calibration_id == "c1"


async def test_a_job_that_was_not_seen() -> None:
    found = await Backend().notes.of(REF)
    assert found.payload_digest == "d" * 64
    assert "has not seen" in found.missing[0]
    assert found.calibration_id is None


async def test_a_reference_to_a_large_result_stays_small() -> None:
    backend = Backend(lambda: {**PROPERTIES, "noise": random.Random(1).randbytes(50_000).hex()})
    backend.seen(job())
    whole, small = [await backend.notes.of(REF, small=small, patience=60) for small in (False, True)]
    assert small.model_copy(update={"properties_data": whole.properties_data, "missing": whole.missing}) == whole
    assert small.properties is None
    assert "carries no properties" in small.missing[0]
    assert len(pickle.dumps(small)) < 2_500 < 50_000 < len(pickle.dumps(whole))


async def test_properties_that_are_too_large_are_left_out() -> None:
    backend = Backend(lambda: {**PROPERTIES, "noise": random.Random(1).randbytes(200_000).hex()})
    backend.seen(job())
    found = await backend.notes.of(REF, patience=60)
    assert found.properties_data is None
    assert "too large" in found.missing[0]
    assert found.backend_version == "1.2.3"


def test_jobs_that_come_together_read_the_versions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def version(name: str) -> str:
        asked.append(name)
        time.sleep(0.02)  # the others arrive meanwhile
        return "1"

    async def together() -> list[dict[str, str]]:
        return await asyncio.gather(*(read_versions() for _ in range(5)))

    monkeypatch.setattr(importlib.metadata, "version", version)
    package_versions.cache_clear()
    try:
        found = network_loop().run(together())
    finally:
        package_versions.cache_clear()
    assert found[0]["prefect"] == "1"
    assert asked.count("prefect") == 1
