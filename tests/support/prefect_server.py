"""A real Prefect server on a free port, in a process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import prefect
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled

from tests.support.prefect_calls import asked

START_LIMIT = 600.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PrefectServer:
    """A running server.

    Attributes:
        url: Its API address.
        home: Its PREFECT_HOME, shared with the tests' processes.
        env: Environment for processes that are to use it.
        log: What the server wrote.
    """

    url: str
    home: Path
    env: dict[str, str] = field(repr=False)
    log: Path = field(repr=False)


# Each of Prefect's many clients reads the list of authorities, which takes 20 ms; nothing here is reached over TLS.
SHORT_TRUST = {"PREFECT_API_SSL_CERT_FILE": str(Path(__file__).with_name("authority.pem"))}


def outside_prefect() -> dict[str, str]:
    """This process's environment without Prefect's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def migrate(home: Path) -> None:
    """Put a new database into a server's home, so that its start finds no migrations to run.

    They take two thirds of a first start, so one database of this version of Prefect is kept and copied.
    """
    kept = ROOT / ".pytest_cache" / f"prefect-{prefect.__version__}.db"
    kept.parent.mkdir(exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            making = kept.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            env = {**outside_prefect(), "PREFECT_HOME": str(making)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (making / "prefect.db").rename(kept)
            shutil.rmtree(making)
    shutil.copy(kept, home / "prefect.db")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the Prefect server ended with {server.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not start:\n{log.read_text()[-3000:]}")


def withdraw_runs() -> None:
    """Cancel all flow runs that are not over, so that the worker of another test takes none of them."""

    async def withdraw(client: PrefectClient) -> None:
        over = FlowRunFilterStateType(not_any_=list(TERMINAL_STATES))
        left = FlowRunFilter(state=FlowRunFilterState(type=over))
        while flow_runs := await client.read_flow_runs(flow_run_filter=left):
            for flow_run in flow_runs:
                await client.set_flow_run_state(flow_run.id, Cancelled(), force=True)

    asked(withdraw)


def forget_sessions(home: Path) -> None:
    """Delete what tests recorded of their sessions, which their sandbox has forgotten.

    The service says of such a session that it does not know it, and closing it waits until that is certain.
    """
    from prefect_qruntime.client.network_loop import network_loop
    from prefect_qruntime.observability.artifacts import find_records
    from prefect_qruntime.observability.run_page import flush
    from prefect_qruntime.prefect_api import api

    async def forget() -> None:
        await flush()  # else a late write makes a record again
        client = await api()
        for record in await find_records("session"):
            await client.delete_artifact(record.artifact_id)

    network_loop().run(forget())
    for note in (home / "qruntime" / "sessions").glob("*.json"):
        note.unlink()


def forget_records(home: Path) -> None:
    """Delete what tests left on the server for those of the next module: blocks, records, limits, unfinished runs.

    A sweep or a list that is given no block looks at all of them, and their sandbox has forgotten its sessions.
    """
    from prefect_qruntime.client.network_loop import network_loop
    from prefect_qruntime.credentials import QuantumRuntimeCredentials, saved_blocks
    from prefect_qruntime.prefect_api import api

    async def forget() -> None:
        client = await api()
        for name in await saved_blocks():
            await QuantumRuntimeCredentials.adelete(name, client=client)
        for limit in await client.read_global_concurrency_limits(limit=200):
            if not limit.name.startswith("deployment:"):  # Prefect's own, which belong to their deployments
                await client.delete_global_concurrency_limit_by_name(limit.name)

    withdraw_runs()  # first: Prefect answers 500 to the end of a run whose limit is gone
    network_loop().run(forget())
    forget_sessions(home)
    forget_pages(home)


def forget_pages(home: Path) -> None:
    """Delete the pages of jobs, of which sweeps and lists read all that are recent.

    In the database itself: by Prefect's API that is a request for each, which takes longer than reading them again.
    """
    if "QRUNTIME_TEST_DATABASE_URL" in os.environ:
        return
    with closing(sqlite3.connect(home / "prefect.db", timeout=60)) as database, database:
        for table in ("artifact", "artifact_collection"):
            database.execute(f"DELETE FROM {table} WHERE key LIKE 'qruntime-%'")


@contextmanager
def running_server(folder: Path, *, plain: bool = False) -> Iterator[PrefectServer]:
    """Run a server with `folder` as its home; the calling process uses it, too.

    Args:
        folder: Its home.
        plain: Start it as `prefect server start` does, not as `prefect-qruntime server`.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {
        **outside_prefect(),
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "DO_NOT_TRACK": "1",
        **SHORT_TRUST,
    }
    if database := os.environ.get("QRUNTIME_TEST_DATABASE_URL"):
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    else:
        migrate(folder)
    log = folder / "server.log"
    started = ["-m", "prefect"] if plain else [str(Path(__file__).with_name("collecting_server.py"))]
    command = [sys.executable, *started, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(url, server, log)
        # In the environment, because Prefect's logging and event threads read the global settings.
        with pytest.MonkeyPatch.context() as patch:
            # What this process's clean-up sends after the session finds no server and starts none.
            os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
            for name in set(env) - set(os.environ) | {name for name in env if name.startswith("PREFECT_")}:
                patch.setenv(name, env[name])
            refresh_global_settings_context()
            yield PrefectServer(url=url, home=folder, env=env, log=log)
            from prefect_qruntime.client.network_loop import network_loop
            from prefect_qruntime.observability.run_page import drain

            network_loop().run(drain())  # what the last tests' flows have to write
            # Whatever Prefect still has to send goes out while there is a server: at exit it would start another.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself, which has been reported
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
