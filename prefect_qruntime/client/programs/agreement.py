"""Whether two runs of the same circuit agree: statistical tests with a stated rate of false alarms.

Counts are compared by the chi-squared test of homogeneity. Rare outcomes are pooled until each cell has an
expected count of at least 10 in both samples, which is where the chi-squared distribution holds in its tail.
Expectation values are compared by their difference in standard errors. With several comparisons each gets its
share of the rate (Bonferroni), so that the rate is that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef
from prefect_qruntime.redact import many

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison.

    Attributes:
        what: The part that was compared, for instance `pubs[0].c`.
        p_value: How likely two runs of one circuit differ at least as much.
        statistic: Chi-squared, or the difference in standard errors.
        freedom: Degrees of freedom; 0 if there was only one outcome to compare.
    """

    what: str
    p_value: float
    statistic: float
    freedom: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether two results agree.

    Attributes:
        agrees: Whether no comparison is as unlikely as the rate of false alarms allows.
        false_alarm: How often, at most, two runs of the same circuit are reported as different.
        comparisons: All of them, the least likely first.
    """

    agrees: bool
    false_alarm: float
    comparisons: tuple[Comparison, ...]

    @property
    def share(self) -> float:
        """The p-value below which a comparison is a difference: the rate of false alarms, shared among all."""
        return self.false_alarm / max(len(self.comparisons), 1)

    def to_table(self) -> list[dict[str, Any]]:
        """A row for each comparison, the least likely first."""
        return [
            {
                "compared": one.what,
                "statistic": one.statistic,
                "degrees_of_freedom": one.freedom,
                "p_value": one.p_value,
                "verdict": "agree" if one.p_value >= self.share else "differ",
            }
            for one in self.comparisons
        ]

    def __str__(self) -> str:
        """The outcome as one sentence for users."""
        rate = f"two runs of one circuit are reported as different in at most {100 * self.false_alarm:.3g}% of cases"
        if not self.comparisons:
            return f"Nothing to compare ({rate})."
        worst = self.comparisons[0]
        sign = "not below" if self.agrees else "below"
        return (
            f"The two results {'agree' if self.agrees else 'differ'}: the smallest p-value of "
            f"{many(len(self.comparisons), 'comparison')} is {worst.p_value:.2g} "
            f"({worst.what}), {sign} {self.share:.2g}; {rate}."
        )


class RouteComparison(BaseModel):
    """The same PUBs run on both routes, and whether the results agree.

    Attributes:
        service: The job of the server-side primitive.
        executor: The job of the executor.
        agreement: The comparison of their results.
    """

    model_config = ConfigDict(frozen=True)

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
    """Compare two estimates of one value by their standard errors."""
    spread = math.hypot(*errors)
    difference = abs(one - other)
    if not spread > 0:  # both exact, or of unknown error
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
        raise InvalidInput(f"must be between 0 and 1, not {false_alarm!r}", field="false_alarm")
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
    found.sort(key=lambda item: item.p_value)
    agrees = all(item.p_value >= false_alarm / len(found) for item in found)
    return Agreement(agrees, false_alarm, tuple(found))


def _compared(one: JobResult, other: JobResult, pub: int) -> Iterable[Comparison]:
    where = f"pubs[{pub}]"
    if one.is_estimator(pub) != other.is_estimator(pub) or one.registers(pub) != other.registers(pub):
        raise InvalidInput(f"{where} has other registers in the two results", field="results")
    if one.is_estimator(pub):
        values = [list(_leaves(result.expectation_values(pub))) for result in (one, other)]
        errors = [_errors(result, pub, len(values[0])) for result in (one, other)]
        if len(values[0]) != len(values[1]):
            raise InvalidInput(f"{where} has other shapes in the two results", field="results")
        for place, (left, right) in enumerate(zip(*values, strict=True)):
            pair = errors[0][place], errors[1][place]
            yield compare_values(left, right, pair, what=f"{where} value {place}")
        return
    # The joint outcome of all registers holds whatever a single register would show.
    counts = [list(_leaves(result.counts_array(pub))) for result in (one, other)]
    if len(counts[0]) != len(counts[1]):
        raise InvalidInput(f"{where} has other shapes in the two results", field="results")
    for place, (left, right) in enumerate(zip(*counts, strict=True)):
        yield compare_counts(left, right, what=f"{where} point {place}")


def _errors(result: JobResult, pub: int, size: int) -> Sequence[float]:
    found = result.standard_errors(pub)
    return [0.0] * size if found is None else [float(value or 0.0) for value in _leaves(found)]


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


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
