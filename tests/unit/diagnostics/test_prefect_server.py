"""What doctor says of Prefect's database and of locks in it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from prefect_qruntime.admission import lock_core, locks
from prefect_qruntime.admission.locks import LockState
from prefect_qruntime.diagnostics import prefect_server
from prefect_qruntime.operations import sweep


class Server:
    """Answers as a Prefect server does about its settings and its running flows."""

    def __init__(self, database: dict[str, Any], running: int = 0) -> None:
        self.database, self.running = database, running

    async def request(self, method: str, path: str, **_: Any) -> httpx.Response:
        body: Any = {"server": {"database": self.database}} if path == "/admin/settings" else self.running
        return httpx.Response(200, json=body)


@pytest.mark.parametrize(
    ("database", "running", "level", "words"),
    [
        ({"driver": "postgresql+asyncpg"}, 500, "ok", "postgresql"),
        ({"driver": "sqlite+aiosqlite"}, 3, "ok", "enough for a few"),
        ({"driver": "sqlite+aiosqlite"}, 50, "hint", "50 flow runs"),
        ({"connection_url": "sqlite+aiosqlite:////p.db"}, 50, "hint", "`prefect-qruntime server`"),
        ({"connection_url": "**********"}, 50, "ok", "does not say"),
        ({}, 50, "ok", "does not say"),
    ],
)
def test_many_flows_on_a_plain_server(database: dict[str, Any], running: int, level: str, words: str) -> None:
    finding = asyncio.run(prefect_server._database(Server(database, running)))  # type: ignore[arg-type]
    assert finding.level == level
    assert words in str(finding)


def held(silent: float) -> LockState:
    return LockState("qruntime-submit-1", "flow run f, process 1 on host", silent, "row-1")


@pytest.mark.parametrize(
    ("there", "level", "words"),
    [
        ([], "ok", "None"),
        ([held(20)], "ok", "1 held"),
        ([held(4000), held(1)], "hint", "1 lock of submission keys or budgets was left"),
    ],
)
def test_a_lock_that_was_left(monkeypatch: pytest.MonkeyPatch, there: list[LockState], level: str, words: str) -> None:
    async def read() -> list[LockState]:
        return there

    monkeypatch.setattr(prefect_server, "read_locks", read)
    finding = asyncio.run(prefect_server._locks(Server({})))  # type: ignore[arg-type]
    assert finding.level == level
    assert words in str(finding)
    if level == "hint":
        assert "process 1 on host, silent for 4000 s" in str(finding)
        assert "sweep" in finding.fix
        assert f"takes it over after {lock_core.SILENCE:.0f} s" in finding.fix


def test_the_sweep_frees_only_what_was_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    removed: list[str] = []

    async def read() -> list[LockState]:
        return [held(4000), LockState("qruntime-submit-2", "a living one", 5.0, "row-2")]

    async def remove(row_id: str) -> None:
        removed.append(row_id)

    monkeypatch.setattr(locks, "read_locks", read)
    monkeypatch.setattr(locks, "_remove", remove)
    asyncio.run(sweep._free_locks())
    assert removed == ["row-1"]


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("BUDGT_BLOCK", "budget_block"),
        ("POLICY", "policy_block"),
        ("create_rate_per_minutes", "create_rate_per_minute"),
    ],
)
def test_a_variable_that_is_no_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, similar: str) -> None:
    monkeypatch.setenv(f"PREFECT_INTEGRATIONS_QRUNTIME_{name}", "research")
    (found,) = [one for one in prefect_server.check_settings() if one.level == "problem"]
    assert found.finding == f"PREFECT_INTEGRATIONS_QRUNTIME_{name.upper()} is not a setting, so it has no effect."
    assert found.fix.startswith(f"Did you mean '{similar}'?")
