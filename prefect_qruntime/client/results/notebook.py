"""Show a result in a notebook: as HTML, and as a matplotlib picture (extra `[plot]`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefect_qruntime.client.results.tables import points
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.redact import html_text, many, printable

if TYPE_CHECKING:
    from prefect_qruntime.client.results.job_result import JobResult

__all__ = ["describe", "plot_result", "result_html"]

_PUBS = 4
_ROWS = 16
_CELL = '<td style="text-align:left">'


def describe(result: JobResult) -> str:
    """Describe the result in a few words, without decoding one that is kept in a file."""
    words = [repr(result.job_id)]
    if result.program_id:
        words.append(f"program_id={result.program_id!r}")
    if result.provenance is not None and result.provenance.dry_run:
        words.append("of a dry run: random")
    if result.file is not None:
        words.append(f"in a file of {result.file.size:,} bytes")
    else:
        try:
            pubs = result.num_pubs
        except QuantumRuntimeError:
            words.append("not readable")
        else:
            words.append(many(pubs, "PUB"))
    return f"JobResult({', '.join(words)})"


def result_html(result: JobResult) -> str:
    """The result as HTML: the most frequent outcomes or the first values of the first PUBs.

    A result that is kept in a file is not decoded for this. All texts are escaped.
    """
    parts = [f"<strong>{html_text(describe(result))}</strong>"]
    if result.file is None:
        try:
            count = result.num_pubs
            parts += [_pub_html(result, pub) for pub in range(min(count, _PUBS))]
            if count > _PUBS:
                parts.append(f"<div>{count - _PUBS} more PUBs</div>")
        except QuantumRuntimeError as error:
            parts.append(f"<div>{html_text(error)}</div>")
    return f"<div>{''.join(parts)}</div>"


def _pub_html(result: JobResult, pub: int) -> str:
    if result.is_estimator(pub):
        head = ("point", "value", "standard error")
        found = _values(result, pub)
    else:
        head = ("point", "outcome", "shots")
        found = _outcomes(result, pub)
    rows: list[tuple[Any, ...]] = []
    for row in found:
        if len(rows) == _ROWS:
            rows.append(("…", "", ""))
            break
        rows.append(row)
    body = "".join(
        "<tr>" + "".join(f"{_CELL}{html_text(_short(value))}</td>" for value in row) + "</tr>" for row in rows
    )
    names = "".join(f'<th style="text-align:left">{name}</th>' for name in head)
    return f"<table><caption>PUB {pub}</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _values(result: JobResult, pub: int) -> Iterator[tuple[Any, ...]]:
    errors = dict(points(result.standard_errors(pub)))
    for point, value in points(result.expectation_values(pub)):
        yield "" if point is None else point, value, errors.get(point)


def _outcomes(result: JobResult, pub: int) -> Iterator[tuple[Any, ...]]:
    for point, counts in points(result.counts_array(pub)):
        for bits, shots in counts.items():
            yield "" if point is None else point, bits, shots


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def plot_result(
    result: JobResult,
    pub: int = 0,
    *,
    register: str | None = None,
    index: int | tuple[int, ...] | None = None,
    ax: Any = None,
) -> Any:
    """Draw a PUB into matplotlib axes, see `JobResult.plot`.

    Raises:
        QuantumRuntimeError: matplotlib is not installed, or the PUB has nothing to draw.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise QuantumRuntimeError(
            "plot() needs matplotlib, which is not installed.",
            solution="pip install 'prefect-qruntime[plot]'",
            job_id=result.job_id,
        ) from None
    if result.is_estimator(pub):
        if register is not None:
            raise InvalidInput("an estimator's PUB has no registers", field="register")
        drawn = list(_values(result, pub))
        draw = _draw_values
    else:
        counts = result.counts(pub, register, index=index)
        # The most frequent ones, in the order of the bitstrings.
        drawn = sorted((bits, shots) for bits, shots in list(counts.items())[:_ROWS])
        if len(counts) > _ROWS:
            drawn.append((f"{len(counts) - _ROWS} others", sum(counts.values()) - sum(shots for _, shots in drawn)))
        draw = _draw_counts
    if ax is None:
        _, ax = pyplot.subplots(layout="constrained")
    draw(ax, drawn)
    # matplotlib reads text between two dollar signs as a formula.
    job = printable(result.job_id, 80).replace("$", r"\$")
    ax.set_title(f"Job {job}, PUB {pub}")
    return ax


def _draw_counts(ax: Any, drawn: list[tuple[str, int]]) -> None:
    places = range(len(drawn))
    ax.bar(places, [shots for _, shots in drawn])
    ax.set_xticks(places, [bits for bits, _ in drawn], rotation=60 if len(drawn) > 4 else 0)
    ax.set_xlabel("outcome")
    ax.set_ylabel("shots")


def _draw_values(ax: Any, drawn: list[tuple[Any, ...]]) -> None:
    errors = [error for _, _, error in drawn]
    ax.errorbar(
        range(len(drawn)),
        [value for _, value, _ in drawn],
        yerr=None if None in errors else errors,
        fmt="o",
        capsize=3,
    )
    ax.set_xlabel("point")
    ax.set_ylabel("expectation value")
