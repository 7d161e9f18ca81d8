"""`prefect-qruntime backends`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import cell, many, print_json
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import load_each
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend

__all__ = ["backends"]

_STYLES = {"online": "green", "paused": "yellow", "offline": "red"}


@needs_prefect
def backends(*, block: Blocks = None, json: AsJson = False) -> int:
    """List the instances' backends with status, size, queue and errors."""
    found, problems = network_loop().run(_backends(checked_blocks(block)))
    if json:
        print_json([{"block": name, **backend.model_dump(mode="json")} for name, backend in found])
    else:
        _print(found, Console())
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _print(found: list[tuple[str, Backend]], console: Console) -> None:
    several = len({name for name, _ in found}) > 1
    table = Table(expand=True)
    for title in (*(("block",) if several else ()), "backend", "status"):
        table.add_column(title, overflow="fold")
    for title in ("qubits", "queue", "2q error"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, backend in found:
        reason = (backend.status_reason,) if backend.status_reason and not backend.is_online else ()
        table.add_row(
            *((cell(name),) if several else ()),
            cell(backend.name),
            cell(backend.status, *reason, style=_STYLES.get(backend.status, "")),
            str(backend.num_qubits or ""),
            "" if backend.queue_length is None else str(backend.queue_length),
            "" if backend.two_qubit_error is None else f"{backend.two_qubit_error:.2%}",
        )
    if found:
        console.print(table)
    console.print(f"{many(len(found), 'backend')}.", highlight=False)


async def _backends(blocks: list[str] | None) -> tuple[list[tuple[str, Backend]], list[str]]:
    found: list[tuple[str, Backend]] = []
    loaded, problems = await load_each(blocks)
    for name, credentials in loaded.items():
        try:
            found += [(name, backend) for backend in await credentials.get_client().backends()]
        except QuantumRuntimeError as error:
            problems[name] = f"{name}: {error}"
    return found, [problems[name] for name in sorted(problems)]
