"""Several instances are read at once, and a person who waits is told for which."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.credentials import Attended, QuantumRuntimeCredentials, read_each
from prefect_qruntime.errors import ServiceUnavailable


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


def test_blocks_of_one_instance_are_read_one_after_the_other() -> None:
    inside: list[str] = []

    async def one(name: str, client: QuantumRuntimeClient) -> None:
        inside.append(name)
        await asyncio.sleep(0)
        assert inside == [name]
        inside.clear()

    asyncio.run(read_each({name: block(ONE) for name in "abc"}, {}, one))


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
