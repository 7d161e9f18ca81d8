"""Turn a result into HTML for a notebook, a matplotlib picture (extra `[plot]`) or objects of `qiskit.primitives`.

The only module of the results that needs matplotlib or qiskit, and only when it is asked for these. Qiskit's objects
are built from the same views as everything else, so plain and encoded bodies give equal objects. Arrays in metadata
become numpy arrays. If IBM's client is installed, execution spans and the results of its estimator are of its classes,
else a list of `ExecutionSpan` and qiskit's `PubResult`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

from prefect_qruntime.client.encodings.arrays import Allowance, ExecutionSpan, NpyArray, decode_value
from prefect_qruntime.client.encodings.registers import PackedRegister, Register
from prefect_qruntime.client.inputs.spec import RESTRICTED_NAMES
from prefect_qruntime.client.results.views import (
    PubView,
    expectations,
    floats,
    form_of,
    points,
    pub_list,
    top_metadata,
    view_pub,
)
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.redact import html_text, many, printable

if TYPE_CHECKING:
    from prefect_qruntime.client.results.job_result import JobResult

__all__ = ["describe", "plot_result", "primitive_result", "result_html"]


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
        found = expectations(result, pub)
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


def _outcomes(result: JobResult, pub: int) -> Iterator[tuple[Any, ...]]:
    for point, counts in points(result.counts_array(pub)):
        for bits, shots in counts.items():
            yield point, bits, shots


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
    drawn: list[Any]
    if result.is_estimator(pub):
        if register is not None:
            raise InvalidInput("an estimator's PUB has no registers", field="register")
        drawn = list(expectations(result, pub))
        draw = _draw_values
    else:
        counts = result.counts(pub, register, index=index)
        # The most frequent ones, in the order of the bitstrings.
        drawn = sorted((bits, shots) for bits, shots in list(counts.items())[:_ROWS])
        if len(counts) > _ROWS:
            drawn.append((many(len(counts) - _ROWS, "other"), sum(counts.values()) - sum(shots for _, shots in drawn)))
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


def primitive_result(result: JobResult) -> Any:
    """Build a `PrimitiveResult`.

    A legacy quasi-distribution becomes a register `meas` with the shots of `JobResult.counts`, as the
    legacy service names no register.
    """
    try:
        from qiskit.primitives import PrimitiveResult
    except ImportError:
        raise QuantumRuntimeError(
            "to_primitive_result needs qiskit: pip install 'prefect-qruntime[qiskit]'", job_id=result.job_id
        ) from None
    raw, allowance = result.raw, Allowance(result.decode_limit)
    items = pub_list(raw)
    if form_of(raw) == "other":
        raise QuantumRuntimeError("the result has no PUBs; read `.raw`", job_id=result.job_id)
    pubs: list[Any] = []
    for place, item in enumerate(items):
        width = result.widths[place] if place < len(result.widths) else None
        view = view_pub(raw, item, place, width=width, allowance=allowance)
        pubs.append(_pub_result(view, result, place, allowance))
    metadata = top_metadata(raw)
    if isinstance(metadata, list):  # legacy: one per PUB, already there
        metadata = {}
    return PrimitiveResult(pubs, metadata=_decoded(metadata or {}, allowance))


def _decoded(value: Any, allowance: Allowance) -> Any:
    return decode_value(value, allowance=allowance, as_array=_ndarray, as_spans=_spans)


def _pub_result(view: PubView, result: JobResult, place: int, allowance: Allowance) -> Any:
    from qiskit.primitives import BitArray, DataBin, SamplerPubResult

    metadata = _decoded(view.metadata or {}, allowance)
    if view.quasi is not None:
        counts = result.counts(place)
        width = len(next(iter(view.quasi)))
        data = DataBin(meas=BitArray.from_counts(counts, num_bits=width))
        return SamplerPubResult(data, metadata=metadata)
    restricted = [name for name in (*view.registers, *view.fields) if name in RESTRICTED_NAMES]
    if restricted:
        raise QuantumRuntimeError(
            f"PUB {place} has data named {', '.join(map(repr, restricted))}, and Qiskit's result objects use such "
            "names themselves.",
            solution="Use counts(), memory() or to_table(), which work, and rename the register for the next job.",
            job_id=result.job_id,
        )
    fields: dict[str, Any] = {}
    shape: tuple[int, ...] = ()
    for name, register in view.registers.items():
        fields[name] = _bit_array(register, allowance)
        shape = register.shape
    import numpy as np

    for name, value in view.fields.items():
        found = _decoded(value, allowance)
        # Numbers of the plain form are arrays in the encoded one.
        if view.kind is None and isinstance(found, list | int | float | complex | None):
            array = np.asarray(found)
            if array.dtype.kind not in "biufc":
                with suppress(ValueError):  # texts and the like stay
                    array = np.asarray(floats(found))  # null is NaN
            fields[name] = array
        else:
            fields[name] = found
    if view.shape is not None:
        shape = view.shape
    elif "evs" in fields and not view.registers:
        shape = tuple(fields["evs"].shape)
    return _kind_of(view)(DataBin(shape=shape, **fields), metadata=metadata)


def _kind_of(view: PubView) -> Any:
    """The type of a PUB's result, by which consumers distinguish sampler and estimator."""
    from qiskit.primitives import PubResult, SamplerPubResult

    if view.kind == "EstimatorPubResult":
        with suppress(ImportError):
            return import_module("qiskit_ibm_runtime.results").EstimatorPubResult
    if view.kind is None:
        return SamplerPubResult if view.registers else PubResult
    return SamplerPubResult if view.kind == "SamplerPubResult" else PubResult


def _bit_array(register: Register, allowance: Allowance) -> Any:
    import numpy as np
    from qiskit.primitives import BitArray

    if isinstance(register, PackedRegister):
        rows = np.frombuffer(register.data, dtype=np.uint8)
        rows = rows.reshape(*register.shape, register.num_shots, register.row)
        spare = register.num_bits % 8
        if spare and rows[..., 0].max(initial=0) >> spare:
            raise ValueError(f"a shot does not fit into {register.num_bits} bits")
        return BitArray(rows.copy(), register.num_bits)
    size = (register.num_bits + 7) // 8
    packed = bytearray()
    shots = 0
    for point in range(prod(register.shape)):
        keys = register.keys(point)
        allowance.size -= size * len(keys)
        if allowance.size < 0:
            raise ValueError(f"the shots of {register.num_bits} bits are too many to unfold")
        table = {key: register.number(key).to_bytes(size, "big") for key in set(keys)}
        packed += b"".join([table[key] for key in keys])
        shots = len(keys)
    rows = np.frombuffer(bytes(packed), dtype=np.uint8)
    return BitArray(rows.reshape(*register.shape, shots, size).copy(), register.num_bits)


def _ndarray(found: NpyArray | list[Any] | int) -> Any:
    import numpy as np

    if not isinstance(found, NpyArray):
        return np.array(found)
    return np.frombuffer(found.data, dtype=np.dtype(found.descr)).reshape(found.shape).copy()


def _spans(found: list[Any]) -> Any:
    """IBM's `ExecutionSpans`, or the given spans if its client is not installed or does not know a kind."""
    try:
        official = import_module("qiskit_ibm_runtime.execution_span")
    except ImportError:
        return found
    spans = [_official_span(span, official) for span in found]
    return official.ExecutionSpans(spans) if None not in spans else found


def _official_span(span: Any, official: Any) -> Any:
    known = _SPANS.get(span.kind) if isinstance(span, ExecutionSpan) else None
    kind = getattr(official, known[0], None) if known else None
    if known is None or kind is None:
        return None
    slices: dict[int, tuple[Any, ...]] = {}
    for pub, parts in span.data["data_slices"].items():
        left = list(parts)
        slices[int(pub)] = tuple(_PARTS[part](left) for part in known[1])
    return kind(span.start, span.stop, slices)


# The fields that each kind of span has for a PUB, and how they are taken from the front of its parts.
_PARTS: dict[str, Callable[[list[Any]], Any]] = {
    "shape": lambda left: tuple(left.pop(0)),
    "value": lambda left: left.pop(0),
    "slice": lambda left: slice(left.pop(0), left.pop(0)),
}
_SPANS = {
    "ExecutionSpan": ("SliceSpan", ("shape", "slice")),
    "DoubleSliceSpan": ("DoubleSliceSpan", ("shape", "slice", "slice")),
    "TwirledSliceSpan": ("TwirledSliceSpan", ("shape", "value", "slice", "slice")),
    "TwirledSliceSpanV2": ("TwirledSliceSpanV2", ("shape", "value", "slice", "slice", "value")),
}
