"""How commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.printable import many, printable

__all__ = ["cell", "id_column", "many", "print_json", "print_rows", "short"]

WIDE = 110
"""Columns from which whole ids of flow runs fit beside those of jobs."""


def print_rows(rows: Sequence[Mapping[str, Any]], title: str, none: str, console: Console | None = None) -> None:
    """Print rows of equal keys as a table.

    Args:
        rows: What to print.
        title: Heading.
        none: Text after the heading if there is no row.
        console: Console to print to; standard output by default.
    """
    console = console or Console()
    if not rows:
        console.print(f"{title}: {none}.")
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(cell("" if value is None else value) for value in row.values()))
    console.print(table)


def id_column(table: Table, title: str, ids: Iterable[str]) -> None:
    """Add a column that never breaks an id, however narrow the terminal is: an id in pieces cannot be copied."""
    table.add_column(title, overflow="fold", min_width=max(map(len, ids), default=0))


def short(identifier: str, console: Console) -> str:
    """A flow run's id, or its first eight digits if the terminal is narrow."""
    return identifier if console.width >= WIDE else identifier[:8]


def cell(*lines: object, style: str = "") -> Text:
    """A table's cell: one line for each text, without terminal sequences."""
    return Text("\n".join(printable(line) for line in lines), style=style)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
