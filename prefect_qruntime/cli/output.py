"""How commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_rows"]


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
