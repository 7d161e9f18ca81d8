"""Estimate what a job will cost, and learn from what jobs did cost. Numbers in, numbers out; no clock, no network.

A simple model gives the seconds that a job keeps the QPU busy: shots times circuits times the time of one repetition,
and an overhead. How far it is off is learnt from finished jobs of the same backend and program by split conformal
prediction: the older half of them adjusts the model, the newer half says by what factors it missed, and the quantiles
of these factors make the interval. If the next job is like those before it, the interval contains its cost with at
least the stated probability, however wrong the model is. With too few jobs nothing is stated, and the interval is wide.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, zip_longest
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client.encodings.arrays import NpyArray, decode_array, decode_value
from prefect_qruntime.client.inputs.pub_values import check_observables, shape_of
from prefect_qruntime.client.inputs.qasm import scan
from prefect_qruntime.client.inputs.spec import DEFAULT_PRECISION, DEFAULT_SHOTS, JobSpec, Pub
from prefect_qruntime.client.programs.expectation import make_plan, shots_for
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import twirled_shots
from prefect_qruntime.redact import many, shown

__all__ = [
    "COVERAGE",
    "ENOUGH",
    "NEWEST",
    "CostEstimate",
    "Interval",
    "PastJob",
    "busy_seconds",
    "estimate",
    "interval",
    "priced_seconds",
]

COVERAGE = 0.9
"""Probability with which the interval contains the cost of a job that completes."""
ENOUGH = round(2 / (1 - COVERAGE)) - 1
"""Finished jobs that are needed to state that probability."""
NEWEST = 200
"""Most finished jobs that are learnt from; older ones say little about the backend as it is now."""
MOST_SECONDS = 10800
"""QPU seconds that the service allows a job without a limit of its own."""
_FITTED = 60  # of them, those that adjust the model
_REPETITION = 250e-6  # seconds between two shots if the options set none (IBM's default)
_CIRCUIT = 20e-6  # seconds of a circuit with its measurement
_OVERHEAD = 2.0  # seconds that a job takes in addition to its shots
_MOST = 1e300  # a number that still can be calculated with
_LEAST = 1e-3  # seconds; nothing is expected to cost less


@dataclass(frozen=True, slots=True)
class PastJob:
    """A job that completed.

    Attributes:
        busy_seconds: What `busy_seconds` gave for it when it was submitted.
        charged_seconds: The final QPU seconds.
        executed_seconds: Of those, the time that its result's chunk timings account for; None without any.
    """

    busy_seconds: float
    charged_seconds: float
    executed_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """QPU seconds that a job may cost. `coverage` is None if it cannot be stated yet."""

    low: float
    expected: float
    high: float
    coverage: float | None
    learnt_from: int


class CostEstimate(BaseModel):
    """The probable cost of jobs, as an interval of QPU seconds.

    Attributes:
        backend: The backend.
        program_id: The program.
        jobs: How many jobs it is about; of several, the intervals are added up.
        low_seconds: The interval's lower end.
        expected_seconds: The middle of what is expected.
        high_seconds: The interval's upper end.
        coverage: Probability with which the interval contains the cost of a job that completes; None before enough
            jobs were seen.
        learnt_from: Finished jobs of the same backend and program that it is learnt from.
        remaining_seconds: QPU seconds that the instance has left; None without a limit.
        work: Identifies the work itself; the same in every process and run.
        dry_run: Whether they are dry runs, for which nothing is charged.
        bounded: Whether `jobs` is a bound: a loop may end before, or a job may need no second try.
        session_seconds: How long the dedicated session may live that the jobs are in, which is charged by the clock.
    """

    model_config = ConfigDict(frozen=True)

    backend: str
    program_id: str
    jobs: int
    low_seconds: float
    expected_seconds: float
    high_seconds: float
    coverage: float | None
    learnt_from: int
    remaining_seconds: float | None = None
    work: str = ""
    dry_run: bool = False
    bounded: bool = False
    session_seconds: int | None = None

    def __add__(self, other: CostEstimate) -> CostEstimate:
        """Both together: the ends are added up, and the stated rate is the lower one."""
        names = dict.fromkeys([*self.program_id.split(" + "), *other.program_id.split(" + ")])
        backends = dict.fromkeys([*self.backend.split(" + "), *other.backend.split(" + ")])
        lives = [one.session_seconds for one in (self, other) if one.session_seconds is not None]
        covers = None if self.coverage is None or other.coverage is None else min(self.coverage, other.coverage)
        return CostEstimate(
            backend=" + ".join(backends),
            program_id=" + ".join(names),
            jobs=self.jobs + other.jobs,
            low_seconds=round(self.low_seconds + other.low_seconds, 6),
            expected_seconds=round(self.expected_seconds + other.expected_seconds, 6),
            high_seconds=round(self.high_seconds + other.high_seconds, 6),
            coverage=covers,
            learnt_from=min(self.learnt_from, other.learnt_from),
            remaining_seconds=self.remaining_seconds if other.remaining_seconds is None else other.remaining_seconds,
            work=_digest("+".join(sorted((self.work, other.work)))),
            dry_run=self.dry_run and other.dry_run,
            bounded=self.bounded or other.bounded,
            session_seconds=sum(lives) if lives else None,
        )

    def at_most(self, times: int) -> CostEstimate:
        """The same up to so many times over, where it is not known how often.

        The upper end and the middle are those of all of them, the lower end is that of one.
        """
        if times == 1:
            return self
        return self.model_copy(
            update={
                "jobs": self.jobs * times,
                "expected_seconds": round(self.expected_seconds * times, 6),
                "high_seconds": round(self.high_seconds * times, 6),
                "work": _digest(f"{self.work}*{times}"),
                "bounded": True,
            }
        )

    @classmethod
    def together(cls, costs: Iterable[CostEstimate], *, session_life: int | None = None) -> CostEstimate:
        """What jobs may cost that were estimated one by one, one estimate at least.

        Args:
            costs: The estimates.
            session_life: Seconds that the dedicated session may live in which they are to run. It is charged by the
                clock, so the upper end is its life at least. Dry runs need no session, so it does not count for them.
        """
        first, *others = costs
        whole = sum(others, first)
        if session_life is None or whole.dry_run:
            return whole
        high = max(whole.high_seconds, float(session_life))
        return whole.model_copy(update={"high_seconds": high, "session_seconds": session_life})

    @property
    def share_of_remaining(self) -> float | None:
        """The upper end's share of what is left; None without a limit, infinite if nothing is left."""
        if self.remaining_seconds is None:
            return None
        return self.high_seconds / self.remaining_seconds if self.remaining_seconds > 0 else math.inf

    def __str__(self) -> str:
        """One or two sentences for a log."""
        jobs = ("at most " if self.bounded else "") + many(self.jobs, "job")
        if self.dry_run:
            return f"{jobs} of {self.program_id} on {self.backend}, a dry run: no QPU, no charge."
        text = f"{jobs} of {self.program_id} on {self.backend}: {_short(self.low_seconds)} to "
        text += f"{_short(self.high_seconds)} QPU seconds, about {_short(self.expected_seconds)}"
        share = self.share_of_remaining
        if share is not None and math.isfinite(share):
            text += f"; at most {share:.0%} of the {_short(self.remaining_seconds or 0)} s that are left"
        elif share is not None:
            text += "; the instance has none left"
        if self.session_seconds is not None:
            text += f". A dedicated session is charged by the clock, here for {self.session_seconds} s at most"
        if self.coverage is None:
            seen = "none" if not self.learnt_from else f"only {self.learnt_from}"
            return (
                f"{text}. The interval is as wide as the limits: it takes {ENOUGH} finished jobs of this backend and "
                f"program to learn from, and there are {seen}."
            )
        return f"{text}. Each holds for {self.coverage:.0%} of such jobs, by {self.learnt_from} finished ones."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"


def busy_seconds(spec: JobSpec) -> float:
    """The seconds that a job's shots take by the model; 0 for a payload of which nothing is known."""
    try:
        return priced_seconds(spec)
    except InvalidInput:
        return 0.0


def priced_seconds(spec: JobSpec) -> float:
    """As `busy_seconds`, but refuse a payload that cannot be priced; programs without a model take 0 seconds by it.

    Raises:
        InvalidInput: The executor's, the sampler's or the estimator's payload does not tell how much is run; `field`
            names what is missing or wrong.
    """
    raw = spec.params
    if raw is None and spec.prepared is not None:
        # What is sent: a preparation adds randomizations, noise factors and calibration.
        return _executions_of_program(spec.prepared["quantum_program"]) * _repetition(spec.prepared["options"])
    if raw is None:
        executions = sum(_executions(spec, pub, f"pubs[{place}]") for place, pub in enumerate(spec.pubs))
        return executions * _repetition(spec.options.get("execution"))
    try:
        seconds = _priced_payload(spec, raw)
    except (OverflowError, RecursionError):
        seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidInput("has numbers too large or nested too deeply to be priced", field="params")
    return seconds


def _priced_payload(spec: JobSpec, raw: Mapping[str, Any]) -> float:
    """The seconds of a payload that was not checked: any part may be anything."""
    if spec.program_id == "executor":
        return _executions_of_program(raw.get("quantum_program")) * _repetition(raw.get("options"))
    if spec.program_id not in ("sampler", "estimator"):
        return 0.0
    options = raw.get("options")
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise InvalidInput("must be options by name, to be priced", field="params.options")
    known = dict(options)
    for name in ("default_shots", "default_precision"):
        known[name] = _amount(options.get(name), f"params.options.{name}")
    known["precision"] = _amount(raw.get("precision"), "params.precision")
    known["resilience_level"] = raw.get("resilience_level")
    plain = replace(spec, params=None, shots=_amount(raw.get("shots"), "params.shots"), options=known)  # type: ignore[arg-type]
    pubs = raw.get("pubs")
    if not isinstance(pubs, list) or not pubs:
        raise InvalidInput("must be a list of PUBs, one at least, to be priced", field="params.pubs")
    read = [_raw_pub(pub, spec.program_id, f"params.pubs[{place}]") for place, pub in enumerate(pubs)]
    executions = sum(_executions(plain, pub, f"params.pubs[{place}]") for place, pub in enumerate(read))
    return executions * _repetition(options.get("execution"))


def _raw_pub(pub: Any, program_id: str, field: str) -> Pub:
    """A PUB of a raw payload, as far as its price depends on it."""
    parts = pub if isinstance(pub, list) else [pub]
    estimator = program_id == "estimator"
    names = ("observables", "parameters", "precision") if estimator else ("parameters", "shots")
    if not parts or (estimator and len(parts) < 2) or not isinstance(parts[0], str | dict):
        wanted = "[circuit, observables, …]" if estimator else "a circuit or [circuit, …]"
        raise InvalidInput(f"must be {wanted}, to be priced", field=field)
    found: dict[str, Any] = dict(zip(names, parts[1:], strict=False))
    found[names[-1]] = _amount(found.get(names[-1]), f"{field}.{names[-1]}")
    if estimator:
        found["observables"] = _raw_observables(found["observables"], f"{field}.observables")
    return Pub(parts[0], **found)


def _raw_observables(value: Any, field: str) -> Any:
    """Observables as the estimator takes them: as written, or as the service's encoder writes qiskit's own."""
    encoded = isinstance(value, Mapping) and value.get("__type__") == "ObservablesArray" and "__value__" in value
    try:
        return check_observables(decode_value(value["__value__"] if encoded else value), None, field=field)
    except ValueError as error:
        raise InvalidInput(f"cannot be read, to be priced: {error}", field=field) from None


def _amount(value: Any, field: str) -> float | None:
    """A number of shots or a precision; None if there is none."""
    found = _number(value)
    if value is None or found:
        return found
    raise InvalidInput(f"must be a number greater than 0 to be priced, not {shown(value, 40)}", field=field)


def _repetition(options: Any) -> float:
    given = _number(options.get("rep_delay")) if isinstance(options, Mapping) else None
    return (_REPETITION if given is None else given) + _CIRCUIT


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST
    return float(value) if fits else None


def _executions_of_program(program: Any) -> float:
    field = "params.quantum_program"
    if not isinstance(program, Mapping):
        raise InvalidInput("must be a quantum program, to be priced", field=field)
    items, shots = program.get("items"), _number(program.get("shots"))
    if not isinstance(items, list) or not items:
        raise InvalidInput("must be a list of items, one at least, to be priced", field=f"{field}.items")
    if shots is None:
        raise InvalidInput("must be a number of shots, to be priced", field=f"{field}.shots")
    return sum(_points_of_item(item, f"{field}.items[{place}]") for place, item in enumerate(items)) * shots


def _points_of_item(item: Any, field: str) -> float:
    """How often an item's circuit is run for one shot: its shape, broadcast with the points of its arguments."""
    item = item if isinstance(item, Mapping) else {}
    arguments = item.get("circuit_arguments") or {"shape": []}
    if not isinstance(arguments, Mapping):
        raise InvalidInput("must be a tensor, to be priced", field=f"{field}.circuit_arguments")
    rows = _shape(arguments.get("shape", []), f"{field}.circuit_arguments.shape")
    shape = _shape(item.get("shape", []), f"{field}.shape")
    return float(math.prod(max(pair) for pair in zip_longest(reversed(shape), reversed(rows[:-1]), fillvalue=1)))


def _shape(value: Any, field: str) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(length) is int and length >= 0 for length in value):
        return tuple(value)
    raise InvalidInput("must be a list of lengths, to be priced", field=field)


def _executions(spec: JobSpec, pub: Pub, field: str) -> float:
    """How often the circuits of a PUB are run."""
    options = spec.options
    points = _points(pub, f"{field}.parameters")
    if spec.program_id == "estimator":
        precision = pub.precision if pub.precision is not None else options.get("precision")
        asked = None if precision is None else shots_for(precision, field=f"{field}.precision")
        default = options.get("default_shots") or spec.shots
        if default is None:
            default = shots_for(options.get("default_precision") or DEFAULT_PRECISION, field=f"{field}.precision")
        level = options.get("resilience_level")
        level, circuits = level if isinstance(level, int) else 1, points * _bases(pub)
    else:
        asked = spec.shots if pub.shots is None else pub.shots
        default, level, circuits = options.get("default_shots"), 0, points
    most = DEFAULT_SHOTS if default is None else math.ceil(default)
    return twirled_shots(options, None if asked is None else math.ceil(asked), most, level=level)[1] * circuits


def _points(pub: Pub, field: str) -> float:
    """Parameter points of a PUB, as far as the circuit and the values show."""
    values = pub.parameters
    if values is None:
        return 1.0
    inputs = None
    if isinstance(pub.circuit, str):
        with contextlib.suppress(InvalidInput):
            inputs = scan(pub.circuit, field=field).inputs
    named = isinstance(values, Mapping) and "__type__" not in values
    shape = _shape_of_values(next(iter(values.values()), 0.0) if named else values, field)
    if (named and inputs is not None) or (inputs is not None and len(inputs) == 1):
        # One number for each point of a parameter, with an axis of its own or without.
        return float(math.prod(shape[:-1] if shape[-1:] == (1,) else shape))
    return float(math.prod(shape[:-1]))


def _shape_of_values(values: Any, field: str) -> tuple[int, ...]:
    if isinstance(values, list | int | float):
        return shape_of(values, field=field)
    found: Any = None
    if isinstance(values, Mapping) and values.get("__type__") == "ndarray":
        with contextlib.suppress(ValueError):
            found = decode_array(values.get("__value__"))
    if not isinstance(found, NpyArray):
        raise InvalidInput("must be numbers or an encoded array of them, to be priced", field=field)
    return found.shape


def _bases(pub: Pub) -> float:
    """Measurements that an estimator's observables take: groups of terms that commute qubit by qubit."""
    try:
        return float(len(make_plan(pub.observables, (), field="observables").groups))
    except InvalidInput:
        return 1.0


@dataclass(frozen=True, slots=True)
class _Model:
    """Charged seconds as overhead and a multiple of the busy seconds."""

    overhead: float = _OVERHEAD
    factor: float = 1.0

    def __call__(self, busy: float) -> float:
        return max(_LEAST, self.overhead + self.factor * busy)


def _adjusted(past: Sequence[PastJob]) -> _Model:
    """A model fitted to jobs: by chunk timings if there are any, else by the median of the slopes of all pairs."""
    timed = [one for one in past if one.executed_seconds is not None and one.busy_seconds > 0]
    if len(timed) > len(past) // 2:
        factor = median((one.executed_seconds or 0.0) / one.busy_seconds for one in timed)
    else:
        slopes = [
            (one.charged_seconds - other.charged_seconds) / (one.busy_seconds - other.busy_seconds)
            for one, other in combinations(past, 2)
            if one.busy_seconds != other.busy_seconds
        ]
        factor = max(0.0, median(slopes)) if slopes else 0.0
    overhead = max(0.0, median(one.charged_seconds - factor * one.busy_seconds for one in past))
    return _Model(overhead, factor)


def interval(past: Sequence[PastJob], busy: float, *, limit: float | None = None) -> Interval:
    """What a job may cost, learnt from finished jobs of the same backend and program.

    Args:
        past: The jobs, newest first.
        busy: Seconds that its shots take by the model.
        limit: The job's own limit, at which the service stops it.

    Example:
        ```python
        from prefect_qruntime.client.cost_core import PastJob, interval

        assert interval([], busy=10.0, limit=60.0).high == 60
        assert interval([PastJob(10.0, 4.0)] * 40, busy=10.0).high == 4
        ```
    """
    most = float(MOST_SECONDS if limit is None else limit)
    known = list(past[:NEWEST])
    judged, model = known, _Model()
    if len(known) >= 2 * ENOUGH:
        fitted = min(_FITTED, len(known) - ENOUGH)
        judged = known[: max(ENOUGH, len(known) - fitted)]
        model = _adjusted(known[len(judged) :][:_FITTED])
    factors = sorted(one.charged_seconds / model(one.busy_seconds) for one in judged)
    middle = model(busy) * (median(factors) if factors else 1.0)
    if len(judged) < ENOUGH:
        return Interval(0.0, min(middle, most), most, None, len(known))
    tail = (len(factors) + 1) * (1 - COVERAGE) / 2
    lowest = factors[math.floor(tail + 1e-9) - 1]
    highest = factors[len(factors) - math.floor(tail + 1e-9)]
    low, high = (min(most, model(busy) * factor) for factor in (lowest, highest))
    return Interval(low, min(middle, most), high, COVERAGE, len(known))


def estimate(
    specs: Sequence[JobSpec], past: Sequence[PastJob], *, remaining_seconds: float | None = None
) -> CostEstimate:
    """What jobs of one backend and program may cost together.

    Args:
        specs: The jobs, one at least.
        past: Finished jobs of the same backend and program, newest first.
        remaining_seconds: What the instance has left.
    """
    dry_run = all(spec.dry_run for spec in specs)
    found = [
        Interval(0.0, 0.0, 0.0, None, 0)
        if spec.dry_run
        else interval(past, busy_seconds(spec), limit=spec.max_execution_time)
        for spec in specs
    ]
    return CostEstimate(
        backend=specs[0].backend,
        program_id=specs[0].wire_program,
        jobs=len(specs),
        low_seconds=round(sum(one.low for one in found), 6),
        expected_seconds=round(sum(one.expected for one in found), 6),
        high_seconds=round(sum(one.high for one in found), 6),
        coverage=found[0].coverage,
        learnt_from=found[0].learnt_from,
        remaining_seconds=remaining_seconds,
        work=_digest("".join(sorted(spec.digest() for spec in specs))),
        dry_run=dry_run,
    )
