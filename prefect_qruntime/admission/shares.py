"""Give teams their shares of the create rate, among all processes, through Prefect's database alone.

`share_core` decides; this module keeps the rows, which are Prefect variables. No process holds anything while others
wait, so a killed one delays them by seconds only. If Prefect fails for longer, the order is lost and the rate kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
from prefect.client.schemas.actions import VariableCreate

from prefect_qruntime.admission.policy import policy_in_force, share_of, tenant_of
from prefect_qruntime.admission.rate_limit import limit_name, pace, shared_limits
from prefect_qruntime.admission.share_core import Row, Share, Turn, Waiter
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import api, clock_offset, in_run
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext

__all__ = ["read_queue", "share_turn"]

log = get_logger(__name__)

_TAG = "qruntime-share"
_PAGE = 200
_SAY_AFTER = 30.0  # seconds after which a wait is logged


@asynccontextmanager
async def share_turn(connection: Connection, where: RunContext, block: str | None) -> AsyncIterator[None]:
    """Wait for the team's turn; release it if the block ends with an error. Runs on the network loop.

    Args:
        connection: The instance.
        where: The flow run that submits.
        block: Name of the credentials block.

    Raises:
        QuantumRuntimeError: Prefect could not be asked for the policy; nothing was sent.
    """
    policy = await policy_in_force()
    allowed = pace(connection)
    if policy is None or not policy.shares or allowed is None or not in_run():
        yield
        return
    share = share_of(policy, await tenant_of(where, block))
    team = share.name if share is not None else ""
    shares = {one.name: Share(one.weight, one.max_creates_per_minute) for one in policy.shares}
    prefix = _prefix(connection.crn)
    # One ticket for each process and team: its other submissions wait in memory.
    async with network_loop().lock(f"share:{prefix}:{team}"):
        taken: str | None = None
        try:
            taken = await _wait(connection, prefix, team, shares, allowed)
        except Exception as error:
            log.warning("Prefect cannot be asked whose turn it is (%r). Continuing without the teams' shares.", error)
    try:
        yield
    except BaseException:
        if taken is not None:
            await asyncio.shield(_remove(taken))
        raise


def _prefix(crn: str) -> str:
    return limit_name(crn).replace("qruntime-create-", "qruntime-share-")


async def _wait(
    connection: Connection, prefix: str, team: str, shares: dict[str, Share], allowed: tuple[int, float]
) -> str:
    """Wait for a turn; return the name of its row."""
    limits = await shared_limits(connection.crn)
    count, period = (len(limits), allowed[1]) if limits else allowed
    row = Row(secrets.token_hex(8), team, _server_now())
    name = f"{prefix}-{row.id}"
    waiter, began, told = Waiter(row.id, count, period), time.monotonic(), False
    try:
        await _create(name, row)
        while True:
            rows = await _read(prefix)
            turn = waiter.look(rows, shares, server=_server_now(), now=time.monotonic())
            for one in turn.drop:
                await _remove(f"{prefix}-{one}")
            if turn.do == "go":
                await _write(name, row, turn)
                return name
            if turn.do == "renew":
                await _create(name, row)
                continue
            if not told and time.monotonic() - began > _SAY_AFTER:
                told = True
                waiting = sum(one.granted is None for one in rows) - 1
                others = "1 other waits" if waiting == 1 else f"{waiting} others wait"
                notifications.log_to_run(f"waiting for the turn of team {team or '(none)'} to create a job; {others}")
            await asyncio.sleep(turn.pause * random.uniform(0.8, 1.2))  # noqa: S311
    except BaseException:
        with contextlib.suppress(Exception):
            await asyncio.shield(_remove(name))
        raise


def _server_now() -> float:
    return time.time() + (clock_offset() or 0.0)


# ---- the rows in Prefect -------------------------------------------------------------------------------------


def _value(row: Row) -> dict[str, Any]:
    return {"team": row.team, "since": row.since, "start": row.start, "finish": row.finish, "granted": row.granted}


async def _create(name: str, row: Row) -> None:
    await (await api()).create_variable(VariableCreate(name=name, value=_value(row), tags=[_TAG]))


async def _write(name: str, row: Row, turn: Turn) -> None:
    granted = replace(row, granted=_server_now(), start=turn.start, finish=turn.finish)
    try:
        await (await api()).request(
            "PATCH", "/variables/name/{name}", path_params={"name": name}, json={"value": _value(granted)}
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        await _create(name, granted)  # it was skipped just now


async def _remove(name: str) -> None:
    with contextlib.suppress(Exception):  # another process removes it too
        await (await api()).request("DELETE", "/variables/name/{name}", path_params={"name": name})


async def _read(prefix: str) -> list[Row]:
    client, found = await api(), list[Row]()
    while True:
        wanted = {"name": {"like_": f"{prefix}-"}, "tags": {"all_": [_TAG]}}
        page = (
            await client.request(
                "POST", "/variables/filter", json={"variables": wanted, "limit": _PAGE, "offset": len(found)}
            )
        ).json()
        found += [_row(one["name"].removeprefix(f"{prefix}-"), one["value"]) for one in page]
        if len(page) < _PAGE:
            return found


def _row(name: str, value: Any) -> Row:
    facts: dict[str, Any] = value if isinstance(value, dict) else {}

    def number(key: str) -> float:
        return float(facts[key]) if isinstance(facts.get(key), int | float) else 0.0

    granted = number("granted") if facts.get("granted") is not None else None
    return Row(name, str(facts.get("team") or ""), number("since"), granted, number("start"), number("finish"))


async def read_queue(crn: str) -> list[Row]:
    """Read all tickets and recent grants of an account. Runs on the network loop.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    return await _read(_prefix(crn))
