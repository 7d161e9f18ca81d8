"""Several instances are read at once, and a person who waits is told for which."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence

import pytest
from pydantic import SecretStr

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.credentials import Attended, QuantumRuntimeCredentials, read_each, that_sees
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    ServiceUnavailable,
)
from prefect_qruntime.observability.artifacts import Place


def block(instance: str) -> QuantumRuntimeCredentials:
    crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/0123456789abcdef0123456789abcdef:{instance}::"
    return QuantumRuntimeCredentials(api_key="unit-tests-key-0123456789", crn=crn)  # type: ignore[arg-type]


ONE, TWO = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


@pytest.mark.timeout(30)
def test_an_instance_that_does_not_answer_delays_no_other() -> None:
    async def reading() -> tuple[dict[str, str], dict[str, str]]:
        read, problems = asyncio.Event(), dict[str, str]()

        async def one(name: str, client: QuantumRuntimeClient) -> str:
            if name == "dead":
                await read.wait()
                raise ServiceUnavailable("It does not answer.")
            read.set()
            return name.upper()

        return await read_each({"dead": block(ONE), "live": block(TWO)}, problems, one), problems

    found, problems = asyncio.run(reading())
    assert found == {"live": "LIVE"}
    assert problems == {"dead": "dead: It does not answer."}


@pytest.mark.parametrize("pasted", [("", ""), (" ", ""), ("", "  ")])
def test_blocks_of_one_instance_are_read_one_after_the_other(pasted: tuple[str, str]) -> None:
    inside: list[str] = []
    plain = block(ONE)
    with_blanks = QuantumRuntimeCredentials(api_key=plain.api_key, crn=plain.crn.join(pasted))

    async def one(name: str, client: QuantumRuntimeClient) -> None:
        inside.append(name)
        await asyncio.sleep(0)
        assert inside == [name]
        inside.clear()

    asyncio.run(read_each({"a": plain, "b": with_blanks, "c": plain}, {}, one))


@pytest.mark.parametrize("patience", [None, RetryDeadlines(token=1.0, read=2.0)])
def test_a_person_who_waits_is_told_for_which_and_waits_for_a_short_time(patience: RetryDeadlines | None) -> None:
    async def reading() -> list[Sequence[str]]:
        told, said = list[Sequence[str]](), asyncio.Event()

        def report(blocks: Sequence[str]) -> None:
            told.append(blocks)
            said.set()

        async def one(name: str, client: QuantumRuntimeClient) -> None:
            assert client._patience == patience
            if name == "slow" and patience is not None:
                await said.wait()

        attended = Attended(report, after=0.0, patience=patience) if patience is not None else None
        await read_each({"fast": block(ONE), "slow": block(TWO)}, {}, one, attended)
        return told

    assert asyncio.run(reading()) == ([["slow"]] if patience is not None else [])


@pytest.mark.parametrize("trouble", [AuthenticationError, ServiceUnavailable, NotFound, PermissionDenied])
def test_a_block_that_cannot_be_asked_hides_none_that_sees_the_job(trouble: type[QuantumRuntimeError]) -> None:
    private = block(ONE).model_copy(update={"base_url": "https://private.quantum.cloud.ibm.com/api/v1"})
    place = Place("deleted", block(ONE).get_client().connection.instance)
    reached = {
        name: one
        for name, one in (("a", private), ("b", block(ONE)))
        if place.is_reached(one.get_client().connection, name)
    }

    async def read(client: QuantumRuntimeClient) -> None:
        if client.connection.host.startswith("private."):
            raise trouble("no")

    assert asyncio.run(that_sees(place, {place: reached}, read)) == "b"
    if trouble in (AuthenticationError, ServiceUnavailable):
        assert asyncio.run(that_sees(place, {place: {"a": private}}, read)) == "a"


_HALVES = ("A-key-that", "-looks-like-one-0123456789")  # put together in no frame of the test


@pytest.mark.parametrize(
    "wrong",
    [
        *({"api_key": form} for form in ("'{}'", "{} x", "{}\nx", "crn:{}", "{}\u200b")),
        *({"api_key": "{}", name: value} for name, value in (("crn", "x"), ("base_url", "http://x"), ("proxy", "{}"))),
    ],
    ids=str,
)
def test_a_refused_key_or_password_is_in_no_frame_of_the_error(wrong: dict[str, str]) -> None:
    fields = {name: value.format("".join(_HALVES)) for name, value in wrong.items()}
    changes = {name: SecretStr(value) if name in ("api_key", "proxy") else value for name, value in fields.items()}
    credentials = block(ONE).model_copy(update=changes)
    del fields
    with pytest.raises(InvalidInput) as caught:
        credentials.get_client()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    assert "".join(_HALVES) not in "".join(shown)
