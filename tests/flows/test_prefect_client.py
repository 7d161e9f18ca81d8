"""One Prefect client for everybody on the network loop, however many ask first at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from prefect_qruntime import orchestration
from prefect_qruntime.client.home import home

pytestmark = pytest.mark.server


def test_first_callers_at_the_same_moment_share_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in home().shared if name.startswith("prefect:")]:
        monkeypatch.delitem(home().shared, name)
    opened: list[object] = []
    get_client = orchestration.get_client

    def counted(**options: object) -> object:
        opened.append(get_client(**options))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(orchestration, "get_client", counted)

    async def callers() -> None:
        first = asyncio.create_task(orchestration.api())
        others = [asyncio.create_task(orchestration.api()) for _ in range(7)]
        await asyncio.sleep(0)
        first.cancel()  # takes the client from nobody
        found = {id(client) for client in await asyncio.gather(*others)}
        assert found == {id(opened[0])}

    home().run(callers())
    assert len(opened) == 1
