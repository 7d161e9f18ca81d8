"""The report as tables: files that a spreadsheet may open, headers of empty reports, sums by one group."""

from __future__ import annotations

import csv
import io

from hypothesis import example, given, strategies as st

from prefect_qruntime.operations.usage_tables import rolled_up, table_rows, to_csv
from tests.unit.operations.test_usage import Service, job, read, report


def test_names_cannot_become_formulas_in_a_spreadsheet() -> None:
    told = report(read(Service([job(1), job(2, tags=("@SUM(A1)", "qr-key:2"))])), "flow", "tag")
    rows = list(csv.DictReader(io.StringIO(to_csv(told))))
    assert {(row["flow"], row["tag"]) for row in rows} == {("'=flow()", "no tag"), ("no owner", "'@SUM(A1)")}
    assert any("several tags" in note for note in told.notes)


@given(st.text())
@example("\x1b[2J=1+1")
@example("\t=1+1")
@example("\n@SUM(A1)")
@example("\u202e-1")
def test_each_row_is_one_line_of_visible_text(tag: str) -> None:
    text = to_csv(report(read(Service([job(1, tags=(tag, "qr-key:1"))])), "tag"))
    assert len(text.splitlines()) == 2
    assert all(line.isprintable() for line in text.splitlines())
    (row,) = csv.reader(text.splitlines()[1:])
    assert not row[0].startswith(("=", "+", "-", "@"))


def test_an_empty_report_has_its_header() -> None:
    told = report(read(Service([])), "flow")
    assert to_csv(told) == "flow,jobs,completed,failed,cancelled,not_final,qpu_seconds,pending_qpu_seconds\n"
    assert table_rows(told) == []


def test_rolled_up_rows_are_those_of_the_one_group() -> None:
    book = read(Service([job(n, at=n * 5000, usage_units=0.3, usage_final=n % 3 > 0) for n in range(50)]))
    both, alone = report(book, "deployment", "day"), report(book, "deployment")
    assert rolled_up(both, "deployment").rows == alone.rows
    assert rolled_up(both, "day").rows == report(book, "day").rows
