"""Whether two runs of the same circuit agree: statistical tests with a stated rate of false alarms.

Counts are compared by the chi-squared test of homogeneity. Rare outcomes are pooled until each cell has an
expected count of at least 10 in both samples, which is where the chi-squared distribution holds in its tail.
Expectation values are compared by their difference in standard errors. With several comparisons each gets its
share of the rate (Bonferroni), so that the rate is that of the whole. A value whose standard error is not known (of
one shot, or of a program that states none) cannot be compared, which the outcome says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client.encodings.arrays import leaves
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef
from prefect_qruntime.redact import many, shown

if TYPE_CHECKING:
    from prefect_qruntime.client.results.job_result import JobResult

__all__ = [
    "Agreement",
    "Comparison",
    "RouteComparison",
    "checked_rate",
    "chi_squared_tail",
    "compare_counts",
    "compare_results",
    "compare_values",
]

_LEAST_EXPECTED = 10.0
_EXACT = 1e-9
_UNKNOWN = "cannot be compared"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison.

    Attributes:
        what: The part that was compared, for instance `pubs[0].c`.
        p_value: How likely two runs of one circuit differ at least as much; NaN if they cannot be compared.
        statistic: Chi-squared, or the difference in standard errors; NaN as above.
        freedom: Degrees of freedom; 0 if there was only one outcome to compare.
    """

    what: str
    p_value: float
    statistic: float
    freedom: int

    @property
    def comparable(self) -> bool:
        """Whether the two can be compared."""
        return not math.isnan(self.p_value)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether two results agree.

    Attributes:
        agrees: Whether no comparison is as unlikely as the rate of false alarms allows. False if nothing of the results
            can be compared.
        false_alarm: How often, at most, two runs of the same circuit are reported as different.
        comparisons: All of them, the least likely first, and at the end those that cannot be compared.
    """

    agrees: bool
    false_alarm: float
    comparisons: tuple[Comparison, ...]

    @property
    def share(self) -> float:
        """The p-value below which a comparison is a difference: the rate of false alarms, shared among all."""
        return self.false_alarm / max(len(self.compared), 1)

    @property
    def compared(self) -> tuple[Comparison, ...]:
        """The comparisons without what cannot be compared."""
        return tuple(one for one in self.comparisons if one.comparable)

    @property
    def verdict(self) -> str:
        """`agree`, `differ` or `cannot be compared`."""
        if not self.compared:
            return _UNKNOWN
        return "agree" if self.agrees else "differ"

    def to_table(self) -> list[dict[str, Any]]:
        """A row for each comparison, the least likely first."""
        return [
            {
                "compared": one.what,
                "statistic": one.statistic,
                "degrees_of_freedom": one.freedom,
                "p_value": one.p_value,
                "verdict": ("agree" if one.p_value >= self.share else "differ") if one.comparable else _UNKNOWN,
            }
            for one in self.comparisons
        ]

    def __str__(self) -> str:
        """The outcome as one or two sentences for users."""
        rate = f"two runs of one circuit are reported as different in at most {100 * self.false_alarm:.3g}% of cases"
        if not self.comparisons:
            return "The two results cannot be compared: they hold neither counts nor expectation values."
        left = len(self.comparisons) - len(self.compared)
        why = "because the standard error of a result is not known"
        if not self.compared:
            return f"The two results cannot be compared, {why} for any value. Run them with at least 2 shots."
        worst = self.comparisons[0]
        sign = "not below" if self.agrees else "below"
        text = (
            f"The two results {self.verdict}: the smallest p-value of "
            f"{many(len(self.compared), 'comparison')} is {worst.p_value:.2g} "
            f"({worst.what}), {sign} {self.share:.2g}; {rate}."
        )
        return f"{text} {many(left, 'value')} cannot be compared, {why}." if left else text


class RouteComparison(BaseModel):
    """The same PUBs run on both routes, and whether the results agree.

    Attributes:
        service: The job of the server-side primitive.
        executor: The job of the executor.
        agreement: The comparison of their results.
    """

    # As text, because JSON has no NaN and no infinity.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    service: JobRef
    executor: JobRef
    agreement: Agreement

    @property
    def agrees(self) -> bool:
        """Whether the two results agree."""
        return self.agreement.agrees

    def to_table(self) -> list[dict[str, Any]]:
        """A row for each comparison, the least likely first."""
        return self.agreement.to_table()

    def __str__(self) -> str:
        """The jobs and the outcome as two sentences for users."""
        return f"Job {self.service.id} ran on the service, job {self.executor.id} on the executor. {self.agreement}"


def compare_counts(one: Mapping[str, int], other: Mapping[str, int], *, what: str = "counts") -> Comparison:
    """Compare two samples of outcomes.

    Raises:
        ValueError: An empty sample.
    """
    totals = sum(one.values()), sum(other.values())
    if not all(totals):
        raise ValueError(f"{what}: a sample has no shots")
    whole = sum(totals)
    smaller = min(totals) / whole
    cells: list[tuple[int, int]] = []
    pool = (0, 0)
    # The pool collects the rarest outcomes until it is large enough, so that no outcome is left out. The order
    # depends on the sums alone, because an order that distinguishes the samples would bias the test.
    for key in sorted(one.keys() | other.keys(), key=lambda key: (one.get(key, 0) + other.get(key, 0), key)):
        pair = one.get(key, 0), other.get(key, 0)
        if sum(pair) * smaller < _LEAST_EXPECTED or 0 < sum(pool) * smaller < _LEAST_EXPECTED:
            pool = pool[0] + pair[0], pool[1] + pair[1]
        else:
            cells.append(pair)
    if sum(pool) * smaller >= _LEAST_EXPECTED or not cells:
        cells.append(pool)
    elif sum(pool):
        cells[0] = cells[0][0] + pool[0], cells[0][1] + pool[1]
    statistic = math.fsum(
        (count - (expected := sum(pair) * total / whole)) ** 2 / expected
        for pair in cells
        for count, total in zip(pair, totals, strict=True)
    )
    freedom = len(cells) - 1
    return Comparison(what, chi_squared_tail(statistic, freedom) if freedom else 1.0, statistic, freedom)


def compare_values(one: float, other: float, errors: tuple[float, float], *, what: str = "value") -> Comparison:
    """Compare two estimates of one value by their standard errors; an error of NaN is one that is not known."""
    spread = math.hypot(*errors)
    difference = abs(one - other)
    if not math.isfinite(spread) or not math.isfinite(difference):
        return Comparison(what, math.nan, math.nan, 1)
    if spread == 0:  # both exact
        same = difference <= _EXACT * max(1.0, abs(one), abs(other))
        return Comparison(what, 1.0 if same else 0.0, 0.0 if same else math.inf, 1)
    score = difference / spread
    return Comparison(what, math.erfc(score / math.sqrt(2)), score, 1)


def checked_rate(false_alarm: float) -> float:
    """Check a rate of false alarms.

    Raises:
        InvalidInput: It is not between 0 and 1.
    """
    if isinstance(false_alarm, bool) or not isinstance(false_alarm, int | float) or not 0 < false_alarm < 1:
        raise InvalidInput(f"must be between 0 and 1, not {shown(false_alarm)}", field="false_alarm")
    return float(false_alarm)


def compare_results(one: JobResult, other: JobResult, *, false_alarm: float = 0.001) -> Agreement:
    """Compare all PUBs, registers and points of two results of the same PUBs.

    Args:
        one: A result.
        other: The result of the other route.
        false_alarm: How often two runs of the same circuit may be reported as different.

    Raises:
        InvalidInput: The results are not of the same PUBs, or the rate is not between 0 and 1.
    """
    checked_rate(false_alarm)
    if one.num_pubs != other.num_pubs:
        raise InvalidInput(f"{one.num_pubs} and {other.num_pubs} PUBs cannot be compared", field="results")
    found = [item for pub in range(one.num_pubs) for item in _compared(one, other, pub)]
    found.sort(key=lambda item: item.p_value if item.comparable else math.inf)
    compared = [item for item in found if item.comparable]
    agrees = bool(compared) and all(item.p_value >= false_alarm / len(compared) for item in compared)
    return Agreement(agrees, false_alarm, tuple(found))


def _compared(one: JobResult, other: JobResult, pub: int) -> Iterable[Comparison]:
    where = f"pubs[{pub}]"
    if one.is_estimator(pub) != other.is_estimator(pub) or one.registers(pub) != other.registers(pub):
        raise InvalidInput(f"{where} has other registers in the two results", field="results")
    estimator = one.is_estimator(pub)
    found = [
        list(leaves(result.expectation_values(pub) if estimator else result.counts_array(pub)))
        for result in (one, other)
    ]
    # An axis of one value changes no place; results of the legacy dialect have none.
    shapes = [[size for size in result.shape(pub) if size != 1] for result in (one, other)]
    if shapes[0] != shapes[1] or len(found[0]) != len(found[1]):
        raise InvalidInput(f"{where} has other shapes in the two results", field="results")
    if estimator:
        errors = [_errors(result, pub, len(found[0])) for result in (one, other)]
        for place, (left, right) in enumerate(zip(*found, strict=True)):
            pair = errors[0][place], errors[1][place]
            yield compare_values(_number(left), _number(right), pair, what=f"{where} value {place}")
        return
    # The joint outcome of all registers holds whatever a single register would show.
    names, order = list(one.registers(pub)), other.registers(pub)
    for place, (left, right) in enumerate(zip(*found, strict=True)):
        same = right if list(order) == names else _in_order(right, order, names)
        yield compare_counts(left, same, what=f"{where} point {place}")


def _in_order(counts: Mapping[str, int], registers: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Counts of joined registers with these in another order; the first one is the right end of a bitstring."""
    ends: dict[str, int] = {}
    end = sum(registers.values())
    for name, width in registers.items():
        ends[name] = end
        end -= width
    return {
        "".join(key[ends[name] - registers[name] : ends[name]] for name in reversed(names)): count
        for key, count in counts.items()
    }


def _errors(result: JobResult, pub: int, size: int) -> Sequence[float]:
    found = result.standard_errors(pub)
    errors = [] if found is None else [abs(_number(value)) for value in leaves(found)]
    return errors if len(errors) == size else [math.nan] * size


def _number(value: Any) -> float:
    """A number of a result, NaN for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def chi_squared_tail(statistic: float, freedom: int) -> float:
    """The probability that chi-squared with this many degrees of freedom is at least as large.

    The regularised incomplete gamma function: its series below the mean, Lentz's continued fraction above.
    """
    if statistic <= 0:
        return 1.0
    shape, x = freedom / 2, statistic / 2
    scale = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        step = shape
        while term > total * 1e-16:
            step += 1
            term *= x / step
            total += term
        return max(0.0, 1.0 - total * scale)
    tiny = 1e-300
    b = x + 1 - shape
    c, d = 1 / tiny, 1 / b
    value = d
    for turn in range(1, 100_000):
        a = -turn * (turn - shape)
        b += 2
        d = 1 / ((a * d + b) or tiny)
        c = (b + a / c) or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(1.0, value * scale)
