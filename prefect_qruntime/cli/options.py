"""What commands share: options, the block that a command works with if it is not named, and how commands print."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec

import orjson
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import check_id
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import (
    Attended,
    QuantumRuntimeCredentials,
    load_each,
    load_for,
    none_saved,
    read_each,
    saved_blocks,
)
from prefect_qruntime.diagnostics.prefect_server import check_server
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.prefect_api import unknown_block
from prefect_qruntime.redact import many, printable
from prefect_qruntime.settings import current_settings

__all__ = [
    "ATTENDED",
    "MOST_SHOTS",
    "WIDE",
    "AsJson",
    "Blocks",
    "JobId",
    "OneBlock",
    "between",
    "cell",
    "checked_blocks",
    "client_of",
    "id_column",
    "many",
    "needs_prefect",
    "not_known",
    "only_credentials",
    "print_json",
    "print_not_known",
    "print_problems",
    "print_rows",
    "require_prefect",
    "short",
]


MOST_SHOTS = 10_000_000

WIDE = 110
"""Columns from which whole ids of flow runs fit beside those of jobs."""

ATTENDED = Attended(lambda blocks: _report_waiting(blocks))
"""Somebody waits for what a command prints: short deadlines, and standard error says what it waits for."""

P = ParamSpec("P")


def between(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[Any, Any], None]:
    """Make the check of a numeric option: cyclopts names the option and the value, and the exit code is 2.

    Args:
        least: Smallest value.
        most: Largest value.
        above: Whether the value must be above the smallest.
    """
    bounds = f"above {least:,}" if above else f"at least {least:,}"
    if most < math.inf:
        bounds += f" and at most {most:,}"

    def check(_: Any, value: Any) -> None:
        if value is None:
            return
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            raise ValueError(f"It must be {bounds}.")

    return check


Blocks = Annotated[list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")]
OneBlock = Annotated[
    str | None, Parameter(help="Name of the credentials block; by default the one whose instance has the job.")
]
JobId = Annotated[str, Parameter(help="Id of the job.")]
AsJson = Annotated[bool, Parameter(help="Print JSON.")]


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


def _instances(blocks: Sequence[str]) -> str:
    """Name the instances of blocks, for the middle of a sentence."""
    return f"the {'instance' if len(blocks) == 1 else 'instances'} of {', '.join(blocks)}"


def _report_waiting(blocks: Sequence[str]) -> None:
    sys.stderr.write(f"Waiting for {_instances(blocks)} …\n")
    sys.stderr.flush()


def not_known(unread: Sequence[str]) -> str:
    """The sentence for the instances that could not be read; empty if all could be."""
    if not unread:
        return ""
    what = "has is not known, because it" if len(unread) == 1 else "have is not known, because they"
    return f"Incomplete: what {_instances(unread)} {what} could not be read."


def print_not_known(console: Console, unread: Sequence[str]) -> None:
    """Print that what instances hold is not known, so that no sum and no all-clear hides it."""
    if unread:
        console.print(cell(not_known(unread), style="yellow"))


async def only_credentials(block: str | None) -> QuantumRuntimeCredentials:
    """Return the named credentials block, or the only one that is saved. Runs on the network loop.

    Raises:
        InvalidInput: No block has the name, or not exactly one is saved.
    """
    names = [block] if block is not None else await saved_blocks()
    if not names:
        raise none_saved()
    if len(names) > 1:
        raise InvalidInput(
            f"the saved blocks are {', '.join(names)}.", field="block", solution="Name one of them with --block."
        )
    return await load_for(names[0], field="block")


async def client_of(job_id: str, block: str | None) -> QuantumRuntimeClient:
    """Return a client of the instance that has a job, for a person who waits. Runs on the network loop.

    Args:
        job_id: The job.
        block: Name of the block; None to search the instance of each saved block.

    Raises:
        InvalidInput: No block has the name, or none is saved.
        NotFound: No instance knows the job.
    """
    if block is not None:
        return (await load_for(block, field="block")).get_client(patience=ATTENDED.patience)
    check_id(job_id, field="job")
    loaded, problems = await load_each(None)
    if len(loaded) == 1 and not problems:
        return next(iter(loaded.values())).get_client(patience=ATTENDED.patience)
    if not loaded and not problems:
        raise none_saved()

    async def has_it(_: str, client: QuantumRuntimeClient) -> bool:
        try:
            await client.job(job_id)
        except NotFound:
            return False
        return True

    for name, has in (await read_each(loaded, problems, has_it, ATTENDED)).items():
        if has:
            return loaded[name].get_client(patience=ATTENDED.patience)
    kind = QuantumRuntimeError if problems else NotFound
    raise kind(
        f"No instance of the saved blocks ({', '.join(sorted({*loaded, *problems}))}) is known to have job {job_id}.",
        reason=" ".join(problems.values()) or None,
        job_id=job_id,
    )


def needs_prefect(command: Callable[P, int]) -> Callable[P, int]:
    """Make a command report a wrong setting, or that Prefect's API does not answer, before it starts.

    Raises:
        QuantumRuntimeError: When called, if a setting is wrong or no Prefect server answers.
    """

    @functools.wraps(command)
    def checked(*args: P.args, **kwargs: P.kwargs) -> int:
        require_prefect()
        return command(*args, **kwargs)

    return checked


def require_prefect() -> None:
    """Check the settings, and that Prefect's API answers.

    Raises:
        InvalidInput: A setting is wrong.
        QuantumRuntimeError: Prefect's API does not answer.
    """
    current_settings()
    client, findings = network_loop().run(check_server())
    if client is None:
        raise QuantumRuntimeError(findings[0].finding, solution=findings[0].fix)


def checked_blocks(block: list[str] | None, *, may_be_none: bool = False) -> list[str] | None:
    """Return the names of blocks to use; None for all.

    Args:
        block: The names that were given.
        may_be_none: Whether no block needs to be saved. Otherwise a command that reads nothing would look like an
            account without jobs.

    Raises:
        InvalidInput: No block is saved under one of them, and the error names similar ones; or none is saved at all.
    """
    if not block and may_be_none:
        return None
    saved = network_loop().run(saved_blocks())
    if not block:
        if not saved:
            raise none_saved()
        return None
    for name in block:
        if name not in saved:
            raise unknown_block(QuantumRuntimeCredentials, name, saved, field="block")
    return block


def print_problems(problems: Collection[str]) -> int:
    """Print what could not be read or done to stderr; returns the exit code, 1 if there is any."""
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0
