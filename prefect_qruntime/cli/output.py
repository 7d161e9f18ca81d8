"""How commands print."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

__all__ = ["many", "print_json", "print_rows"]


def print_rows(rows: Sequence[Mapping[str, Any]], title: str, none: str) -> None:
    """Print rows of equal keys as a table.

    Args:
        rows: What to print.
        title: Heading.
        none: Said after the heading when there is no row.
    """
    console = Console()
    if not rows:
        console.print(f"{title}: {none}.")
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def many(number: int, what: str) -> str:
    """A number with its noun: "1 job", "2 jobs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
