"""The rows of shares: several waiting submissions over one table, one that dies, one whose row is taken away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.schemas.actions import VariableCreate

from prefect_qruntime import QuantumRuntimePolicy
from prefect_qruntime.admission import guard as module, share_core
from prefect_qruntime.admission.policy import TeamShare, Tenant
from prefect_qruntime.admission.share_core import Share
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.run_context import RunContext

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
HERE = Connection(api_key="unit-test-key", crn=CRN, base_url="http://127.0.0.1:9/api/v1")
WHERE = RunContext("f1", "flow-run:f1", False, False, 1, 0.0)


class Table:
    """Prefect's variables."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.down = False

    async def create_variable(self, wanted: VariableCreate) -> None:
        await self._pass()
        assert wanted.name not in self.rows
        self.rows[wanted.name] = wanted.value

    async def request(self, method: str, path: str, **given: Any) -> Any:
        await self._pass()
        if path == "/variables/filter":
            prefix = given["json"]["variables"]["name"]["like_"]
            found = [{"name": name, "value": value} for name, value in self.rows.items() if name.startswith(prefix)]
            return SimpleNamespace(json=lambda: found[given["json"]["offset"] :][: given["json"]["limit"]])
        name = given["path_params"]["name"]
        if name not in self.rows:
            request = httpx.Request(method, "http://127.0.0.1")
            raise httpx.HTTPStatusError("gone", request=request, response=httpx.Response(404, request=request))
        if method == "DELETE":
            del self.rows[name]
        else:
            self.rows[name] = given["json"]["value"]
        return None

    async def _pass(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise httpx.ConnectError("down")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """Prefect, with a policy of two teams, a rate of two in half a second, and little patience."""
    found = Table()

    async def api() -> Table:
        return found

    async def none(crn: str) -> list[Any]:
        return []

    monkeypatch.setattr(module, "api", api)
    monkeypatch.setattr(module, "shared_limits", none)
    monkeypatch.setattr(module, "now", time.monotonic)
    monkeypatch.setattr(share_core, "QUICKEST", 0.01)
    monkeypatch.setattr(share_core, "PATIENCE", 0.3)
    return found


async def wait(team: str, turns: list[str], number: int = 1) -> None:
    shares = {"a": Share(3.0), "b": Share(1.0)}
    for _ in range(number):
        await module._wait(HERE, "q", team, shares, (2, 0.5))
        turns.append(team)


def test_two_teams_get_turns_by_weight(table: Table) -> None:
    turns: list[str] = []

    async def main() -> None:
        await asyncio.gather(wait("a", turns, 6), wait("a", turns, 6), wait("b", turns, 2), wait("b", turns, 2))

    asyncio.run(main())
    assert sorted(turns) == ["a"] * 12 + ["b"] * 4
    assert turns[:8].count("b") in (2, 3), turns
    assert all(value["granted"] for value in table.rows.values())
    assert len(table.rows) < 16  # spent ones were removed


def test_a_ticket_left_by_a_dead_process_is_removed_and_a_living_one_renews_its_own(table: Table) -> None:
    turns: list[str] = []
    table.rows["q-dead"] = {"team": "b", "since": 0.0, "granted": None, "start": 0.0, "finish": 0.0}
    table.rows["q-also"] = {"team": "b", "since": 0.0, "granted": None, "start": 0.0, "finish": 0.0}

    async def main() -> None:
        waiting = asyncio.create_task(wait("b", turns))
        while len(table.rows) < 3:  # noqa: ASYNC110  what is waited for is the state itself
            await asyncio.sleep(0.001)
        mine = next(name for name in table.rows if name not in ("q-dead", "q-also"))
        del table.rows[mine]
        await waiting

    asyncio.run(main())
    assert turns == ["b"]
    assert "q-dead" not in table.rows
    assert "q-also" not in table.rows


def test_a_cancelled_wait_leaves_no_ticket(table: Table) -> None:
    table.rows["q-g"] = {"team": "a", "since": 0.0, "granted": time.monotonic() + 1e6, "start": 0.0, "finish": 1.0}
    table.rows["q-h"] = {"team": "a", "since": 0.0, "granted": time.monotonic() + 1e6, "start": 1.0, "finish": 2.0}

    async def main() -> None:
        waiting = asyncio.create_task(wait("b", []))
        while len(table.rows) < 3:  # noqa: ASYNC110  what is waited for is the state itself
            await asyncio.sleep(0.001)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert set(table.rows) == {"q-g", "q-h"}


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> list[QuantumRuntimePolicy]:
    """A flow run of team a, and the policy that holds."""
    policies = [QuantumRuntimePolicy(shares=[TeamShare(name="a", tag="team-a")])]

    async def policy() -> QuantumRuntimePolicy | None:
        return policies[0]

    async def tenant(*args: Any) -> Tenant:
        return Tenant(tags=frozenset({"team-a"}))

    monkeypatch.setattr(module, "policy_in_force", policy)
    monkeypatch.setattr(module, "tenant_of", tenant)
    monkeypatch.setattr(module, "in_run", lambda: True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "5")
    return policies


def test_a_turn_that_is_not_used_is_given_back(table: Table, in_a_run: Any) -> None:
    async def main(error: Exception | None) -> None:
        with contextlib.suppress(ValueError):
            async with module.share_turn(HERE, WHERE, None):
                assert [row["team"] for row in table.rows.values()] == ["a"]
                if error is not None:
                    raise error

    asyncio.run(main(ValueError("no room")))
    assert table.rows == {}
    asyncio.run(main(None))
    assert len(table.rows) == 1


def test_without_prefect_or_without_shares_nothing_waits(
    table: Table, in_a_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with module.share_turn(HERE, WHERE, None):
            assert table.rows == {}

    table.down = True
    asyncio.run(main())
    table.down = False
    in_a_run[0] = QuantumRuntimePolicy()
    asyncio.run(main())
    monkeypatch.delenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE")  # a host without a pace
    asyncio.run(main())
