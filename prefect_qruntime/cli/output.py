"""How commands print."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.printable import printable

__all__ = ["cell", "many", "print_json", "print_rows"]


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
        table.add_row(*(cell("" if value is None else value) for value in row.values()))
    console.print(table)


def cell(*lines: object, style: str = "") -> Text:
    """A table's cell: other people's words, one line each, without anything that a terminal obeys."""
    return Text("\n".join(printable(line) for line in lines), style=style)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def many(number: int, what: str) -> str:
    """A number with its noun: "1 job", "2 jobs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
