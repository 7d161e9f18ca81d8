"""Markdown for the run page: what is noted about a job, a session, a flow run. Text in, text out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect_qruntime.client.encodings.arrays import ExecutionSpan
from prefect_qruntime.client.programs.agreement import RouteComparison
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.results.tables import points
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.observability.artifacts import is_over
from prefect_qruntime.observability.charts import bar_chart, markdown_image
from prefect_qruntime.printable import markdown_text, printable
from prefect_qruntime.redact import redact

__all__ = ["card", "comparison_card", "job_card", "result_section", "summary_card"]

_RESULT = "\n\n#### Result\n\n"
_PUBS = 4  # PUBs that are shown
_VALUES = 20  # rows of an estimator's table
_JOBS = 200  # rows of a flow run's summary

# Facts of a job's record in the order of the page; `None` is not shown. Others follow under their own names.
_RISKY = re.compile(r"[\\`*{}\[\]<>#!|~&@$^]")
_JOB_ROWS: dict[str, str | None] = {
    "kind": None,
    "id": None,
    "url": None,
    "dry_run": "dry run",
    "state": "state",
    "seen": "seen",
    "queue_seconds": "queued",
    "run_seconds": "ran",
    "executed": "executed",
    "usage_seconds": "QPU seconds",
    "usage_final": None,
    "busy_seconds": None,
    "executed_seconds": None,
    "reason": "reason",
    "backend": "backend",
    "program": "program",
    "calibration": "calibration",
    "calibrated": "calibrated",
    "backend_version": "backend version",
    "session": "session",
    "key": "submission key",
    "payload": "payload digest",
    "packages": "packages",
    "block": "credentials block",
    "flow_run": "flow run",
    "noted": None,
    "host": "host",
    "pid": "process",
    "machine": None,
    "boot": None,
    "space": None,
    "started": None,
}


def card(title: str, url: str | None, rows: Mapping[str, Any]) -> str:
    """A small table under a heading; empty values are left out."""
    lines = [f"### [{title}]({url})" if url else f"### {title}", "", "| | |", "|---|---|"]
    for name, value in rows.items():
        if value is not None:
            lines.append(f"| {name} | {_cell(value)} |")
    return "\n".join([*lines, "", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"])


def job_card(facts: Mapping[str, str], old: str, result: str | None = None) -> str:
    """A job's text, from its facts.

    Args:
        facts: What its record notes.
        old: Its text until now; a result shown there stays.
        result: The section `result_section` made.
    """
    rows: dict[str, Any] = {}
    for name in [*_JOB_ROWS, *(name for name in facts if name not in _JOB_ROWS)]:
        label, value = _JOB_ROWS.get(name, name.replace("_", " ")), facts.get(name)
        if label is not None and value is not None:
            rows[label] = value
    for label in ("queued", "ran"):
        if label in rows:
            rows[label] = f"about {rows[label]} s"
    if is_over(facts) and "run_seconds" not in facts:
        rows["ran"] = "not seen from its start"
    if "QPU seconds" in rows and facts.get("usage_final") != "true":
        rows["QPU seconds"] += " (not final yet)"
    if result is None and _RESULT in old:
        result = old.split(_RESULT, 1)[1]
    return card(f"Job {facts.get('id')}", facts.get("url"), rows) + (_RESULT + result if result else "")


def comparison_card(comparison: RouteComparison) -> str:
    """Whether two jobs of the same PUBs agree: the sentence, and a table of the least likely comparisons."""
    service, executor, rows = comparison.service, comparison.executor, comparison.to_table()
    lines = [
        "### The two routes " + ("agree" if comparison.agrees else "differ"),
        "",
        str(comparison.agreement),
        "",
        "| route | job |",
        "|---|---|",
        *(
            f"| {name} | {f'[{job.id}]({job.url})' if job.url else job.id} |"
            for name, job in (("service", service), ("executor", executor))
        ),
        "",
        "| compared | statistic | degrees of freedom | p-value | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| {row['compared']} | {row['statistic']:.4g} | {row['degrees_of_freedom']} | {row['p_value']:.2g} "
            f"| {row['verdict']} |"
            for row in rows[:_VALUES]
        ),
    ]
    if len(rows) > _VALUES:
        lines += ["", f"… and {len(rows) - _VALUES} more, each at least as likely."]
    return "\n".join([*lines, "", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"])


def result_section(result: JobResult) -> str:
    """A histogram for each PUB with counts, a table for values; bounded whatever the result's size."""
    parts: list[str] = []
    values: list[tuple[int, Any, float, Any]] = []
    estimates = result.num_pubs > 0 and result.is_estimator()
    for pub in range(min(result.num_pubs, _VALUES if estimates else _PUBS)):
        if result.is_estimator(pub):
            errors = dict(points(result.standard_errors(pub)))
            values += [(pub, at, value, errors.get(at)) for at, value in points(result.expectation_values(pub))]
            continue
        shape = result.shape(pub)
        try:
            counts = result.counts(pub, index=(0,) * len(shape)) if shape else result.counts(pub)
        except QuantumRuntimeError:
            continue  # neither counts nor values, or none at all
        where = f" at the first point of {' × '.join(map(str, shape))}" if math.prod(shape) > 1 else ""
        title = f"PUB {pub}{where}: {sum(counts.values())} shots, {len(counts)} outcomes"
        parts.append(markdown_image(title, bar_chart(title, counts)))
    if values:
        shown = [
            f"| {pub} | {'' if at is None else at} | {value:.6g} | {'' if error is None else f'{error:.2g}'} |"
            for pub, at, value, error in values[:_VALUES]
        ]
        parts.append("\n".join(["| PUB | point | value | standard error |", "|---|---|---|---|", *shown]))
    told = len(parts) if not values else len({pub for pub, *_ in values[:_VALUES]})
    if told < result.num_pubs or len(values) > _VALUES:
        parts.append(f"{result.num_pubs} PUBs in all; fetch the result for the rest.")
    return "\n\n".join(parts)


def execution_line(result: JobResult) -> str | None:
    """When the QPU worked on a job, in words, from the result's execution spans; None if it has none."""
    try:
        metadata = result.metadata()
    except QuantumRuntimeError:
        return None
    execution = metadata.get("execution") if isinstance(metadata, dict) else None
    found = execution.get("execution_spans") if isinstance(execution, dict) else None
    spans = [span for span in found if isinstance(span, ExecutionSpan)] if isinstance(found, list) else []
    if not spans or len({span.start.tzinfo is None for span in spans}) > 1:
        return None
    begin, end = min(span.start for span in spans), max(span.stop for span in spans)
    chunks = "1 chunk" if len(spans) == 1 else f"{len(spans)} chunks"
    longest = max((span.stop - span.start).total_seconds() for span in spans)
    return f"{chunks}, {_clock(begin)} to {_clock(end)}, longest {longest:.3g} s"


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}{'' if moment.tzinfo is None else f' {moment:%Z}'}"


def summary_card(jobs: Sequence[Mapping[str, str]]) -> str:
    """All jobs of a flow run, and what they cost together; failed and cancelled ones count too.

    Those marked `shared` were bought by another flow run and are no cost of this one.
    """
    states = Counter(_state(job) for job in jobs)
    own = [job for job in jobs if "shared" not in job]
    live = [job for job in own if not is_over(job)]
    open_ended = [job for job in own if is_over(job) and job.get("usage_final") != "true"]
    total = sum(float(job.get("usage_seconds", 0)) for job in own)
    told = [f"**{total:g} QPU seconds**" + (" so far" if live or open_ended else " in all")]
    if live:
        told.append(f"{len(live)} not over")
    if open_ended:
        told.append(f"of {len(open_ended)} the service has not said the final number yet")
    rehearsed = sum("dry_run" in job for job in jobs)
    if rehearsed:
        told.append(f"{rehearsed} dry run{'' if rehearsed == 1 else 's'}, not charged")
    if len(own) < len(jobs):
        told.append(f"{len(jobs) - len(own)} bought by another flow run, not counted here")
    lines = [
        f"### {len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}: "
        + ", ".join(f"{number} {state}" for state, number in states.items()),
        "",
        "; ".join(told) + ".",
        "",
        "| job | program | backend | state | queued | ran | QPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in jobs[:_JOBS]:
        cells = (
            job.get("program", ""),
            job.get("backend", ""),
            _state(job),
            f"{job['queue_seconds']} s" if "queue_seconds" in job else "",
            f"{job['run_seconds']} s" if "run_seconds" in job else "",
            _usage(job),
        )
        job_id = f"[{job['id']}]({job['url']})" if job.get("url") else job["id"]  # ids are checked as they arrive
        lines.append("| " + " | ".join([job_id, *map(_cell, cells)]) + " |")
    if len(jobs) > _JOBS:
        lines += ["", f"… and {len(jobs) - _JOBS} more."]
    return "\n".join([*lines, "", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"])


def _usage(job: Mapping[str, str]) -> str:
    usage = job.get("usage_seconds", "")
    if usage and job.get("usage_final") != "true":
        usage += " (not final)"
    return f"{usage} (another run's)".strip() if "shared" in job else usage


def _state(job: Mapping[str, str]) -> str:
    return job.get("state", "unknown").lower()


def _cell(value: Any) -> str:
    """A table's cell: what could be Markdown in other people's words is escaped; plain words stay as they are."""
    text = redact(str(value))
    shown = printable(text)
    risky = _RISKY.search(shown) or "//" in shown or "www." in shown.lower()
    return markdown_text(text) if risky else shown
