"""What happens to a lock's row that Prefect does not take back when it is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import Variable

from prefect_qruntime.admission import locks
from prefect_qruntime.admission.lock_core import Row
from tests.support.virtual_clock import clock, run


class Server:
    """A Prefect with one lock, which fails until a moment of the virtual clock; each answer takes a second."""

    def __init__(self, holder: str, failure: Exception, until: float) -> None:
        self.row: Row | None = Row("0199aaaa-0000-7000-8000-000000000001", holder)
        self.failure, self.until = failure, until
        self.asked = 0
        self.free = asyncio.Event()

    async def _answer(self) -> None:
        self.asked += 1
        await asyncio.sleep(1.0)
        if clock() < self.until:
            raise self.failure

    async def request(self, method: str, path: str, *, path_params: dict[str, str]) -> None:
        await self._answer()
        assert (method, path) == ("DELETE", "/variables/{id}")
        if self.row is None or path_params != {"id": self.row.id}:
            request = httpx.Request(method, "http://prefect")
            raise httpx.HTTPStatusError("gone", request=request, response=httpx.Response(404, request=request))
        self.row = None
        self.free.set()

    async def read_variable_by_name(self, name: str) -> Variable | None:
        await self._answer()
        value = None if self.row is None else {"holder": self.row.holder, "beat": 0, "who": "we"}
        return None if self.row is None else Variable(id=self.row.id, name=name, value=value)


def failures() -> list[Any]:
    request = httpx.Request("DELETE", "http://prefect")
    answers = [httpx.Response(status, request=request) for status in (500, 401)]
    refusals = [httpx.HTTPStatusError("x", request=request, response=answer) for answer in answers]
    return [httpx.ConnectError("refused"), httpx.ReadTimeout("silent"), TimeoutError(), *refusals]


@pytest.mark.parametrize("minutes", [0, 1, 2, 10, 50])
@pytest.mark.parametrize("failure", failures(), ids=repr)
@pytest.mark.parametrize("way", ["given back", "withdrawn"])
def test_a_row_is_removed_as_soon_as_prefect_takes_it(
    way: str, failure: Exception, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        server = Server("ours-0", failure, until=60.0 * minutes)

        async def api() -> Server:
            return server

        monkeypatch.setattr(locks, "api", api)
        if way == "given back":
            assert server.row is not None
            await locks._release("qruntime-submit-1", server.row.id)
        else:
            locks._withdraw_later("qruntime-submit-1", "ours")
        assert clock() <= locks._RELEASE, "the flow goes on"
        await server.free.wait()
        assert clock() <= 60.0 * minutes + locks._AGAIN[1] + 5.0
        assert server.asked <= 12 + 2 * minutes + 2

    run(story())


def test_it_ends_after_an_hour_and_leaves_another_holders_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        server = Server("another-0", httpx.ConnectError("refused"), until=60.0)

        async def api() -> Server:
            return server

        monkeypatch.setattr(locks, "api", api)
        locks._withdraw_later("qruntime-submit-1", "ours")
        await locks._release("qruntime-submit-1", "0199aaaa-0000-7000-8000-000000000002")
        await asyncio.sleep(600.0)
        assert server.row is not None
        server.until = float("inf")
        locks._withdraw_later("qruntime-submit-1", "another")
        asked = server.asked
        await asyncio.sleep(2 * locks._GIVE_BACK)
        assert asked < server.asked < asked + 200
        asked = server.asked
        await asyncio.sleep(locks._GIVE_BACK)
        assert server.asked == asked

    run(story())


@pytest.mark.parametrize("number", [0, 1, 199, 200, 201, 450])
def test_all_locks_are_read_however_many_there_are(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(place: int) -> dict[str, Any]:
        name = f"qruntime-budget-{place:04}"
        value = {"holder": "one", "beat": 0, "who": "we"}
        return {"id": name, "name": name, "value": value, "tags": [locks._TAG], "updated": "2026-01-01T00:00:00Z"}

    class Pages:
        async def request(self, method: str, path: str, *, json: dict[str, Any]) -> httpx.Response:
            assert (method, path) == ("POST", "/variables/filter")
            begin = json.get("offset", 0)
            return httpx.Response(200, json=[row(place) for place in range(number)][begin : begin + json["limit"]])

    async def api() -> Any:
        return Pages()

    monkeypatch.setattr(locks, "api", api)
    assert [one.name for one in asyncio.run(locks.read_locks())] == [f"qruntime-budget-{n:04}" for n in range(number)]
