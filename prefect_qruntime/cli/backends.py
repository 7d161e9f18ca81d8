"""`prefect-qruntime backends`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from prefect_qruntime.cli.options import AsJson, Blocks
from prefect_qruntime.cli.output import cell, many, print_json
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import aload_credentials, saved_blocks
from prefect_qruntime.models import Backend

__all__ = ["backends"]

_STYLES = {"online": "green", "paused": "yellow", "offline": "red"}


def backends(*, block: Blocks = None, json: AsJson = False) -> int:
    """List the instances' backends with status, size, queue and errors."""
    found = network_loop().run(_backends(block or None))
    if json:
        print_json([{"block": name, **backend.model_dump(mode="json")} for name, backend in found])
        return 0
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
    console = Console()
    if found:
        console.print(table)
    console.print(f"{many(len(found), 'backend')}.", highlight=False)
    return 0


async def _backends(blocks: list[str] | None) -> list[tuple[str, Backend]]:
    names = blocks if blocks is not None else await saved_blocks()
    return [
        (name, backend) for name in names for backend in await (await aload_credentials(name)).get_client().backends()
    ]
