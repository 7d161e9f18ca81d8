"""The most common mistakes, made: the messages are the table of docs/troubleshooting.md.

Each message says what happened, what it means and what to do. `QRUNTIME_TROUBLESHOOTING=write` writes the table anew.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import prefect_qruntime as qr
from prefect_qruntime.cli import main
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.sandbox import Sandbox
from tests.docs.blocks import ROOT

pytestmark = pytest.mark.server
PAGE = ROOT / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- mistakes: begin -->", "<!-- mistakes: end -->"
BACKEND = "sandbox_ideal"
BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'


class World:
    """An instance with a saved block, and what mistakes are made of."""

    def __init__(self, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
        self.sandbox, self.capsys = sandbox, capsys
        self.connection = sandbox.connection("cloud")
        self.credentials = qr.QuantumRuntimeCredentials(**self.connection)
        self.credentials.save("nightly-qpu", overwrite=True)

    def block(self, **wrong: Any) -> qr.QuantumRuntimeCredentials:
        """The block with something wrong, saved as one is in the UI."""
        made = qr.QuantumRuntimeCredentials(**{**self.connection, **wrong})
        made.save("wrong-in-the-form", overwrite=True)
        return made

    def submit(self, circuit: Any = BELL, **options: Any) -> Any:
        """Submit one job."""
        return qr.submit_job(self.credentials, [circuit], **{"backend": BACKEND, **options})

    def crn(self, place: int, part: str) -> str:
        """The instance's CRN with another part at a place."""
        parts = self.connection["crn"].split(":")
        parts[place] = part
        return ":".join(parts)


def no_server(world: World) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{held.getsockname()[1]}/api"}):
            sys.argv = ["prefect-qruntime", "jobs"]
            main()


def no_time_left(world: World) -> None:
    world.sandbox.control.set_usage(consumed=600, limit=600)
    world.submit()


def too_short_a_wait(world: World) -> None:
    world.sandbox.control.hold()
    try:
        qr.wait_for_completion(world.credentials, world.submit(), timeout=0.2)
    finally:
        world.sandbox.control.release()


def dedicated_on_the_open_plan(world: World) -> None:
    world.sandbox.control.set_option("allow_dedicated", False)
    try:
        qr.open_session(world.credentials, BACKEND)
    finally:
        world.sandbox.control.set_option("allow_dedicated", True)


MISTAKES: dict[str, Callable[[World], Any]] = {
    "No Prefect server runs, or `PREFECT_API_URL` is wrong": no_server,
    "The block's name is misspelt": lambda world: qr.load_credentials("nigthly-qpu"),
    "The block's name was passed in place of the block": lambda world: qr.submit_job(
        "nightly-qpu",  # type: ignore[arg-type]
        [BELL],
        backend=BACKEND,
    ),
    "The API key was copied with a line break": lambda world: world.block(api_key="abc\ndef").get_client(),
    "The API key is deleted, or of another account": lambda world: qr.authenticate(
        world.block(api_key="no-such-key-0123456789")
    ),
    "The block itself was passed as a parameter of a deployment": lambda world: world.block(
        api_key="********"
    ).get_client(),
    "The CRN was copied with quotes": lambda world: world.block(crn=f'"{world.connection["crn"]}"'),
    "The CRN is that of another IBM Cloud service": lambda world: world.block(crn=world.crn(4, "cloud-object-storage")),
    "The CRN names a region that the service does not have": lambda world: qr.QuantumRuntimeCredentials(
        api_key="any", crn=world.crn(5, "us-west")
    ),
    "The CRN is that of a deleted instance": lambda world: qr.select_backend(
        world.block(crn=world.crn(7, "11111111-2222-4333-8444-555555555555"))
    ),
    "The backend's name is misspelt": lambda world: world.submit(backend="sandbox_idael"),
    "The circuit is not in the backend's instruction set": lambda world: world.submit(
        BELL.replace("h q[0];", "ccx q[0], q[1], q[2];").replace("qubit[2]", "qubit[3]"), check_isa=True
    ),
    "The circuit's text has a typo": lambda world: world.submit(BELL.replace("h q[0];", "h q[0]")),
    "The sampler was given an observable": lambda world: world.submit((BELL, "ZZ")),
    "The plan has no dedicated sessions": dedicated_on_the_open_plan,
    "The instance has no QPU time left": no_time_left,
    "The wait was shorter than the queue": too_short_a_wait,
    "The job's id is of another instance": lambda world: qr.wait_for_completion(
        world.credentials, "d0000000000000000000"
    ),
    "A form names a file outside the allowed folders": lambda world: qr.circuit_text("file:/etc/bell.qasm"),
}


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """The rows that the mistakes gave."""
    return []


@pytest.fixture
def world(sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sys, "argv", ["prefect-qruntime"])
    return World(sandbox, capsys)


def steady(text: str, world: World) -> str:
    """A message without what is different in each run."""
    for value, shown in (
        (world.sandbox.url.removeprefix("http://"), "HOST"),
        (str(Path.cwd()), "/home/me/flows"),
    ):
        text = text.replace(value, shown)
    text = re.sub(r"\b127\.0\.0\.1:\d+", "127.0.0.1:4200", text)
    text = re.sub(r", trace [^\s,()]+|trace [^\s,()]+, ", "", text)
    text = re.sub(r"\bd[0-9a-v]{19}\b", "JOB_ID", text)
    text = re.sub(r"Saved (?:is|are): [^.]*\.", "Saved are: nightly-qpu, weekly.", text)  # others' tests save some too
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_explained(world: World, rows: list[str], title: str) -> None:
    with pytest.raises((QuantumRuntimeError, ValueError, SystemExit)) as caught:
        MISTAKES[title](world)
    error = caught.value
    text = steady(world.capsys.readouterr().err if isinstance(error, SystemExit) else str(error), world)
    rows.append(f"| {title} | {text.replace('|', '&#124;').replace('<', '&lt;')} |")
    assert "Traceback" not in text
    said = re.sub(r" \((?:HTTP|code)[^)]*\)(?= |$)", "", text)
    assert re.search(r"[.!?]$|https?://\S+$", said), "the last sentence has no stop"
    assert len(re.findall(r"[.?!:](?: |$)", said)) >= 2, "it says what happened, but not what to do"
    assert world.connection["api_key"] not in text


def test_the_page_has_what_the_mistakes_gave(rows: list[str]) -> None:
    assert len(rows) == len(MISTAKES) >= 15, "run the whole file"
    table = "\n".join(["| what went wrong | what you read |", "|---|---|", *rows])
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
    if os.environ.get("QRUNTIME_TROUBLESHOOTING") == "write":
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "run this file with QRUNTIME_TROUBLESHOOTING=write and read what changed"
