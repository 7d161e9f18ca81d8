"""One Prefect client for all callers on the network loop, however many ask first at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from prefect_qruntime import prefect_api
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.prefect_api import _Clients

pytestmark = pytest.mark.server


def test_first_callers_at_the_same_moment_share_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    network_loop().forget(_Clients)
    opened: list[object] = []
    get_client = prefect_api.get_client

    def counted(**options: object) -> object:
        opened.append(get_client(**options))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(prefect_api, "get_client", counted)

    async def callers() -> None:
        first = asyncio.create_task(prefect_api.api())
        others = [asyncio.create_task(prefect_api.api()) for _ in range(7)]
        await asyncio.sleep(0)
        first.cancel()  # takes the client from nobody
        found = {id(client) for client in await asyncio.gather(*others)}
        assert found == {id(opened[0])}

    network_loop().run(callers())
    assert len(opened) == 1
