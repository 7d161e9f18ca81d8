"""OpenTelemetry spans of jobs: the waits of this process, the states that it observes, and what the QPU ran.

```
flow run                 Prefect's own span, as is the task run's
├─ qruntime submit job            says whether the job was attached to
├─ qruntime wait for completion
│  ├─ qruntime queued             one span for each observed state
│  └─ qruntime running
└─ qruntime fetch results
   └─ qruntime chunk              one for each execution span of the result, in the service's own times
```

Prefect brings OpenTelemetry's API. Without an SDK in the process its spans do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from prefect_qruntime.client.encodings.arrays import ExecutionSpan
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.observability.events import Observation
from prefect_qruntime.prefect_api import current_flow_run_id
from prefect_qruntime.redact import redact

__all__ = ["trace_chunks", "trace_job", "trace_states", "trace_task"]

_OURS = "prefect_qruntime"  # the tracer's name
_MOST_CHUNKS = 100  # spans of one result
_LONGEST = 500  # characters of an error


@contextlib.contextmanager
def trace_task(name: str) -> Iterator[None]:
    """Record a span around the body of a task, with its outcome.

    Args:
        name: The task's name.
    """
    # The tracer is asked for each time: an SDK may be set up after this module is loaded.
    with trace.get_tracer(_OURS).start_as_current_span(
        f"qruntime {name}",
        kind=SpanKind.CLIENT,
        # The exception's own text would be exported unredacted.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        if span.is_recording() and (owner := current_flow_run_id()) is not None:
            span.set_attribute("prefect.flow-run.id", owner)
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, redact(str(error))[:_LONGEST]))
            raise


def trace_job(job: Job | JobRef) -> None:
    """Add a job's facts to the span of the running task."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    facts: dict[str, Any] = {
        "job.id": job.id,
        "backend": job.backend,
        "program": job.program_id,
    }
    if isinstance(job, JobRef):
        facts |= {"attached": job.attached, "session.id": job.session.id if job.session is not None else None}
    else:
        facts |= {"job.status": job.raw_status, "session.id": job.session_id, "usage_seconds": job.usage_seconds}
    span.set_attributes(_facts(facts))


def trace_states(job: Job, seen: Sequence[Observation]) -> None:
    """Record a span for each observed state of a job that ended, until the next state was observed.

    Args:
        job: The job in its last state.
        seen: Its states in order.
    """
    for state, following in pairwise(seen):
        begin = state.at
        if state is seen[0] and job.created_at is not None:
            begin = min(begin, job.created_at)  # the state began before the wait
        _past(f"qruntime {state.word}", begin, following.at, {"job.id": job.id, "backend": job.backend})


def trace_chunks(result: JobResult) -> None:
    """Record a span for each execution span of a result. It is read only if the task's span is recorded."""
    if not trace.get_current_span().is_recording():
        return
    try:
        metadata = result.metadata()
    except QuantumRuntimeError:  # reading the result reports it
        return
    execution = metadata.get("execution") if isinstance(metadata, dict) else None
    spans = execution.get("execution_spans") if isinstance(execution, dict) else None
    for number, one in enumerate(spans[:_MOST_CHUNKS] if isinstance(spans, list) else ()):
        if isinstance(one, ExecutionSpan) and isinstance(one.start, datetime) and isinstance(one.stop, datetime):
            _past("qruntime chunk", one.start, one.stop, {"job.id": result.job_id, "chunk": number})


def _past(name: str, begin: datetime, end: datetime, attributes: dict[str, Any]) -> None:
    started, ended = (int(moment.timestamp() * 1e9) for moment in (begin, max(begin, end)))
    trace.get_tracer(_OURS).start_span(name, start_time=started, attributes=_facts(attributes)).end(ended)


def _facts(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"qruntime.{name}": value for name, value in attributes.items() if value is not None}
