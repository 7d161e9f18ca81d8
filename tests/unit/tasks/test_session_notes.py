"""Notes of sessions in files: what a full or read-only disk does to them, and how old they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import SessionRef
from prefect_qruntime.tasks import session_notes

TOKEN = "0011223344556677"
WANTED = SessionRef(mode="dedicated", backend="b", max_ttl=600, token=TOKEN)
CREDENTIALS: Any = None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes go in a process without a Prefect API."""
    settings = SimpleNamespace(api=SimpleNamespace(url=None), home=tmp_path)
    monkeypatch.setattr(session_notes, "get_current_settings", lambda: settings)
    monkeypatch.setattr(session_notes, "_instance", lambda _: {"crn": "c"})
    monkeypatch.setattr(session_notes, "_drain_at_exit", lambda *_: None)
    return tmp_path / "qruntime" / "sessions"


def note(session: SessionRef) -> None:
    async def drain(*_: Any) -> bool:
        return True

    network_loop().run(session_notes.note(CREDENTIALS, TOKEN, session, drain=drain))


def noted(folder: Path) -> dict[str, str] | None:
    path = folder / f"{TOKEN}.json"
    return orjson.loads(path.read_bytes()) if path.exists() else None


def kept() -> dict[str, Any]:
    async def opened() -> dict[str, Any]:
        return session_notes._notes().opened

    return network_loop().run(opened())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["mkdir", "open", "fsync", "replace", "unlink"])
def test_a_disk_that_takes_no_note_stops_an_opening_and_nothing_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, code: int
) -> None:
    """Each step fails in its turn: before the session is opened, when it is open, at its first job, at its end."""
    real: Callable[..., Any] = getattr(os, name)
    broken = False

    def call(path: Any, *rest: Any, **named: Any) -> Any:
        if broken and (isinstance(path, int) or str(path).startswith(str(folder))):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, name, call)
    is_open = WANTED.model_copy(update={"id": "s1", "state": "open"})
    steps: list[Callable[[], None]] = [
        lambda: note(WANTED),
        lambda: note(is_open),
        lambda: network_loop().run(session_notes.note_first_job(TOKEN, "k")),
        lambda: note(is_open.model_copy(update={"state": "closed"})),
    ]
    for failing in range(len(steps)):
        for number, step in enumerate(steps):
            broken, before = number == failing, noted(folder)
            refused: QuantumRuntimeError | None = None
            try:
                step()
            except QuantumRuntimeError as error:
                refused = error
            if refused is not None:
                assert (number, failing) == (0, 0), "nothing is open yet"
                assert os.strerror(code) in str(refused)
                assert refused.solution is not None
                break
            if broken and noted(folder) == before and before is not None:
                assert os.strerror(code) in caplog.text
        broken = False
        (folder / f"{TOKEN}.json").unlink(missing_ok=True)
        assert TOKEN not in kept()


@pytest.mark.parametrize("first_job", [True, False])
def test_a_note_is_as_old_as_its_last_change_if_a_job_opens_its_session(folder: Path, first_job: bool) -> None:
    """The first job may be submitted a day later. Any other session begins with its note, whose file may be copied."""
    note(WANTED)
    if first_job:
        network_loop().run(session_notes.note_first_job(TOKEN, "k"))
    path = folder / f"{TOKEN}.json"
    long_ago = datetime.now(UTC) - timedelta(days=3)
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "opened": long_ago.isoformat()}))
    (found,) = network_loop().run(session_notes.session_notes([]))
    assert found.opened_at == long_ago
    assert found.record.updated is not None
    assert (found.record.updated == long_ago) is not first_job
    assert (datetime.now(UTC) - found.record.updated < timedelta(hours=1)) is first_job
    note(WANTED.model_copy(update={"state": "closed"}))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_note_that_cannot_be_removed_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    note(WANTED)
    (found,) = network_loop().run(session_notes.session_notes([]))
    with monkeypatch.context() as patched:

        def unlink(path: Any, **_: Any) -> None:
            raise OSError(code, os.strerror(code), str(path))

        patched.setattr(os, "unlink", unlink)
        network_loop().run(found.mark_closed())
    assert os.strerror(code) in caplog.text
    note(WANTED.model_copy(update={"state": "closed"}))
