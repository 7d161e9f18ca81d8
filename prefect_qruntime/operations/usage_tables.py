"""The report of usage by owner: its rows and totals, sums of them, and their export as CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import printable

__all__ = ["Reconciled", "UnownedJob", "UsageLine", "UsageReport", "rolled_up", "table_rows", "to_csv", "write_parquet"]


class UsageLine(BaseModel):
    """One row: its keys, its jobs, their usage, and the part of it that may still change.

    `qpu_seconds` and `resource_units` are two measures of the same work. They are never added up, and the latter is
    None if the service reports none.
    """

    model_config = ConfigDict(frozen=True)

    keys: dict[str, str]
    jobs: int
    states: dict[str, int]
    qpu_seconds: float
    pending_qpu_seconds: float
    resource_units: float | None
    pending_resource_units: float | None
    not_final: int


class UnownedJob(BaseModel):
    """A job, or a session without known jobs, that belongs to no flow run."""

    model_config = ConfigDict(frozen=True)

    id: str
    block: str | None
    user: str | None
    state: str
    created_at: datetime | None
    qpu_seconds: float
    qpu_seconds_final: bool


class Reconciled(BaseModel):
    """A total of the service beside the counted usage. `difference` is the service's total less the counted usage."""

    model_config = ConfigDict(frozen=True)

    block: str
    what: str
    unit: str
    since: datetime | None
    until: datetime | None
    service_says: float
    counted: float
    pending: float
    difference: float
    meaning: str


class UsageReport(BaseModel):
    """Usage by owner. If there are `problems`, the numbers are too low; `notes` explain the numbers.

    `without_owner` lists the jobs that belong to no flow run, those with the most QPU seconds first and 100 at most;
    `jobs_without_owner` counts all of them. A session without known jobs counts as one.

    `unread` are the blocks whose instances could not be read to the end.
    """

    model_config = ConfigDict(frozen=True)

    by: list[str]
    since: datetime
    until: datetime | None
    rows: list[UsageLine]
    total: UsageLine
    without_owner: list[UnownedJob]
    jobs_without_owner: int
    qpu_seconds_without_owner: float
    reconciled: list[Reconciled]
    problems: list[str]
    notes: list[str]
    unread: list[str] = []

    @property
    def is_complete(self) -> bool:
        """Whether everything was read and no number can change any more."""
        return not self.problems and self.total.not_final == 0


def rolled_up(report: UsageReport, by: str) -> UsageReport:
    """Sum a report up by one of its groups, for instance one by deployment and day by deployment."""
    sums: dict[str, list[UsageLine]] = {}
    for row in report.rows:
        sums.setdefault(row.keys[by], []).append(row)
    rows = [
        UsageLine(
            keys={by: name},
            jobs=sum(row.jobs for row in rows),
            states={
                word: sum(row.states.get(word, 0) for row in rows)
                for word in sorted({w for r in rows for w in r.states})
            },
            qpu_seconds=_exact(row.qpu_seconds for row in rows) or 0.0,
            pending_qpu_seconds=_exact(row.pending_qpu_seconds for row in rows) or 0.0,
            resource_units=_exact(row.resource_units for row in rows),
            pending_resource_units=_exact(row.pending_resource_units for row in rows),
            not_final=sum(row.not_final for row in rows),
        )
        for name, rows in sums.items()
    ]
    rows.sort(key=lambda row: (-row.qpu_seconds, -(row.resource_units or 0), row.keys[by]))
    return report.model_copy(update={"by": [by], "rows": rows})


def _exact(values: Iterable[float | None]) -> float | None:
    """Add numbers without the errors of binary fractions; None if there is no number."""
    known = [Decimal(str(value)) for value in values if value is not None]
    return float(sum(known)) if known else None


def table_rows(report: UsageReport) -> list[dict[str, Any]]:
    """The rows as plain columns, all with the same names; resource units only if the service reports them."""
    units = report.total.resource_units is not None
    return [
        {
            **row.keys,
            "jobs": row.jobs,
            "completed": row.states.get("completed", 0),
            "failed": row.states.get("failed", 0),
            "cancelled": row.states.get("cancelled", 0),
            "not_final": row.not_final,
            "qpu_seconds": row.qpu_seconds,
            "pending_qpu_seconds": row.pending_qpu_seconds,
            **(
                {
                    "resource_units": row.resource_units or 0.0,
                    "pending_resource_units": row.pending_resource_units or 0.0,
                }
                if units
                else {}
            ),
        }
        for row in report.rows
    ]


def _columns(report: UsageReport) -> list[str]:
    found = [*report.by, "jobs", "completed", "failed", "cancelled", "not_final", "qpu_seconds", "pending_qpu_seconds"]
    return found + (["resource_units", "pending_resource_units"] if report.total.resource_units is not None else [])


def to_csv(report: UsageReport) -> str:
    """The rows as CSV with a header, each row in one line.

    Names that a spreadsheet would read as a formula begin with an apostrophe, and none holds a terminal sequence.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(report), lineterminator="\n")
    writer.writeheader()
    for row in table_rows(report):
        writer.writerow({name: _plain(value) for name, value in row.items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def write_parquet(report: UsageReport, path: Path) -> None:
    """Write the rows as a Parquet file, amounts as decimals of six places.

    Raises:
        InvalidInput: `pyarrow` is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InvalidInput(
            "needs pyarrow, which is not installed. Nothing was written. Install it with "
            "`pip install 'prefect-qruntime[parquet]'`, or use --csv or --json",
            field="parquet",
        ) from None
    rows = table_rows(report)
    arrays = {}
    for name in _columns(report):
        values = [row[name] for row in rows]
        if name.endswith(("seconds", "units")):
            step = Decimal("0.000001")
            arrays[name] = pyarrow.array(
                [Decimal(str(value)).quantize(step) for value in values], type=pyarrow.decimal128(24, 6)
            )
        else:
            kind = pyarrow.string() if name in report.by else pyarrow.int64()
            arrays[name] = pyarrow.array(values, type=kind)
    try:
        parquet.write_table(pyarrow.table(arrays), path)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {str(path)!r} ({error.strerror or type(error).__name__})", field="parquet"
        ) from None
