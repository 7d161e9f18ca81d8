"""Markdown for the run page of a job, a session or a flow run. Text in, text out."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.results.views import points
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import JobStatus, SessionRef
from prefect_qruntime.observability.charts import COLOURS, Point, bar_chart, is_shortened, line_chart, markdown_image
from prefect_qruntime.observability.progress import line_of
from prefect_qruntime.observability.telemetry import execution_spans
from prefect_qruntime.redact import many, markdown_text, number_text, printable, redact

if TYPE_CHECKING:
    from prefect_qruntime.client.programs.agreement import RouteComparison

__all__ = [
    "card",
    "comparison_card",
    "execution_line",
    "fetched_line",
    "history",
    "job_card",
    "job_description",
    "join_sections",
    "result_section",
    "section",
    "session_description",
    "session_title",
    "summary_card",
    "summary_description",
    "with_history",
    "with_progress",
]

_SECTIONS = ("Result", "Circuit", "Details")  # in the order of the page
_SECTION = re.compile(rf"(?m)^#### ({'|'.join(_SECTIONS)})\n\n")
_PUBS = 4  # PUBs that are shown
_DRAWN = 60  # values in a picture
_WHOLE = 5  # outcomes that are written with all their bits
_COUNTED = 50  # most PUBs whose shots are read for the log
_VALUES = 20  # rows of an estimator's table
_JOBS = 200  # rows of a flow run's summary
_HISTORY = 400  # characters of a job's history
_LONG = re.compile(r"\S{65,}")  # words that are longer than ids and digests

# Facts of a job's record in the order of the page; `None` is not shown. Others follow under their own names.
_RISKY = re.compile(r"[\\`*{}\[\]<>#!|~&@$^]")
_JOB_ROWS: dict[str, str | None] = {
    "kind": None,
    "id": None,
    "url": None,
    "dry_run": "dry run",
    "state": "state",
    "now": "now",
    "seen": "seen",
    "began": None,
    "earlier": None,
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
    "instance": None,
    "flow_run": "flow run",
    "noted": None,
    "host": "host",
    "pid": "process",
    "machine": None,
    "boot": None,
    "space": None,
    "started": None,
}


_FIRST_ROWS = frozenset(
    ("dry run", "state", "now", "seen", "queued", "ran", "executed", "QPU seconds", "reason", "backend", "program")
)


def card(title: str, url: str | None, rows: Mapping[str, Any]) -> str:
    """Make a small table under a heading; empty values are left out."""
    heading = f"### [{title}]({url})" if url else f"### {title}"
    return _dated([heading, "", *_table(rows)])


def _dated(lines: Sequence[str]) -> str:
    """The text of these lines, and below them the time."""
    return "\n".join([*lines, "", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"])


def section(title: str, text: str) -> str:
    """Make a section of a job's text below its facts.

    Args:
        title: `Circuit` or `Result`.
        text: Markdown.
    """
    return f"#### {title}\n\n{text}"


def join_sections(*texts: str | None) -> str:
    """Join the sections of several texts in the page's order; of two with the same title the later one counts."""
    found: dict[str, str] = {}
    for text in texts:
        _, *parts = _SECTION.split(text or "")
        found |= dict(zip(parts[::2], parts[1::2], strict=True))
    return "\n\n".join(section(title, found[title].strip()) for title in _SECTIONS if title in found)


def _table(rows: Mapping[str, Any]) -> list[str]:
    """The lines of a table of two columns; empty values are left out."""
    shown = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return ["| | |", "|---|---|", *shown]


def job_card(facts: Mapping[str, str], old: str, sections: str | None = None) -> str:
    """Make a job's text from its facts.

    Args:
        facts: The facts of its record.
        old: Its text until now; sections shown there stay.
        sections: New ones, see `section`.
    """
    rows: dict[str, Any] = {}
    over = _is_over(facts)
    for name in [*_JOB_ROWS, *(name for name in facts if name not in _JOB_ROWS)]:
        label, value = _JOB_ROWS.get(name, name.replace("_", " ")), facts.get(name)
        if name == "run_seconds" and value is None and over:
            rows["ran"] = _first_seen(history(facts))
        if label is not None and value is not None:
            rows[label] = f"about {value} s" if name in ("queue_seconds", "run_seconds") else value
    if seen := history(facts):
        rows["seen"] = seen
    if over:
        rows.pop("now", None)
    if "QPU seconds" in rows and facts.get("usage_final") != "true":
        rows["QPU seconds"] += " (not final yet)"
    # First what people look for; last what only a search or a support case needs.
    details = {label: rows.pop(label) for label in list(rows) if label not in _FIRST_ROWS}
    last = section("Details", "\n".join(_table(details))) if details else None
    below = join_sections(old, sections, last)
    return card(f"Job {facts.get('id')}", facts.get("url"), rows) + (f"\n\n{below}" if below else "")


def fetched_line(result: JobResult) -> str:
    """Describe a fetched result for the log: PUBs, shots and size. A large one is not decoded for it."""
    start = f"fetched the result of job {result.job_id}"
    if result.file is not None:
        return f"{start}: {_size(result.file.size)} in a file"
    try:
        size = _size(len(orjson.dumps(result.raw)))
    except TypeError:  # integers of more than 64 bits
        size = _size(len(json.dumps(result.raw)))
    try:
        pubs = result.num_pubs
        shots = [result.shots(pub) for pub in range(min(pubs, _COUNTED))]
    except QuantumRuntimeError:  # a program without PUBs, or a damaged result, which reading it reports
        return f"{start}: {size}"
    told = [number for number in shots if number is not None]
    counted = f", {_shots(told)}" if told and pubs <= _COUNTED else ""
    return line_of(f"{start}: {pubs} PUB{'' if pubs == 1 else 's'}", counted, f", {size}")


def _shots(told: Sequence[int]) -> str:
    """Describe the shots of all PUBs: one number if they are equal, else a range."""
    least, most = min(told), max(told)
    if least == most:
        return f"{least:,} shot{'' if least == 1 else 's'}" + (" each" if len(told) > 1 else "")
    return f"{least:,} to {most:,} shots each"


def _size(number: int) -> str:
    if number < 1000:
        return f"{number} bytes"
    power = min(3, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.3g} {'kMG'[power - 1]}B"


def comparison_card(comparison: RouteComparison) -> str:
    """Describe whether two jobs of the same PUBs agree, with a table of the least likely comparisons."""
    service, executor, rows = comparison.service, comparison.executor, comparison.to_table()
    lines = [
        f"### The two routes {comparison.agreement.verdict}",
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
        lines += ["", f"… and {len(rows) - _VALUES} more, none less likely than these."]
    return _dated(lines)


def result_section(result: JobResult) -> str:
    """Show a histogram for each PUB with counts and a table for values, both of bounded size."""
    parts: list[str] = []
    told = 0
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
        title = f"PUB {pub}{where}: {many(sum(counts.values()), 'shot')}, {many(len(counts), 'outcome')}"
        parts.append(markdown_image(title, bar_chart(title, counts)))
        if any(map(is_shortened, counts)):
            parts.append(_whole_counts(counts))
        told += 1
    if values:
        if len(values) > 1 and any(math.isfinite(value) for _, _, value, _ in values[:_DRAWN]):
            parts.append(_value_chart(values))
        shown = [
            f"| {pub} | {'' if at is None else at} | {value:.6g} | {'' if error is None else f'{error:.2g}'} |"
            for pub, at, value, error in values[:_VALUES]
        ]
        parts.append("\n".join(["| PUB | point | value | standard error |", "|---|---|---|---|", *shown]))
    told = told if not values else len({pub for pub, *_ in values[:_VALUES]})
    if told < result.num_pubs or len(values) > _VALUES:
        parts.append(f"{result.num_pubs} PUBs in all; fetch the result for the rest.")
    return "\n\n".join(parts)


def _value_chart(values: Sequence[tuple[int, Any, float, Any]]) -> str:
    """Draw expectation values with their standard errors, each PUB in a colour if there are few."""
    values = values[:_DRAWN]
    pubs = list(dict.fromkeys(pub for pub, *_ in values))
    if len(pubs) == len(values):
        series: dict[str, list[Point]] = {"values": [(pub, value, error) for pub, _, value, error in values]}
        across = "PUB"
    else:
        apart = len(pubs) <= len(COLOURS)
        series = {}
        for place, (pub, _, value, error) in enumerate(values):
            line = series.setdefault(f"PUB {pub}" if apart else "values", [])
            line.append((len(line) if apart else place, value, error))
        across = "point"
    title = f"{len(values)} expectation values" + (" ± standard error" if any(v[3] is not None for v in values) else "")
    chart = line_chart(title, series, x_label=across, y_label="expectation value", joined=False)
    return markdown_image(title, chart)


def _whole_counts(counts: Mapping[str, int]) -> str:
    """List the most frequent outcomes with all their bits, for which a picture has no room."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_WHOLE]
    return "\n".join(["```text", *(f"{bits}  {count}" for bits, count in ranked), "```"])


def execution_line(result: JobResult) -> str | None:
    """Describe when the QPU worked on a job, from the result's execution spans; None if it has none."""
    spans = execution_spans(result)
    if not spans or len({span.start.tzinfo is None for span in spans}) > 1:
        return None
    begin, end = min(span.start for span in spans), max(span.stop for span in spans)
    chunks = many(len(spans), "chunk")
    longest = max((span.stop - span.start).total_seconds() for span in spans)
    return f"{chunks}, {_clock(begin)} to {_clock(end)}, longest {longest:.3g} s"


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}{'' if moment.tzinfo is None else f' {moment:%Z}'}"


def summary_card(jobs: Sequence[Mapping[str, str]]) -> str:
    """List all jobs of a flow run and their total usage; failed and cancelled ones count too.

    Jobs marked `shared` were submitted by another flow run and do not count.
    """
    states = Counter(_state(job) for job in jobs)
    own = [job for job in jobs if "shared" not in job]
    live = [job for job in own if not _is_over(job)]
    open_ended = [job for job in own if _is_over(job) and job.get("usage_final") != "true"]
    total = sum(float(job.get("usage_seconds", 0)) for job in own)
    told = [f"**{number_text(total)} QPU seconds**" + (" so far" if live or open_ended else " in all")]
    if live:
        told.append(f"{len(live)} not over")
    if open_ended:
        told.append(f"the service has not reported the final usage of {many(len(open_ended), 'job')} yet")
    rehearsed = sum("dry_run" in job for job in jobs)
    if rehearsed:
        told.append(f"{rehearsed} dry run{'' if rehearsed == 1 else 's'}, not charged")
    if len(own) < len(jobs):
        told.append(f"{len(jobs) - len(own)} submitted by another flow run, not counted here")
    # What is the same for all is said once: Prefect's page is narrow, and a wider table covers the column beside it.
    named = [(name, {job.get(name, "") for job in jobs}) for name in ("program", "backend")]
    apart = [name for name, values in named if len(values) > 1 or len(jobs) < 2]
    common = [f"{name}: {_cell(*values)}" for name, values in named if name not in apart and values != {""}]
    heads = ["job", *apart, "state", "queued", "ran", "QPU seconds"]
    lines = [
        f"### {many(len(jobs), 'job')}: " + ", ".join(f"{number} {state}" for state, number in states.items()),
        "",
        "; ".join(told) + ".",
        *(["", " · ".join(common)] if common else []),
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for job in jobs[:_JOBS]:
        cells = (
            *(job.get(name, "") for name in apart),
            _state(job),
            f"{job['queue_seconds']} s" if "queue_seconds" in job else "",
            f"{job['run_seconds']} s" if "run_seconds" in job else "",
            _usage(job),
        )
        job_id = f"[{job['id']}]({job['url']})" if job.get("url") else job["id"]  # ids are checked as they arrive
        lines.append("| " + " | ".join([job_id, *map(_cell, cells)]) + " |")
    if len(jobs) > _JOBS:
        lines += ["", f"… and {len(jobs) - _JOBS} more."]
    return _dated(lines)


def _usage(job: Mapping[str, str]) -> str:
    usage = job.get("usage_seconds", "")
    if usage and job.get("usage_final") != "true":
        usage += " (not final)"
    return f"{usage} (another run's)".strip() if "shared" in job else usage


def _state(job: Mapping[str, str]) -> str:
    return job.get("state", "unknown").lower()


def _is_over(facts: Mapping[str, str]) -> bool:
    status = JobStatus.of(facts.get("state", ""))
    return status is not None and status.is_terminal


def _first_seen(seen: str) -> str | None:
    """Say why it is not known how long a job ran: it was first observed in a later state, or never while running."""
    first = seen.partition(" (")[0]
    if not first:
        return None
    return "not seen running" if JobStatus.of(first) is JobStatus.QUEUED else f"first seen {first}"


def with_history(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Join the facts of a job's record; observations of earlier waits are kept apart from those of the present one."""
    merged = {**before, **now}
    if before.get("on_cancel") == "cancel" and now.get("flow_run", owner := before.get("flow_run")) != owner:
        merged["cancelled_with"] = owner or ""  # the other flow run that attached to it may detach it from itself only
    if before.get("seen") and now.get("seen") and before.get("began") != now.get("began"):
        told = history(before)
        merged["earlier"] = told if len(told) <= _HISTORY else f"{told[: _HISTORY // 2]} … {told[-_HISTORY // 2 :]}"
    return merged


def with_progress(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Join the facts of a job that goes on with older ones; an end that was noted meanwhile stays."""
    return dict(before) if _is_over(before) else with_history(before, now)


def history(facts: Mapping[str, str]) -> str:
    """Describe the states of a job that all waits observed; a wait that observed nothing new is left out."""
    earlier, seen = facts.get("earlier", ""), facts.get("seen", "")
    nothing_new = "→" not in seen and seen.partition(" (")[0] in earlier.rpartition("→")[2]
    return earlier if earlier and nothing_new else f"{earlier}; attached: {seen}" if earlier else seen


def job_description(facts: Mapping[str, str]) -> str:
    """The line under a job's title in lists, for instance `Completed · ibm_torino · 1.5 QPU s`."""
    state = printable(facts.get("state", "unknown"), 40)
    cost = f"{facts['usage_seconds']} QPU s" if _is_over(facts) and facts.get("usage_seconds") else ""
    parts = (state[:1].upper() + state[1:], printable(facts.get("backend", ""), 60), cost)
    return " · ".join(part for part in parts if part)


def session_title(session: SessionRef) -> str:
    """The title of a session's record."""
    kind = session.kind.capitalize()
    return f"{kind} {session.id}" if session.id else f"{kind}, not opened yet"


def session_description(facts: Mapping[str, str]) -> str:
    """The line under a session's title in lists, for instance `Open · batch · ibm_torino`."""
    state = printable(facts.get("state", "unknown"), 40)
    kind = "batch" if facts.get("mode") == "batch" else "session"
    parts = (state[:1].upper() + state[1:], kind, printable(facts.get("backend", ""), 60))
    return " · ".join(part for part in parts if part)


def summary_description(facts: Mapping[str, str]) -> str:
    """The line under a flow run's summary in lists."""
    number = facts.get("jobs", "0")
    return f"{number} {'job' if number == '1' else 'jobs'} · {facts.get('usage_seconds', '0')} QPU s"


def _cell(value: Any) -> str:
    """Make a table's cell: text that could be Markdown is escaped; plain words stay as they are.

    A browser may break words that are longer than any id or digest: a wider table covers what is beside it.
    """
    shown = printable(redact(str(value)))
    risky = _RISKY.search(shown) or "//" in shown or "www." in shown.lower()
    parts = _LONG.sub(lambda word: re.sub(r".{32}(?=.)", "\\g<0>\0", word[0]), shown).split("\0")
    return "\u200b".join(map(markdown_text, parts) if risky else parts)
