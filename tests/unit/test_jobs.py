"""A triggered job: however often its run is waited for, or by how many at once, `resubmit` bounds what is bought."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime import QuantumRuntimeCredentials, QuantumRuntimeJob, jobs as module
from prefect_qruntime.errors import BudgetExhausted, JobFailed, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.jobs import QuantumRuntimeJobRun
from prefect_qruntime.models import JobRef

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
CREDENTIALS = QuantumRuntimeCredentials(api_key="unit-test-key", crn=CRN)


class Service:
    """Ends each job as a script says, and accepts what `submit` sends it."""

    def __init__(self, ends: list[str], answers: list[str]) -> None:
        self.ends: dict[str, str] = {}
        self.accepted = 1
        self._script, self._answers = list(ends), list(answers)

    async def wait(self, credentials: Any, job: JobRef, **options: Any) -> None:
        await asyncio.sleep(0)
        end = self.ends.setdefault(job.id, self._script.pop(0) if self._script else "failed")
        if end == "outage":
            del self.ends[job.id]  # the wait has failed, the job is as it was
            raise ServiceUnavailable("no answer")
        if end != "completed":
            raise JobFailed("it failed", retryable=end == "failed")

    async def submit(self, *, replaces: JobRef | None = None) -> JobRef:
        await asyncio.sleep(0)
        answer = self._answers.pop(0) if self._answers else "accepted"
        if answer == "refused":
            raise BudgetExhausted("no room")
        self.accepted += 1
        if answer == "lost":
            raise asyncio.CancelledError
        return JobRef(id=f"d{self.accepted}")


ENDS = st.lists(st.sampled_from(["failed", "failed", "broken", "completed", "outage"]), max_size=8)
ANSWERS = st.lists(st.sampled_from(["accepted", "refused", "lost"]), max_size=6)


@given(resubmit=st.integers(0, 3), ends=ENDS, answers=ANSWERS, waits=st.lists(st.integers(1, 3), max_size=6))
@settings(max_examples=300, deadline=None)
def test_a_run_submits_no_more_than_resubmit_says(
    resubmit: int, ends: list[str], answers: list[str], waits: list[int]
) -> None:
    service = Service(ends, answers)
    block = QuantumRuntimeJob(credentials=CREDENTIALS, backend="b", pubs=["x"], resubmit=resubmit)

    async def main(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, "await_for_completion", service.wait)
        patch.setattr(QuantumRuntimeJob, "submit", lambda self, **given: service.submit(**given))
        run = QuantumRuntimeJobRun(CREDENTIALS, JobRef(id="d1"), block=block)
        for together in waits:
            block.resubmit = 10  # what was approved when it was triggered holds
            await asyncio.gather(*(run.wait_for_completion() for _ in range(together)), return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(main(patch))
    assert service.accepted <= 1 + resubmit


@pytest.mark.parametrize("resubmit", range(4))
def test_all_that_resubmit_allows_is_submitted(resubmit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service([], [])
    block = QuantumRuntimeJob(credentials=CREDENTIALS, backend="b", pubs=["x"], resubmit=resubmit)
    monkeypatch.setattr(module, "await_for_completion", service.wait)
    monkeypatch.setattr(QuantumRuntimeJob, "submit", lambda self, **given: service.submit(**given))
    run = QuantumRuntimeJobRun(CREDENTIALS, JobRef(id="d1"), block=block)
    for _ in range(3):
        with contextlib.suppress(QuantumRuntimeError):
            asyncio.run(run.wait_for_completion())
    assert service.accepted == 1 + resubmit


def test_the_form_has_a_field_for_every_value() -> None:
    """Prefect's second UI shows and saves nothing for a list's items of no type and for an object beside "null"."""

    def without_a_field(schema: dict[str, Any], *, optional: bool = False) -> bool:
        either = schema.get("anyOf", [])
        if any(without_a_field(one, optional=True) for one in either):
            return True
        if schema.get("type") == "array":
            items = schema.get("items", {})
            return not items or without_a_field(items)
        return optional and schema.get("type") == "object"

    fields = QuantumRuntimeJob.model_json_schema()["properties"]
    assert [name for name, schema in fields.items() if without_a_field(schema)] == []
