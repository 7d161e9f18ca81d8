"""The published table is the one that decides."""

from __future__ import annotations

from prefect_qruntime.client.failures import RULES
from tools.failure_table import PAGE, page, table


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run python tools/failure_table.py"


def test_every_rule_has_a_row() -> None:
    assert len(table().splitlines()) == len(RULES) + 2
