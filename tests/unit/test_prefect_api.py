"""Prefect is asked again while its API fails in passing, and for a bounded time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, get_args, get_origin
from uuid import uuid4

import httpx
import pytest
from hypothesis import given, strategies as st
from prefect.blocks.core import Block, block_schema_to_key
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Pending, Running, Scheduled
from prefect.utilities.callables import parameter_schema
from prefect.utilities.dispatch import lookup_type
from prefect.utilities.schema_tools import validate
from pydantic import SecretStr
from tenacity import wait_none

from prefect_qruntime import QuantumRuntimeCredentials, blocks, load_credentials, prefect_api
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.prefect_api import Loadable, NotAwaited, is_ending, is_passing, patience, patiently

REQUEST = httpx.Request("GET", "http://127.0.0.1/api/flows")


def status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(str(code), request=REQUEST, response=httpx.Response(code, request=REQUEST))


def conflict(method: str, path: str) -> httpx.HTTPStatusError:
    request = httpx.Request(method, f"http://127.0.0.1/api/{path}")
    return httpx.HTTPStatusError("409", request=request, response=httpx.Response(409, request=request))


PASSING = (
    [conflict("POST", "artifacts/"), conflict("GET", "flow_run_states/"), conflict("POST", "flow_runs/filter")]
    + [status(code) for code in (407, 408, 425, 429, 499, 500, 501, 502, 503, 504, 505, 520, 525, 530)]
    + [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("closed"),
        httpx.DecodingError("no gzip"),
    ]
)


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_api, "wait_random_exponential", lambda **_: wait_none())


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_asked_again(error: Exception) -> None:
    asked: list[int] = []

    async def ask() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise error
        return "answer"

    assert asyncio.run(patiently(ask)) == "answer"
    assert len(asked) == 3


@pytest.mark.parametrize(
    "error", [*(status(code) for code in (400, 401, 403, 404, 422, 423)), conflict("POST", "variables/"), ValueError()]
)
def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    asked: list[int] = []

    async def ask() -> None:
        asked.append(1)
        raise error

    assert not is_passing(error)
    with pytest.raises(type(error)):
        asyncio.run(patiently(ask))
    assert asked == [1]


@pytest.mark.parametrize("silent", [False, True], ids=["errors", "silence"])
def test_the_patience_has_an_end(silent: bool) -> None:
    async def ask() -> None:
        if silent:
            await asyncio.sleep(60)
        raise status(500)

    async def bounded() -> None:
        with patience(0.3):
            await patiently(ask)

    began = time.monotonic()
    with pytest.raises((TimeoutError, httpx.HTTPStatusError)):
        asyncio.run(bounded())
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("year", ["2026", "99999999999"])
@pytest.mark.parametrize("zone", ["GMT", "-0000", "+9999", "+99999999999999999999"])
def test_an_odd_date_of_an_answer_fails_no_request(year: str, zone: str) -> None:
    clock = prefect_api._Clock()
    clock.learn(f"Thu, 01 Jan {year} 00:00:00 {zone}")
    assert (clock.offset is None) == (year != "2026" or "99" in zone)


FOREIGN: dict[str, Any] = {
    "page": {"html": "<html>Log in</html>"},
    "empty page": {"html": ""},
    "page as JSON": {"content": b"<html>", "headers": {"content-type": "application/json"}},
    "text": {"text": "ok"},
    "cut": {"content": b'[{"id": "'},
    "two": {"content": b"[][]"},
}
ODD = [(status, name) for status in (200, 201, 203, 400, 403, 404, 409, 418, 422, 503) for name in FOREIGN]


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize(("status", "name"), ODD)
def test_an_answer_that_is_not_prefects_own_is_an_outage(method: str, status: int, name: str) -> None:
    answers = [httpx.Response(status, **FOREIGN[name]), httpx.Response(204), httpx.Response(200, json={})]
    if method != "GET":
        answers.pop()
    assert network_loop().run(_asked(method, "variables/name/lock", answers)) in (200, 204)
    assert answers == []


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("path", ["flow_run_states/", "artifacts/filter", "variables/filter", "flow_runs/filter"])
@pytest.mark.parametrize("body", ["{}", "null", "true", '"ok"', '{"detail": "maintenance"}'])
def test_something_else_in_place_of_a_list_of_prefects_is_an_outage(path: str, body: str) -> None:
    answers = [httpx.Response(200, text=body), httpx.Response(200, json=[])]
    assert network_loop().run(_asked("POST", path, answers)) == 200
    assert answers == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_prefects_own_refusal_is_final(status: int) -> None:
    answers = [httpx.Response(status, json={"detail": "no"})]
    with pytest.raises(httpx.HTTPStatusError):
        network_loop().run(_asked("POST", "variables/", answers))


@pytest.mark.parametrize("status", [401, 413, 414, 431])
def test_a_refusal_that_no_repetition_helps_is_final_as_a_page_too(status: int) -> None:
    answers = [httpx.Response(status, html="<html>no</html>"), httpx.Response(200, json={})]
    with pytest.raises(httpx.HTTPStatusError):
        network_loop().run(_asked("PATCH", "artifacts/1", answers))


async def _asked(method: str, path: str, answers: list[httpx.Response]) -> int:
    """Send one request as Prefect's client does, which raises for each refusal."""

    async def refuse(answer: httpx.Response) -> None:
        await answer.aread()
        answer.raise_for_status()

    transport = httpx.MockTransport(lambda request: answers.pop(0))
    raw: Any = httpx.AsyncClient(transport=transport, event_hooks={"response": [refuse]})
    raw.enable_csrf_support = False
    prefect_api._send_patiently(SimpleNamespace(_client=raw))  # type: ignore[arg-type]
    async with raw:
        answer: httpx.Response = await raw.request(method, f"http://prefect/api/{path}")
        return answer.status_code


class _Saved:
    """A block as Prefect loads it: while a loop runs, `load` returns a coroutine."""

    @classmethod
    def load(cls, name: str, *, at_once: bool = True) -> Any:
        async def load() -> str:
            return f"the block {name}"

        return f"the block {name}" if at_once else load()


class SomeCredentials(Loadable, _Saved):  # type: ignore[misc]
    """A block of ours."""


def test_a_block_that_was_not_awaited_says_what_to_write() -> None:
    loaded: Any = SomeCredentials.load("mine", at_once=False)
    assert isinstance(loaded, NotAwaited)
    assert "`await SomeCredentials.load('mine')`, or `load_credentials('mine')`" in repr(loaded)
    assert not hasattr(loaded, "_repr_html_"), "what only asks what it is does no harm"
    for name in ("get_client", "verify", "crn"):
        with pytest.raises(InvalidInput, match="An event loop runs here"):
            getattr(loaded, name)


def test_a_block_is_loaded_at_once_or_awaited() -> None:
    assert SomeCredentials.load("mine") == "the block mine"  # type: ignore[comparison-overlap]

    async def wait() -> Any:
        loaded: Any = SomeCredentials.load("mine", at_once=False)
        return await loaded

    assert asyncio.run(wait()) == "the block mine"


def test_a_block_is_registered_by_its_slug_without_its_schema() -> None:
    for name in blocks.__all__:
        kind = getattr(blocks, name)
        # What Prefect's own would find in the whole schema, which takes as long as a third of all imports.
        assert kind.__dispatch_key__() == block_schema_to_key(kind._to_block_schema())
        assert kind.__dispatch_key__.__func__ is Loadable.__dispatch_key__.__func__
        assert lookup_type(Block, kind.__dispatch_key__()) is kind


@pytest.mark.parametrize("name", blocks.__all__)
@pytest.mark.parametrize("optional", [False, True])
def test_a_reference_to_a_saved_block_is_a_parameter_of_a_flow(name: str, optional: bool) -> None:
    """What the form's picker sends; Prefect's server refuses what could be both a reference and the block's fields."""
    kind = getattr(blocks, name)

    def flow(block: Any) -> None: ...

    flow.__annotations__["block"] = kind | None if optional else kind
    schema = parameter_schema(flow).model_dump_for_openapi()
    reference = {"$ref": {"block_document_id": str(uuid4())}}
    assert validate({"block": reference}, schema) == []
    assert validate({"block": {"$ref": {}}}, schema)
    if not kind.model_json_schema().get("required"):  # a block of this kind may arrive by its fields: it has no key
        assert validate({"block": kind().model_dump(mode="json")}, schema) == []


@pytest.mark.parametrize("name", [None, 7, ["ibm"], QuantumRuntimeCredentials])
def test_what_is_no_name_of_a_block_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInput, match="must be the name of a saved Quantum Runtime Credentials block") as caught:
        load_credentials(name)
    assert caught.value.field == "name"


BEGAN = datetime(2026, 5, 1, tzinfo=UTC)
LIVES = st.lists(st.sampled_from([Scheduled, Pending, Running, AwaitingRetry, Cancelling, Cancelled]), max_size=7)


@given(LIVES, st.randoms())
def test_a_run_that_was_cancelled_is_so_until_it_is_scheduled_again(life: list[Any], random: Any) -> None:
    states = [make(scheduled_time=BEGAN) if make is AwaitingRetry else make() for make in life]
    for number, state in enumerate(states):
        state.timestamp = BEGAN + timedelta(seconds=number)
    ending, before = False, None
    for make in life:
        by_itself = make is Running or (before is Running and make in (Scheduled, AwaitingRetry))
        ending, before = make in (Cancelling, Cancelled) or (ending and by_itself), make
    random.shuffle(states)
    assert is_ending(states) is ending


CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/1111:2222::"
TEXTS = {
    (block, name)
    for block in vars(blocks).values()
    if isinstance(block, type) and issubclass(block, Loadable)
    for name, one in block.model_fields.items()
    if not one.is_required()
    and get_origin(one.annotation) is not list
    and {str, SecretStr} & {one.annotation, *get_args(one.annotation)}
}
"""Each optional text of each block."""


def test_the_optional_texts_of_blocks_are_found() -> None:
    assert {name for _, name in TEXTS} >= {
        "session",
        "submission_key",
        "program_id",
        "proxy",
        "application",
        "base_url",
    }


@pytest.mark.parametrize("emptied", ["", "  "])
@pytest.mark.parametrize(
    ("block", "name"), [pytest.param(*one, id=f"{one[0].__name__}-{one[1]}") for one in sorted(TEXTS, key=str)]
)
def test_a_text_that_was_emptied_in_a_form_is_not_given(block: Any, name: str, emptied: str) -> None:
    credentials = {"api_key": "k" * 20, "crn": CRN}
    needed = credentials if "crn" in block.model_fields else {"credentials": credentials, "backend": "b"}
    assert getattr(block(**needed, **{name: emptied}), name) == block.model_fields[name].default


@pytest.mark.parametrize("name", ["api_key", "crn"])
def test_a_needed_text_that_was_emptied_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        blocks.QuantumRuntimeCredentials(**{"api_key": "k" * 20, "crn": CRN, name: ""}).get_client()
    assert caught.value.field == name
