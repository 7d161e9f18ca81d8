"""Report by a line in the run's log, an event, an asset or a span. An error here never stops a job.

OpenTelemetry spans are recorded of the waits of this process, the states that it observes, and what the QPU ran:

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

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from cachetools import LRUCache
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.events import Event, RelatedResource, Resource, emit_event
from prefect.events.clients import get_events_client
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from prefect_qruntime.client.encodings.arrays import ExecutionSpan
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef, JobStatus
from prefect_qruntime.prefect_api import current_flow_run_id, in_run
from prefect_qruntime.redact import get_logger, is_of_closed_pipe, plain_text
from prefect_qruntime.settings import current_settings

__all__ = [
    "Observation",
    "deliver",
    "emit",
    "execution_spans",
    "log_to_run",
    "lost",
    "materialize_result",
    "queue_and_run_seconds",
    "trace_chunks",
    "trace_job",
    "trace_states",
    "trace_task",
]


_fallback = get_logger(__name__)
_emitted: LRUCache[UUID, bool] = LRUCache(4096)  # ids of events that this process emitted

_OURS = "prefect_qruntime"  # the tracer's name
_MOST_CHUNKS = 100  # spans of one result
_LONGEST = 500  # characters of an error
_DELIVERY = 20.0  # seconds for handing an event to Prefect


def _worth_telling(record: logging.LogRecord) -> bool:
    """Drop the records that only say that an ending interpreter starts no more threads."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, RuntimeError) and "after shutdown" in str(error))


# Prefect's own events of the artifacts that are written last meet this error, and each would print a traceback.
for _name in ("prefect.events.utilities", _fallback.name):
    logging.getLogger(_name).addFilter(_worth_telling)


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return _fallback


def log_to_run(message: str, *, level: int = logging.INFO) -> None:
    """Log a message to the run's log, or to our own logger outside a run, as plain text."""
    try:
        _logger().log(level, plain_text(message))
    except SystemExit as end:
        if not is_of_closed_pipe(end):
            raise


def emit(
    event: str,
    resource: MutableMapping[str, str],
    payload: dict[str, Any],
    *,
    flow_run_id: str | None = None,
    event_id: UUID | None = None,
) -> None:
    """Emit an event with the flow run first among the related resources, so that automations find it.

    Args:
        event: Its name.
        resource: What it is about.
        payload: Plain facts.
        flow_run_id: The flow run concerned, if the caller is in none.
        event_id: Its id, if it may be emitted twice: Prefect keeps one event of an id, and a process sends it once.
    """
    flow_run_id = flow_run_id or current_flow_run_id()
    if not (in_run() or flow_run_id or event_id) or not current_settings().events:
        return
    if event_id is not None:
        if event_id in _emitted:
            return
        _emitted[event_id] = True
    try:
        related = _related(flow_run_id)
        emit_event(event, resource=_plain(resource), related=related, payload=_plain(payload), id=event_id)
    except Exception as error:
        _fallback.warning("The event %s could not be emitted: %r", event, error)


def _plain(value: Any) -> Any:
    """The value with all its texts plain: they may be the service's words."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {name: _plain(held) for name, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def lost(event_ids: Iterable[UUID]) -> None:
    """Note that Prefect does not have these events, so that this process emits them again."""
    for event_id in event_ids:
        _emitted.pop(event_id, None)


def _related(flow_run_id: str | None) -> list[dict[str, str]]:
    if not flow_run_id:
        return []
    return [{"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}]


async def deliver(
    event: str, resource: Mapping[str, str], payload: dict[str, Any], *, flow_run_id: str | None, event_id: UUID
) -> None:
    """Send an event that must not be lost, once, and wait until Prefect has it; `emit` does not know what it lost.

    Args:
        event: Its name.
        resource: What it is about.
        payload: Plain facts.
        flow_run_id: The flow run concerned.
        event_id: Its id.

    Raises:
        Exception: Prefect did not take it; call this again later.
    """
    if event_id in _emitted or not current_settings().events:
        return
    related = [RelatedResource(one) for one in _related(flow_run_id)]
    about, facts = Resource(_plain(resource)), _plain(payload)
    sent = Event(event=event, resource=about, related=related, payload=facts, id=event_id)
    try:
        async with asyncio.timeout(_DELIVERY), get_events_client(reconnection_attempts=2, checkpoint_every=1) as client:
            await client.emit(sent)
    except TimeoutError:
        raise TimeoutError(f"Prefect did not take the event {event} within {_DELIVERY:g} s.") from None
    _emitted[event_id] = True


def materialize_result(job: JobRef, instance: str, facts: Mapping[str, Any]) -> None:
    """Record a fetched result as an asset of Prefect, so that later tasks' outputs have a lineage.

    Call it in the task run that fetches. Nothing is recorded unless the setting `assets` or Prefect Cloud asks for it.

    Args:
        job: The job; its id is the asset's.
        instance: The service instance that has it.
        facts: The asset's metadata.
    """
    context, settings = AssetContext.get(), get_current_settings()
    wanted = current_settings().assets
    if context is None or not (settings.connected_to_cloud if wanted is None else wanted):
        return
    try:
        asset = Asset(
            key=f"qruntime://{instance}/jobs/{job.id}",
            properties=AssetProperties(name=f"Result of job {job.id}", url=job.url),
        )
        context.downstream_assets.add(asset)
        context.add_asset_metadata(asset.key, {name: value for name, value in facts.items() if value is not None})
        context.update_tracked_assets()
    except Exception as error:
        _fallback.warning("The result of job %s could not be recorded as an asset: %r", job.id, error)


class Observation(NamedTuple):
    """A state that a wait observed: the time on our clock, and the seconds of waiting until then."""

    status: JobStatus | None
    word: str
    waited: float
    at: datetime


def queue_and_run_seconds(job: Job, seen: Sequence[Observation]) -> tuple[float | None, float | None]:
    """Compute the seconds queued and run from observations; the jobs API reports neither.

    Args:
        job: The job in its last state.
        seen: Its states in order; the wait may have begun late.

    Returns:
        Both; None for a state whose beginning was not observed.
    """
    running = next((sighting for sighting in seen if sighting.status is JobStatus.RUNNING), None)
    if running is None or running is seen[0]:
        return None, None
    queued = running.waited
    if job.created_at is not None:
        # It was queued before the wait began. Its creation time is from another clock, so it counts only if it is more.
        queued = max(queued, (running.at - job.created_at).total_seconds())
    return queued, seen[-1].waited - running.waited


@contextlib.contextmanager
def trace_task(name: str) -> Iterator[None]:
    """Record a span around the body of a task, with its outcome."""
    span: Span = trace.INVALID_SPAN
    try:
        # The tracer is asked for each time: an SDK may be set up after this module is loaded.
        span = trace.get_tracer(_OURS).start_span(f"qruntime {name}", kind=SpanKind.CLIENT)
    except Exception as error:  # of a processor of spans
        _not_recorded(name, error)
    # The exception's own text would be exported unredacted.
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        if span.is_recording() and (owner := current_flow_run_id()) is not None:
            span.set_attribute("prefect.flow-run.id", owner)
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, plain_text(str(error))[:_LONGEST]))
            raise
        finally:
            try:
                span.end()
            except Exception as error:
                _not_recorded(name, error)


def _not_recorded(name: str, error: Exception) -> None:
    _fallback.warning("The span %s could not be recorded: %r", name, error)


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
    """Record a span for each observed state of a job that ended, until the next state was observed."""
    for state, following in pairwise(seen):
        begin = state.at
        if state is seen[0] and job.created_at is not None:
            begin = min(begin, job.created_at)  # the state began before the wait
        _past(f"qruntime {state.word}", begin, following.at, {"job.id": job.id, "backend": job.backend})


def trace_chunks(result: JobResult) -> None:
    """Record a span for each execution span of a result. It is read only if the task's span is recorded."""
    if not trace.get_current_span().is_recording():
        return
    for number, one in enumerate(execution_spans(result)[:_MOST_CHUNKS]):
        if isinstance(one.start, datetime) and isinstance(one.stop, datetime):
            _past("qruntime chunk", one.start, one.stop, {"job.id": result.job_id, "chunk": number})


def execution_spans(result: JobResult) -> list[ExecutionSpan]:
    """When the QPU worked on a job, as its result says; empty if it does not, or is damaged."""
    try:
        metadata = result.metadata()
    except QuantumRuntimeError:  # reading the result reports it
        return []
    execution = metadata.get("execution") if isinstance(metadata, dict) else None
    found = execution.get("execution_spans") if isinstance(execution, dict) else None
    return [span for span in found if isinstance(span, ExecutionSpan)] if isinstance(found, list) else []


def _past(name: str, begin: datetime, end: datetime, attributes: dict[str, Any]) -> None:
    try:
        started, ended = (int(moment.timestamp() * 1e9) for moment in (begin, max(begin, end)))
        trace.get_tracer(_OURS).start_span(name, start_time=started, attributes=_facts(attributes)).end(ended)
    except Exception as error:
        _not_recorded(name, error)


def _facts(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"qruntime.{name}": value for name, value in attributes.items() if value is not None}
