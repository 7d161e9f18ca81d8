"""`prefect-qruntime setup`."""

from __future__ import annotations

import sys
from typing import Annotated

import orjson
from cyclopts import Parameter

from prefect_qruntime.admission.rate_limit import limit_name, set_up
from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import print_rows
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import load_each
from prefect_qruntime.settings import QuantumRuntimeSettings

__all__ = ["setup"]


@needs_prefect
def setup(
    *,
    block: Blocks = None,
    per_minute: Annotated[int, Parameter(help="Jobs created in a minute, by all users of the account together.")] = 5,
    json: AsJson = False,
) -> int:
    """Create the limits in Prefect by which all processes share the service's rate of five new jobs a minute.

    May be run again at any time; a second run changes nothing.
    """
    rows, problems = network_loop().run(_set_up(checked_blocks(block), per_minute))
    if json:
        sys.stdout.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_rows(rows, f"Create limits, {per_minute} jobs a minute", "no credentials block is saved")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 0 if rows and not problems else 1


async def _set_up(blocks: list[str] | None, per_minute: int) -> tuple[list[dict[str, str]], list[str]]:
    accounts: dict[str, tuple[str, list[str]]] = {}
    loaded, problems = await load_each(blocks)
    for name, credentials in loaded.items():
        accounts.setdefault(limit_name(credentials.crn), (credentials.crn, []))[1].append(name)
    period = QuantumRuntimeSettings().create_rate_period_seconds
    rows = [
        {"blocks": ", ".join(names), **row}
        for crn, names in accounts.values()
        for row in await set_up(crn, per_minute=per_minute, period=period)
    ]
    return rows, list(problems.values())
