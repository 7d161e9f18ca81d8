"""An instance that cannot be read: no command gives an all-clear for it, and none waits for it as a flow would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from flows.sweep_sessions import sweep_sessions
from flows.usage_report import usage_report
from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.cli.options import ATTENDED
from prefect_qruntime.client import client as client_module
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import exit_code

pytestmark = pytest.mark.server

READING = ("backends", "jobs", "sessions", "sweep", "usage")
ALL_CLEAR = ("No session is open", "nothing was left behind", "every one belongs")


@pytest.fixture
def blocks(sandbox: Sandbox) -> tuple[str, str]:
    """A block whose instance answers, and one whose key the service does not know."""
    QuantumRuntimeCredentials(**sandbox.connection()).save("unread-live", overwrite=True)
    wrong = {**sandbox.connection(), "api_key": "no-key-0123456789"}
    QuantumRuntimeCredentials(**wrong).save("unread-dead", overwrite=True)
    return "unread-live", "unread-dead"


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("together", [True, False])
def test_what_could_not_be_read_is_not_known(
    blocks: tuple[str, str], capsys: pytest.CaptureFixture[str], command: str, together: bool
) -> None:
    names = blocks if together else blocks[1:]
    assert exit_code(command, *(word for name in names for word in ("--block", name))) == 1
    shown = capsys.readouterr()
    out = " ".join(shown.out.split())
    assert out.endswith("Incomplete: what the instance of unread-dead has is not known, because it could not be read.")
    assert not any(claim in out for claim in ALL_CLEAR)
    assert "unread-dead: " in shown.err


@pytest.mark.parametrize("command", READING)
def test_an_answer_of_all_instances_is_not_called_incomplete(
    blocks: tuple[str, str], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert exit_code(command, "--block", blocks[0]) == 0
    assert "Incomplete" not in capsys.readouterr().out


@pytest.mark.parametrize("command", READING)
def test_json_names_what_could_not_be_read(
    blocks: tuple[str, str], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert exit_code(command, "--json", "--block", blocks[0], "--block", blocks[1]) == 1
    told = json.loads(capsys.readouterr().out)
    if isinstance(told, list):
        assert [row["block"] for row in told if "problem" in row] == ["unread-dead"]
    else:
        assert told["unread"] == ["unread-dead"]
        assert {problem.split(":")[0] for problem in told["problems"]} == {"unread-dead"}


def test_setup_does_not_say_that_no_block_is_saved_if_one_cannot_be_loaded(
    blocks: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect_qruntime.cli import operations

    async def none_loads(blocks: Any) -> Any:
        return {}, {"unread-dead": "unread-dead: it has a wrong field."}

    monkeypatch.setattr(operations, "load_each", none_loads)
    assert exit_code("setup") == 1
    assert "nothing was done" in capsys.readouterr().out
    assert exit_code("setup", "--json") == 1
    assert json.loads(capsys.readouterr().out) == [
        {"blocks": "unread-dead", "problem": "unread-dead: it has a wrong field."}
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RetryDeadlines | None]]:
    """How patient each request to the service was."""
    found: list[RetryDeadlines | None] = []
    service_of = client_module.service_of

    def noting(connection: Any, patience: RetryDeadlines | None = None) -> Any:
        found.append(patience)
        return service_of(connection, patience)

    monkeypatch.setattr(client_module, "service_of", noting)
    return found


NONE_KNOWS = "d0123456789abcdefghij"


@pytest.mark.parametrize(
    "words",
    [
        *READING,
        f"sessions --close {NONE_KNOWS}",
        *(f"{name} {NONE_KNOWS}" for name in ("result", "cancel")),
        f"compare {NONE_KNOWS} {NONE_KNOWS}",
    ],
)
def test_a_command_gives_up_after_some_seconds(
    blocks: tuple[str, str], asked: list[RetryDeadlines | None], words: str
) -> None:
    exit_code(*words.split(), "--block", blocks[0])
    assert asked
    assert set(asked) == {ATTENDED.patience}
    assert ATTENDED.patience.token + ATTENDED.patience.read <= 15


@pytest.mark.parametrize("reading", [sweep_sessions, usage_report])
def test_an_unattended_flow_is_patient(
    blocks: tuple[str, str], asked: list[RetryDeadlines | None], reading: Any
) -> None:
    reading([blocks[0]])
    assert set(asked) == {None}


def test_a_command_says_what_it_waits_for(
    blocks: tuple[str, str], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(ATTENDED), "after", property(lambda self: 0.0), raising=False)
    exit_code("jobs", "--block", blocks[0])
    assert re.search(r"^Waiting for the instance of unread-live …$", capsys.readouterr().err, re.MULTILINE)
