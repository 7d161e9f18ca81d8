"""Large results in real flow runs: a reference travels, the content stays in a file or in the result storage."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore

from prefect_qruntime import (
    JobResult,
    NotFound,
    QuantumRuntimeCredentials,
    afetch_results,
    fetch_results,
    result_storage,
    run_job,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport import spool
from prefect_qruntime.observability import notifications
from prefect_qruntime.result_storage import SharedJobResult, _Reading as Fetches
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, ran, requests, run, task_runs, until
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server

SHOTS = 20_000  # some 120 kB of samples
COUNTS = {"1": SHOTS}


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_MEMORY_LIMIT_BYTES", "10000")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_DIRECTORY", str(tmp_path / "large"))
    return tmp_path / "large"


@flow
def one_job(credentials: QuantumRuntimeCredentials, **more: Any) -> JobResult:
    return run_job(credentials, [FLIP], backend=BACKEND, shots=SHOTS, **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_large_result_is_a_small_reference(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, prefect_server: PrefectServer
) -> None:
    result = one_job(credentials)
    assert result.file is not None
    assert Path(result.file.path).parent == prefect_server.home / "qruntime" / "results"
    assert result.file.size > 100_000
    again = pickle.loads(pickle.dumps(result))
    from_json = JobResult.model_validate_json(result.model_dump_json())
    assert again.counts() == from_json.counts() == result.counts() == COUNTS
    assert again == result
    assert len(pickle.dumps(result)) < 4000  # also after it was decoded
    assert len(result.model_dump_json()) < 4000
    Path(result.file.path).unlink()


def test_a_file_that_vanished_is_said_and_fetched_again(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path
) -> None:
    result = one_job(credentials)
    assert result.file is not None
    Path(result.file.path).unlink()
    with pytest.raises(NotFound) as caught:
        result.counts()
    assert f"fetch_results(credentials, {result.job_id!r})" in str(caught.value.solution)
    assert fetch_results.fn(credentials, result.job_id).counts() == COUNTS
    # The same name again, so the old reference works too.
    assert result.counts() == COUNTS


@pytest.fixture
def shared_storage(tmp_path: Path, prefect_server: PrefectServer) -> LocalFileSystem:
    storage = LocalFileSystem(basepath=str(tmp_path / "shared"))
    storage.save(f"shared-{uuid4().hex[:8]}", _sync=True)  # type: ignore[call-arg]
    return storage


READ = """
import asyncio, sys
from uuid import UUID
from prefect.client.orchestration import get_client

async def result():
    async with get_client() as client:
        found = await client.read_flow_run(UUID(sys.argv[1]))
        return await found.state.aresult()

found = asyncio.run(result())
assert not found.file or not __import__("pathlib").Path(found.file.path).exists()
print(found.counts())
"""


def test_another_machine_reads_it_from_the_shared_storage(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    prefect_server: PrefectServer,
    folder: Path,
    shared_storage: LocalFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = one_job.with_options(persist_result=True, result_storage=shared_storage)
    found, state = ran(kept, credentials)
    result = run(state.aresult())
    assert isinstance(result, SharedJobResult)
    storage = tmp_path / "shared"
    pieces = [path for path in storage.iterdir() if path.name.startswith("qruntime-result-")]
    assert len(pieces) == result.storage_pieces == 1
    others = [path for path in storage.iterdir() if path not in pieces]
    assert others
    assert max(path.stat().st_size for path in others) < 5000
    # The other machine: the same server and storage, but a home of its own and none of our files.
    assert result.file is not None
    Path(result.file.path).unlink()
    env = {
        **prefect_server.env,
        "PREFECT_HOME": str(tmp_path / "other-home"),
        "PREFECT_INTEGRATIONS_QRUNTIME_RESULT_DIRECTORY": str(tmp_path / "other-large"),
    }
    command = [sys.executable, "-c", READ, str(found.id)]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert shown.stdout.strip() == str(COUNTS), shown.stderr
    assert len(names(tmp_path / "other-large")) == 1
    # Copies of one reference share the file that the first of them brought here.
    fetches = []
    read = ResultStore.aread
    monkeypatch.setattr(ResultStore, "aread", lambda self, *args: fetches.append(args) or read(self, *args))
    assert [result.model_copy().counts() for _ in range(2)] == [COUNTS, COUNTS]
    assert len(fetches) == result.storage_pieces
    for path in folder.iterdir():
        path.unlink()
    # The limit holds on this way, too.
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_SIZE_LIMIT_BYTES", "50000")
        with pytest.raises(NotFound, match="larger than 50000 bytes"):
            result.model_copy().counts()
    # A damaged piece is no result.
    pieces[0].write_bytes(pieces[0].read_bytes().replace(b"A", b"B"))
    with pytest.raises(NotFound, match="the result storage does not"):
        result.model_copy().counts()


def test_the_default_storage_gives_it_back_too(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_storage, "_PIECE", 50_000)
    result = one_job.with_options(persist_result=True)(credentials)
    assert isinstance(result, SharedJobResult)
    assert result.storage_pieces == 3
    assert result.file is not None
    Path(result.file.path).unlink()
    assert pickle.loads(pickle.dumps(result)).counts() == COUNTS


def test_a_storage_of_no_use_costs_no_result(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(result: JobResult) -> JobResult:
        raise OSError("no such bucket")

    monkeypatch.setattr(result_storage, "share", broken)
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))
    result = one_job.with_options(persist_result=True)(credentials)
    assert result.counts() == COUNTS
    assert any("no such bucket" in text and str(folder) in text for text in said)


def test_a_small_private_result_leaves_no_file(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path
) -> None:
    @flow
    def small() -> list[dict[str, int]]:
        job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True)
        wait_for_completion(credentials, job)
        return [fetch_results(credentials, job).counts(), fetch_results(credentials, job.id).counts()]

    assert small() == [{"1": 5}, {"1": 5}]
    assert requests(sandbox, "GET", "/jobs/*/results") == 1
    assert folder.exists()
    assert names(folder) == []


@pytest.mark.parametrize("shots", [5, SHOTS])
@pytest.mark.parametrize("keeps", ["nothing", "half"])
def test_a_storage_that_loses_a_private_result_without_an_error_costs_no_copy(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    keeps: str,
    shots: int,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))
    write = LocalFileSystem.awrite_path

    async def lossy(storage: LocalFileSystem, path: str, content: bytes) -> str:
        if keeps == "half":
            await write(storage, path, content[: len(content) // 2])
        return path

    @flow
    def first() -> list[str]:
        return [run_job(credentials, [FLIP], backend=BACKEND, shots=shots, private=True).job_id]

    @flow
    def again(job_id: str) -> dict[str, int]:
        return fetch_results(credentials, job_id).counts()

    with monkeypatch.context() as odd:
        odd.setattr(LocalFileSystem, "awrite_path", lossy)
        (job_id,) = first()
    (kept,) = folder.iterdir()
    (text,) = [text for text in said if "could not be stored" in text]
    assert str(kept) in text
    assert "input_value" not in text, "the content is private"
    assert again(job_id) == {"1": shots}
    assert requests(sandbox, "GET", "/jobs/*/results") == 1


@pytest.mark.parametrize("shots", [5, SHOTS])
@pytest.mark.parametrize("method", ["awrite_path", "aread_path"])
@pytest.mark.parametrize("private", [True, False])
def test_a_storage_that_hangs_holds_up_no_result_for_ever(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    folder: Path,
    shared_storage: LocalFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    private: bool,
    method: str,
    shots: int,
) -> None:
    """Before: the fetch did not end, and if the storage blocked its thread, nor did any other work of the process."""
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))
    work, answers = getattr(LocalFileSystem, method), threading.Event()

    async def hangs(storage: LocalFileSystem, path: str, **more: Any) -> Any:
        if "qruntime-" in path:
            answers.wait()
        return await work(storage, path, **more)

    @flow(persist_result=True, result_storage=shared_storage)
    def first() -> tuple[str, dict[str, int]]:
        ref = submit_job(credentials, [FLIP], backend=BACKEND, shots=shots, private=private)
        wait_for_completion(credentials, ref)
        result = fetch_results(credentials, ref)
        return result.job_id, result.counts()

    with monkeypatch.context() as odd:
        odd.setattr(LocalFileSystem, method, hangs)
        odd.setattr(result_storage, "_PATIENCE", 0.5)
        job_id, counts = first()
    answers.set()
    assert counts == {"1": shots}
    late = "did not answer within 0.5 seconds"
    # Only the only copy is read back, and a small result that can be fetched again is not stored apart.
    assert any("could not be stored" in text and late in text for text in said) == (
        private or (shots == SHOTS and method == "awrite_path")
    )
    if private:
        assert len(names(folder)) == 1, "the only copy"
        assert fetch_results(credentials, job_id).counts() == {"1": shots}
        assert requests(sandbox, "GET", "/jobs/*/results") == 1


STORES_AT_THE_END = """
import asyncio, sys, threading, time
from prefect_qruntime import result_storage
from prefect_qruntime.client.network_loop import network_loop
began, hangs = threading.Event(), sys.argv[1] == "hangs"
async def work():
    if sys.argv[1] == "hangs":
        await asyncio.to_thread(time.sleep, 3600)
    elif sys.argv[1] == "has a thread":
        await asyncio.to_thread(int)
    else:
        await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    return "stored"
async def store():
    began.set()
    if hangs:
        result_storage._PATIENCE = 0.2
    while not hangs and threading.main_thread().is_alive():
        await asyncio.sleep(0.01)
    try:
        print(await result_storage._in_storage(work))
    except TimeoutError:
        print("no answer")
async def start():
    task = asyncio.create_task(store())
    network_loop().finish(task, "a result")
    await task
call = asyncio.run_coroutine_threadsafe(start(), network_loop().loop)
began.wait()
if hangs:
    call.result()
"""


@pytest.mark.parametrize("storage", ["has a thread", "resolves a name", "hangs"])
def test_an_ending_process_lets_a_storage_work_and_does_not_wait_for_one_that_hangs(storage: str) -> None:
    """Before: it got no threads of asyncio's, or the process waited for them without end."""
    command = [sys.executable, "-c", STORES_AT_THE_END, storage]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.stdout.strip() == ("no answer" if storage == "hangs" else "stored"), shown.stderr


def test_hundreds_of_results_do_not_use_up_the_file_descriptors() -> None:
    """Before: each had an event loop of its own at the same time."""
    at_work, go = list[int](), threading.Event()

    async def work() -> int:
        at_work.append(1)
        while not go.is_set():  # noqa: ASYNC110  of another loop
            await asyncio.sleep(0.01)
        return at_work.pop()

    async def many() -> int:
        stored = [asyncio.create_task(result_storage._in_storage(work)) for _ in range(100)]
        while len(at_work) < result_storage._AT_ONCE:  # noqa: ASYNC110  of other loops
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        most = len(at_work)
        go.set()
        assert await asyncio.gather(*stored) == [1] * 100
        return most

    assert network_loop().run(many()) == result_storage._AT_ONCE


@pytest.mark.parametrize("shots", [5, SHOTS])
def test_a_private_result_that_no_disk_takes_is_fetched_again_from_the_process(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shots: int,
) -> None:
    """Prefect's home holds both the files and the default storage. Before: a flow that was retried had lost it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_DIRECTORY", str(tmp_path / "file" / "no-folder"))
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))

    async def full(storage: LocalFileSystem, path: str, content: bytes) -> str:
        raise OSError(28, "No space left on device")

    tries: list[str] = []

    @flow(retries=1)
    def twice() -> dict[str, int]:
        result = run_job(credentials, [FLIP], backend=BACKEND, shots=shots, private=True)
        tries.append(result.job_id)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return result.counts()

    with monkeypatch.context() as odd:
        odd.setattr(LocalFileSystem, "awrite_path", full)
        assert twice() == {"1": shots}
    assert sum("memory of this process" in text for text in said) == 2
    assert (credentials.crn, tries[0]) in network_loop().state(Fetches).unstored
    assert fetch_results(credentials, tries[0]).counts() == {"1": shots}  # and stores it now
    assert (credentials.crn, tries[0]) not in network_loop().state(Fetches).unstored
    assert fetch_results(credentials, tries[0]).counts() == {"1": shots}
    assert requests(sandbox, "GET", "/jobs/*/results") == 1
    assert len(sandbox.control.jobs()) == 1


def test_a_private_result_that_the_storage_shows_late_is_not_kept_in_the_process_for_ever(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_DIRECTORY", str(tmp_path / "file" / "no-folder"))

    async def late(storage: LocalFileSystem, path: str) -> bytes:
        raise FileNotFoundError(path)

    @flow
    def first() -> str:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True).job_id

    unstored = network_loop().state(Fetches).unstored
    with monkeypatch.context() as odd:
        odd.setattr(LocalFileSystem, "aread_path", late)
        job_id = first()
    assert (credentials.crn, job_id) in unstored
    assert fetch_results(credentials, job_id).counts() == {"1": 5}
    assert (credentials.crn, job_id) not in unstored


@pytest.mark.parametrize("chosen", [False, True])
def test_a_private_result_on_this_machine_alone_is_warned_of(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    folder: Path,
    shared_storage: LocalFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    chosen: bool,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))

    @flow(result_storage=shared_storage if chosen else None)
    def private() -> str:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True).job_id

    job_id = private()
    warnings = [text for text in said if "only copy" in text]
    assert len(warnings) == (0 if chosen else 1)
    assert all(job_id in text and "result_storage=" in text for text in warnings)


def test_a_large_private_result_is_in_the_storage_too(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path
) -> None:
    @flow
    def large() -> list[JobResult]:
        job = submit_job(credentials, [FLIP], backend=BACKEND, shots=SHOTS, private=True)
        wait_for_completion(credentials, job)
        first = fetch_results(credentials, job)
        assert first.file is not None
        Path(first.file.path).unlink()
        return [first, fetch_results(credentials, job)]

    assert [result.counts() for result in large()] == [COUNTS, COUNTS]
    assert requests(sandbox, "GET", "/jobs/*/results") == 1


@pytest.mark.parametrize("shots", [5, SHOTS])
def test_a_private_result_outlives_a_death_before_it_was_stored(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    shots: int,
) -> None:
    deaths = []
    keep_private = result_storage.keep_private

    async def dies(*args: Any, **kwargs: Any) -> JobResult:
        if not deaths:
            deaths.append(1)
            raise RuntimeError("the process died here")
        return await keep_private(*args, **kwargs)

    monkeypatch.setattr(result_storage, "keep_private", dies)

    @flow(retries=1)
    def twice() -> dict[str, int]:
        return run_job(credentials, [FLIP], backend=BACKEND, shots=shots, private=True).counts()

    assert twice() == {"1": shots}
    assert deaths
    assert requests(sandbox, "GET", "/jobs/*/results") == 1
    assert len(sandbox.control.jobs()) == 1


HOLDS = """
import sys
from prefect_qruntime import QuantumRuntimeCredentials, fetch_results, result_storage

keep_private = result_storage.keep_private

async def held(*args, **kwargs):
    print("received", flush=True)
    sys.stdin.readline()
    return await keep_private(*args, **kwargs)

result_storage.keep_private = held
print(fetch_results(QuantumRuntimeCredentials.load(sys.argv[1]), sys.argv[2]).counts(), flush=True)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_fetch_one_private_result_do_so_one_after_the_other(
    sandbox: Sandbox,
    blocks: Callable[[str], str],
    prefect_server: PrefectServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_MEMORY_LIMIT_BYTES", "1000000")  # the file is removed
    credentials: Any = QuantumRuntimeCredentials.load(blocks("cloud"))
    job = submit_job(credentials, [FLIP], backend=BACKEND, shots=SHOTS, private=True)
    wait_for_completion(credentials, job)
    command = [sys.executable, "-c", HOLDS, blocks("cloud"), job.id]
    env = {**os.environ, **prefect_server.env}
    with (
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first,
        ThreadPoolExecutor(1) as pool,
    ):
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "received\n"
        second = pool.submit(fetch_results, credentials, job)
        wait([second], timeout=3)  # it would take the file of the first and remove it
        if killed:
            first.kill()
        else:
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == f"{COUNTS}\n"
        assert second.result().counts() == COUNTS
    assert requests(sandbox, "GET", "/jobs/*/results") == 1
    assert names(folder) == []


def test_a_private_result_that_another_machine_is_still_receiving_is_waited_for(
    sandbox: Sandbox,
    blocks: Callable[[str], str],
    prefect_server: PrefectServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before: "the service keeps no second copy", and the flow run failed, while the first machine was storing it."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_GRACE_SECONDS", "600")
    credentials: Any = QuantumRuntimeCredentials.load(blocks("cloud"))
    job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True)
    wait_for_completion(credentials, job)
    # They share the result storage, and no folder in which one could lock the other out.
    elsewhere = {"PREFECT_INTEGRATIONS_QRUNTIME_RESULT_DIRECTORY": str(tmp_path / "elsewhere")}
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, blocks("cloud"), job.id],
            env={**os.environ, **prefect_server.env, **elsewhere},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as first,
        ThreadPoolExecutor(1) as pool,
    ):
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "received\n"
        sandbox.control.add_fault("GET", "/jobs/*/results", status=404)
        second = pool.submit(fetch_results, credentials, job)
        assert until(lambda: requests(sandbox, "GET", "/jobs/*/results") == 2)
        wait([second], timeout=3)
        first.stdin.write("\n")
        first.stdin.flush()
        assert second.result().counts() == {"1": 5}
    assert requests(sandbox, "GET", "/jobs/*/results") == 2


TERMINATED = """
import os, signal, sys
from prefect_qruntime import QuantumRuntimeCredentials, client, fetch_results

async def dies(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)

client.QuantumRuntimeClient.result = dies
fetch_results(QuantumRuntimeCredentials.load(sys.argv[1]), sys.argv[2])
"""


def test_a_script_that_is_terminated_has_logged_whose_result_may_be_lost(
    sandbox: Sandbox, blocks: Callable[[str], str], prefect_server: PrefectServer, folder: Path
) -> None:
    """Python ends at once then, without a word; only Prefect's own engine handles the signal."""
    credentials: Any = QuantumRuntimeCredentials.load(blocks("cloud"))
    job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True)
    wait_for_completion(credentials, job)
    ended = subprocess.run(
        [sys.executable, "-c", TERMINATED, blocks("cloud"), job.id],
        env={**os.environ, **prefect_server.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGTERM
    assert re.search(rf"private job {job.id}.*may be lost", ended.stderr + ended.stdout)


def test_a_fetch_that_waits_for_another_process_ends_at_once_when_it_is_cancelled(
    sandbox: Sandbox,
    blocks: Callable[[str], str],
    prefect_server: PrefectServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing was sent for it. What another caller of the process waits for goes on."""
    credentials: Any = QuantumRuntimeCredentials.load(blocks("cloud"))
    job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True)
    wait_for_completion(credentials, job)
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))
    monkeypatch.setattr(spool, "_LOCK_SAID", 0.0)
    command = [sys.executable, "-c", HOLDS, blocks("cloud"), job.id]
    with subprocess.Popen(
        command, env={**os.environ, **prefect_server.env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "received\n"

        async def fetches() -> JobResult:
            one, other, last = [asyncio.create_task(afetch_results(credentials, job)) for _ in range(3)]
            assert await asyncio.to_thread(until, lambda: network_loop().state(Fetches).callers.total() == 3)
            for cancelled in (one, other):
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
            first.stdin.write("\n")
            first.stdin.flush()
            return await last

        async def alone() -> None:
            cancelled = asyncio.create_task(afetch_results(credentials, job))
            assert await asyncio.to_thread(until, lambda: said)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert not network_loop().state(Fetches)._tasks

        asyncio.run(alone())
        assert asyncio.run(fetches()).counts() == {"1": 5}
    assert not [text for text in said if "interrupted" in text]
    assert requests(sandbox, "GET", "/jobs/*/results") == 1
    assert not network_loop().state(Fetches).callers


def test_a_wait_for_the_copy_of_another_machine_ends_at_once_when_it_is_cancelled(
    sandbox: Sandbox, blocks: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is on its way to this process. Before: 10 s, and the log said that it is received and stored."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_RESULT_GRACE_SECONDS", "600")
    credentials: Any = QuantumRuntimeCredentials.load(blocks("cloud"))
    job = submit_job(credentials, [FLIP], backend=BACKEND, shots=5, private=True)
    wait_for_completion(credentials, job)
    said: list[str] = []
    monkeypatch.setattr(notifications, "log_to_run", lambda text, **_: said.append(text))
    sandbox.control.add_fault("GET", "/jobs/*/results", status=404)
    fetches = network_loop().state(Fetches)

    async def cancelled() -> None:
        one = asyncio.create_task(afetch_results(credentials, job))
        assert await asyncio.to_thread(
            until, lambda: requests(sandbox, "GET", "/jobs/*/results") == 1 and not fetches.locked
        )
        assert not one.done()
        assert names(folder) == [], "no other process waits for the lock"
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one

    asyncio.run(cancelled())
    assert not [text for text in said if "interrupted" in text]
    assert not fetches.callers
    assert fetch_results(credentials, job).counts() == {"1": 5}


def _bytes_about(database: Path, flow_run_id: UUID) -> int:
    """All that the server's database holds in rows that name a flow run, in bytes."""
    total = 0
    wanted = {str(flow_run_id), flow_run_id.hex}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                texts = [str(value) for value in row if value is not None]
                if any(name in text for text in texts for name in wanted):
                    total += sum(map(len, texts))
    return total


def test_the_servers_database_does_not_grow_with_the_result(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, folder: Path, prefect_server: PrefectServer
) -> None:
    sizes = []
    for shots in (5, 200_000):

        @flow(persist_result=True)
        def counted(shots: int) -> JobResult:
            return run_job(credentials, [FLIP], backend=BACKEND, shots=shots)

        found, state = ran(counted, shots)
        assert state.is_completed()
        task_runs(found.id, 3)
        sizes.append(_bytes_about(prefect_server.home / "prefect.db", found.id))
    assert abs(sizes[1] - sizes[0]) < 50_000, sizes
