"""The spans of a job: their names, facts and times, and that no secret and no full error goes out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import JobFailed
from prefect_qruntime.models import Job, JobRef, JobStatus
from prefect_qruntime.observability import telemetry
from prefect_qruntime.observability.telemetry import Observation
from prefect_qruntime.redact import register_secret

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
DONE = Job(
    id="d1", status=JobStatus.COMPLETED, raw_status="Completed", backend="ibm_fez", created_at=NOON, usage_seconds=2.0
)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An SDK for this test alone; a process can set the global one once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """When a span began and ended, in seconds after noon."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9 - NOON.timestamp(), span.end_time / 1e9 - NOON.timestamp()


def seen(status: JobStatus, after: float) -> Observation:
    return Observation(status, status.value, after, NOON + timedelta(seconds=after))


def test_a_wait_has_a_span_for_each_state_it_saw(exported: InMemorySpanExporter) -> None:
    with telemetry.trace_task("wait for completion"):
        telemetry.trace_job(DONE)
        states = [(JobStatus.QUEUED, 3.0), (JobStatus.RUNNING, 60.0), (JobStatus.COMPLETED, 75.5)]
        telemetry.trace_states(DONE, [seen(*state) for state in states])
    queued, running, whole = exported.get_finished_spans()
    assert (queued.name, running.name, whole.name) == (
        "qruntime queued",
        "qruntime running",
        "qruntime wait for completion",
    )
    # It was queued from its creation on, before the wait saw it.
    assert [seconds(span) for span in (queued, running)] == [(0, 60), (60, 75.5)]
    assert whole.context is not None
    assert {span.parent and span.parent.span_id for span in (queued, running)} == {whole.context.span_id}
    assert whole.attributes == {
        "qruntime.job.id": "d1",
        "qruntime.backend": "ibm_fez",
        "qruntime.job.status": "Completed",
        "qruntime.usage_seconds": 2.0,
    }


def test_a_handle_says_whether_it_was_attached_to(exported: InMemorySpanExporter) -> None:
    with telemetry.trace_task("submit job"):
        telemetry.trace_job(JobRef(id="d1", backend="ibm_fez", program_id="sampler", attached=True))
    (span,) = exported.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["qruntime.attached"] is True
    assert span.attributes["qruntime.program"] == "sampler"


def test_an_error_is_marked_without_its_secrets_and_its_traceback(exported: InMemorySpanExporter) -> None:
    register_secret("a-key-that-nobody-may-see")
    with pytest.raises(JobFailed), telemetry.trace_task("submit job"):
        raise JobFailed("refused for a-key-that-nobody-may-see " + "x" * 5000)
    (span,) = exported.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description is not None
    assert "nobody-may-see" not in span.status.description
    assert len(span.status.description) <= 500
    assert span.attributes == {"error.type": "JobFailed"}
    assert not span.events


def chunked(spans: Any) -> JobResult:
    metadata = {"execution": {"execution_spans": {"__type__": "ExecutionSpans", "__value__": {"spans": spans}}}}
    return JobResult.from_body({"results": [], "metadata": metadata}, job_id="d1")


def test_a_result_has_a_span_for_each_chunk_in_the_services_times(exported: InMemorySpanExporter) -> None:
    moments = [{"__type__": "datetime", "__value__": f"2026-05-01T12:00:0{second}+00:00"} for second in (1, 4)]
    span = {"__type__": "ExecutionSpan", "__value__": {"start": moments[0], "stop": moments[1], "data_slices": {}}}
    with telemetry.trace_task("fetch results"):
        telemetry.trace_chunks(chunked([span, span]))
    *chunks, whole = exported.get_finished_spans()
    assert [chunk.name for chunk in chunks] == ["qruntime chunk"] * 2
    assert [seconds(chunk) for chunk in chunks] == [(1, 4)] * 2
    assert whole.name == "qruntime fetch results"


def span_of(start: str, stop: str) -> dict[str, Any]:
    return {"__type__": "ExecutionSpan", "__value__": {"start": start, "stop": stop, "data_slices": {}}}


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        "odd",
        [{"__type__": "ExecutionSpan", "__value__": {}}],
        [span_of("2026-05-01T12:00:00", "2026-05-01T12:00:01+00:00")],
    ],
)
def test_a_result_without_readable_chunks_has_none(exported: InMemorySpanExporter, spans: Any) -> None:
    with telemetry.trace_task("fetch results"):
        telemetry.trace_chunks(chunked(spans))
    assert [span.name for span in exported.get_finished_spans()] == ["qruntime fetch results"]


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
def test_no_error_of_a_span_processor_stops_a_job(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken processor")

    provider, processor = TracerProvider(), SpanProcessor()
    monkeypatch.setattr(processor, moment, fails)
    provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with telemetry.trace_task("wait for completion"):
        telemetry.trace_job(DONE)
        telemetry.trace_states(DONE, [seen(JobStatus.QUEUED, 3.0), seen(JobStatus.COMPLETED, 75.5)])
    with pytest.raises(JobFailed), telemetry.trace_task("wait for completion"):
        raise JobFailed("the job's own error")


def test_without_an_sdk_nothing_is_recorded_and_no_result_is_read() -> None:
    class Unread(JobResult):
        def metadata(self, pub: int | None = None) -> Any:
            raise AssertionError("read for nothing")

    with telemetry.trace_task("fetch results"):
        telemetry.trace_chunks(Unread(body={}, job_id="d1"))
        assert not trace.get_current_span().is_recording()
