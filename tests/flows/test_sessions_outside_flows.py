"""Sessions that a script or notebook opened outside any flow: noted, listed, drained at its end, else swept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from prefect import flow

import prefect_qruntime as qr
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.operations.session_listing import close_by_id, list_sessions
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.run_context import process_facts, process_is_gone
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks.session_notes import session_notes
from tests.support.command_line import command
from tests.support.flow_runs import BACKEND, FLIP, until
from tests.support.prefect_server import PrefectServer, forget_sessions

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
BLOCK = "outside"
ROOT = Path(__file__).resolve().parents[2]
NO_SERVER = "http://127.0.0.1:9/api"


@pytest.fixture
def control(sandbox: Sandbox, prefect_server: PrefectServer) -> Iterator[Any]:
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    sandbox.control.hold()
    yield sandbox.control
    sandbox.control.release()
    forget_sessions(prefect_server.home)


@contextmanager
def opener(
    server: PrefectServer, sandbox: Sandbox, mode: str, says: str = "OPEN ", within: Sequence[str] = ()
) -> Iterator[Any]:
    """The script, with the session's id as `.session`; in the modes of no task without a Prefect API."""
    command = [sys.executable, "-m", "tests.support.session_opener", json.dumps(sandbox.connection("cloud")), mode]
    env = {"PREFECT_API_URL": NO_SERVER}
    if not mode.endswith("-fn"):
        command, env = [*command, BLOCK], {}
    process: Any = subprocess.Popen(
        [*within, *command],
        env={**server.env, "PYTHONPATH": str(ROOT), **env},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        while line and not line.startswith(says):
            line = process.stdout.readline()
        assert line.startswith(says), process.stderr.read()[-3000:]
        process.session = line.split()[-1]
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def killed(process: Any) -> None:
    process.kill()
    process.wait(30)


def notes() -> list[Any]:
    return network_loop().run(session_notes())


@pytest.mark.parametrize("mode", ["stay", "stay-inside", "stay-fn"])
def test_killed_its_session_is_listed_and_swept(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, mode: str
) -> None:
    with opener(prefect_server, sandbox, mode) as script:
        (note,) = [one for one in notes() if one.meta.get("session") == script.session]
        assert (note.path is not None) is (mode == "stay-fn")
        assert note.is_gone is False
        secret = sandbox.connection("cloud")["api_key"]
        assert secret not in (note.path.read_text() if note.path else str(dict(note.meta)))
        if note.path is not None:
            assert note.path.stat().st_mode & 0o077 == 0

        (listed,) = [one for one in list_sessions([BLOCK]).sessions if one.id == script.session]
        assert (listed.process_state, listed.unfinished_jobs) == ("running", 1)
        assert str(script.pid) in (listed.process or "")
        assert run_sweep([BLOCK], cancel_jobs=True).sessions == [], "its process lives"
        assert control.session(script.session)["accepting_jobs"] is True

        killed(script)
    (listed,) = [one for one in list_sessions([BLOCK]).sessions if one.id == script.session]
    assert listed.process_state == "ended"
    dry = run_sweep([BLOCK], dry_run=True)
    assert [(entry.id, entry.action) for entry in dry.sessions] == [(script.session, "would be drained")]
    assert not dry.is_clean
    assert control.session(script.session)["accepting_jobs"] is True

    report = run_sweep([BLOCK])
    assert [(entry.id, entry.flow_run) for entry in report.sessions] == [(script.session, None)]
    assert report.is_clean, report
    assert control.session(script.session)["accepting_jobs"] is False
    assert control.jobs()[0]["status"] == "Queued", "its job may be fetched by id"
    control.release()
    control.wait_job(control.jobs()[0]["id"])
    assert until(lambda: control.open_sessions() == [])
    assert run_sweep([BLOCK]).sessions == []
    assert script.session not in [one.meta.get("session") for one in notes()]


@pytest.mark.parametrize("mode", ["leave", "leave-fn"])
def test_left_open_by_a_process_that_ends_it_is_drained(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, mode: str
) -> None:
    with opener(prefect_server, sandbox, mode) as script:
        _, errors = script.communicate(timeout=300)
        assert script.returncode == 0, errors
    assert control.session(script.session)["accepting_jobs"] is False
    assert control.jobs()[0]["status"] == "Queued"
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", ["stay", "stay-inside", "stay-async", "stay-fn"])
def test_a_signal_that_ends_its_process_drains_it_first(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, mode: str, number: signal.Signals
) -> None:
    with opener(prefect_server, sandbox, mode) as script:
        script.send_signal(number)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == (-number if number == signal.SIGTERM else 128 + number), errors
    assert control.session(script.session)["accepting_jobs"] is False
    assert control.jobs()[0]["status"] == "Queued"
    assert "Traceback" not in errors


def test_the_first_process_of_a_container_ends_too_once_its_session_is_drained(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    """The kernel lets no signal end it for which it has no handler."""
    container = ("unshare", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("no process id space can be made here")
    with opener(prefect_server, sandbox, "stay-fn", within=container) as script:
        (first,) = psutil.Process(script.pid).children()
        first.send_signal(signal.SIGTERM)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == 128 + signal.SIGTERM, errors
    assert control.session(script.session)["accepting_jobs"] is False


def test_a_terminal_that_is_closed_sends_sighup_twice(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    with opener(prefect_server, sandbox, "stay") as script:
        control.add_fault("PATCH", "/sessions/*", delay=3)
        script.send_signal(signal.SIGHUP)
        assert until(lambda: control.journal("PATCH", "/sessions/*"))
        script.send_signal(signal.SIGHUP)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == 128 + signal.SIGHUP, errors
    assert control.session(script.session)["accepting_jobs"] is False


def opens_at(sandbox: Sandbox, dialect: str) -> str:
    """Where a session is opened in a dialect, to which the block leads from now on."""
    qr.QuantumRuntimeCredentials(**sandbox.connection(dialect)).save(BLOCK, overwrite=True)
    return "/sessions" if dialect == "cloud" else "/jobs"


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_a_signal_while_it_is_opened_drains_it_as_soon_as_it_is_open(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, dialect: str
) -> None:
    opening = opens_at(sandbox, dialect)
    control.add_fault("POST", opening, delay=3)
    with opener(prefect_server, sandbox, "open", says="OPENING") as script:
        assert until(lambda: control.journal("POST", opening))
        script.send_signal(signal.SIGTERM)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == -signal.SIGTERM, errors
    (session,) = control.sessions()
    assert session["accepting_jobs"] is False


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_killed_before_it_knows_its_session_it_is_swept(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, dialect: str
) -> None:
    """The service has accepted the request that opens it, in the legacy dialect its first job."""
    opening = opens_at(sandbox, dialect)
    control.add_fault("POST", opening, status=503, after_handler=True)
    control.add_fault("GET", opening if dialect == "legacy" else "/workloads", delay=300)
    control.release()
    with opener(prefect_server, sandbox, "open", says="OPENING") as script:
        assert until(control.open_sessions)
        killed(script)
    control.clear_faults()
    (session,) = control.open_sessions()
    assert [(one.id, one.flow_state) for one in run_sweep([BLOCK]).sessions] == [(session["id"], "Ended")]
    assert until(lambda: control.open_sessions() == [])
    assert run_sweep([BLOCK]).sessions == []
    assert [one.meta for one in notes()] == []


def test_an_interrupted_opening_leaves_nothing_open_and_nothing_to_report(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    control.add_fault("POST", "/sessions", delay=1)
    with opener(prefect_server, sandbox, "open", says="OPENING") as script:
        assert until(lambda: control.journal("POST", "/sessions"))
        script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=300)
    assert "KeyboardInterrupt" in errors
    assert "could not be closed" not in errors
    assert control.open_sessions() == []


@pytest.mark.parametrize("mode", ["handled", "forked", "twice"])
def test_a_signal_ends_a_process_as_before_if_it_has_a_handler_or_is_a_fork_or_comes_again(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any, mode: str
) -> None:
    with opener(prefect_server, sandbox, mode) as script:
        if mode == "twice":
            control.add_fault("PATCH", "/sessions/*", delay=300)
            script.send_signal(signal.SIGTERM)
            assert until(lambda: control.journal("PATCH", "/sessions/*"))
        script.send_signal(signal.SIGTERM)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == (7 if mode == "handled" else -signal.SIGTERM), errors
    if mode == "forked":
        assert "children ended by {15}" in errors


def test_closed_by_its_process_it_leaves_no_note(prefect_server: PrefectServer, sandbox: Sandbox, control: Any) -> None:
    control.release()
    with opener(prefect_server, sandbox, "close") as script:
        _, errors = script.communicate(timeout=300)
        assert script.returncode == 0, errors
    assert until(lambda: control.open_sessions() == [])
    run_sweep([BLOCK])
    assert script.session not in [one.meta.get("session") for one in notes()]


def test_a_session_of_another_host_is_left_alone_until_it_has_outlived_its_limit(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    with opener(prefect_server, sandbox, "stay-fn") as script:
        killed(script)
    (note,) = [one for one in notes() if one.meta.get("session") == script.session]
    note.path.write_bytes(orjson.dumps({**note.meta, "host": "elsewhere"}))
    assert [one.process_state for one in list_sessions([BLOCK]).sessions] == ["unknown"]
    assert run_sweep([BLOCK]).sessions == []
    assert control.session(script.session)["accepting_jobs"] is True


def test_a_flow_that_uses_the_session_of_a_dead_script_keeps_it_open(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    with opener(prefect_server, sandbox, "stay") as script:
        seen: list[Any] = []

        @flow
        def guest() -> None:
            qr.submit_job(qr.load_credentials(BLOCK), [FLIP], backend=BACKEND, session=script.session, shots=3)
            killed(script)
            seen.append(run_sweep([BLOCK]).sessions)

        guest()
    assert seen == [[]]
    assert [entry.id for entry in run_sweep([BLOCK]).sessions] == [script.session]


def test_without_a_block_that_leads_to_it_the_sweep_says_so(
    prefect_server: PrefectServer, sandbox: Sandbox, control: Any
) -> None:
    with opener(prefect_server, sandbox, "stay-fn") as script:
        killed(script)
    (note,) = [one for one in notes() if one.meta.get("session") == script.session]
    note.path.write_bytes(orjson.dumps({**note.meta, "crn": "crn:v1:bluemix:public:quantum-computing:x:a/y:z::"}))
    report = run_sweep()
    assert not report.is_clean
    assert any(script.session in problem and "no saved" in problem for problem in report.problems)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"opened": 1}', b'{"opened": "x"}', b"\xff", b"{" * 70_000])
def test_a_file_that_is_no_note_is_passed_over(prefect_server: PrefectServer, control: Any, content: bytes) -> None:
    folder = prefect_server.home / "qruntime" / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0011223344556677.json").write_bytes(content)
    assert run_sweep([BLOCK]).problems == []


def test_which_process_is_gone() -> None:
    here = process_facts()
    assert process_is_gone(here) is False
    assert process_is_gone({**here, "started": "1"}) is True, "its id was given to another process"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert process_is_gone({**here, "pid": str(child.pid)}) is True
    assert process_is_gone({**here, "host": "elsewhere"}) is None
    assert process_is_gone({**here, "space": "pid:[1]"}) is None, "another container"
    assert process_is_gone({**here, "boot": "another", "machine": "another"}) is None
    assert process_is_gone({}) is None
    assert process_is_gone({**here, "pid": "../1"}) is None


def wide_command(server: PrefectServer, *words: str) -> Any:
    return command({**server.env, "COLUMNS": "140"}, *words)


def test_the_command_lists_and_closes(prefect_server: PrefectServer, sandbox: Sandbox, control: Any) -> None:
    credentials = qr.load_credentials(BLOCK)
    client = credentials.get_client()
    foreign = client.run(client.open_session(BACKEND, mode="dedicated", max_ttl=600))
    job = client.run(client.jobs())
    assert job == []
    shown = wide_command(prefect_server, "sessions", "--block", BLOCK)
    assert shown.returncode == 0, shown.stderr
    assert "not known here" in shown.stdout
    rows = json.loads(wide_command(prefect_server, "sessions", "--block", BLOCK, "--json").stdout)["sessions"]
    assert [(row["id"], row["process"], row["flow_run_id"]) for row in rows] == [(foreign.id, None, None)]

    closed = wide_command(prefect_server, "sessions", "--close", foreign.id)
    assert (closed.returncode, "is closed" in closed.stdout) == (0, True), closed.stderr
    assert control.open_sessions() == []
    again = wide_command(prefect_server, "sessions", "--close", "no-such-session")
    assert (again.returncode, "no-such-session" in again.stderr) == (1, True)
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("drop", [False, True])
def test_closing_by_id_drains_unless_told_to_drop(control: Any, drop: bool) -> None:
    @flow
    def left_open() -> Any:
        credentials = qr.load_credentials(BLOCK)
        session = qr.open_session(credentials, BACKEND, max_ttl=600)
        qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
        return session

    session = left_open()
    (listed,) = list_sessions([BLOCK]).sessions
    assert (listed.id, listed.flow_run_state, listed.unfinished_jobs) == (session.id, "Completed", 1)
    block, read = close_by_id(session.id, drain=not drop)
    assert block == BLOCK
    assert read.is_closed is drop
    assert control.jobs()[0]["status"] == ("Cancelled" if drop else "Queued")
