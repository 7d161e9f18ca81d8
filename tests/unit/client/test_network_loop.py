"""The network home: one loop for callers of every kind, through forks, signals and the end of the process."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import FrameType
from typing import Any

import anyio
import pytest

from prefect_qruntime.client.network_loop import SingleFlight, network_loop, on_network_loop

NAME: ContextVar[str] = ContextVar("test_name", default="nobody")


async def where() -> tuple[str, int]:
    return threading.current_thread().name, id(asyncio.get_running_loop())


@on_network_loop
async def at(value: int = 0) -> tuple[str, int]:
    return await where()


class Work:
    """Runs until told; notes how it ended."""

    def __init__(self, settle: float = 0.0) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self.how = ""
        self._settle = settle

    async def __call__(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(60)
            self.how = "finished"
        except asyncio.CancelledError:
            await asyncio.sleep(self._settle)
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()

    async def began_somewhere(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 5)


def test_callers_of_every_kind_meet_on_one_loop() -> None:
    places = [
        network_loop().run(where()),
        network_loop().run(at()),
        asyncio.run(at()),
        asyncio.run(network_loop().arun(where())),
    ]

    async def nested() -> Any:
        return await at()  # already at home: no second hop

    places.append(network_loop().run(nested()))

    async def blocking_call_inside_a_running_loop() -> Any:
        return network_loop().run(where())

    places.append(asyncio.run(blocking_call_inside_a_running_loop()))
    with ThreadPoolExecutor(8) as pool:
        places += list(pool.map(lambda n: asyncio.run(at()) if n % 2 else network_loop().run(at()), range(16)))
    assert set(places) == {("qruntime-network", id(network_loop().loop))}


def test_blocking_on_home_from_home_is_refused() -> None:
    async def foolish() -> Any:
        return network_loop().run(where())

    with pytest.raises(RuntimeError, match="never end"):
        network_loop().run(foolish())


@pytest.mark.parametrize("caller", ["run", "arun", "at_home"])
def test_results_exceptions_and_context_pass_through(caller: str) -> None:
    async def fail() -> None:
        raise LookupError(NAME.get())

    calls = {
        "run": lambda: network_loop().run(fail()),
        "arun": lambda: asyncio.run(network_loop().arun(fail())),
        "at_home": lambda: asyncio.run(on_network_loop(fail)()),
    }
    token = NAME.set("me")
    try:
        with pytest.raises(LookupError, match="me"):
            calls[caller]()
    finally:
        NAME.reset(token)


async def test_cancelling_the_caller_cancels_the_work_and_waits_for_it() -> None:
    work = Work(settle=0.2)
    task = asyncio.create_task(network_loop().arun(work()))
    await work.began_somewhere()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.how == "cancelled"


def _cancelled_at_once(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
    """As newer asyncio makes a task for a call that was cancelled before: once, as others use the loop as well."""
    loop.set_task_factory(None)
    task = asyncio.Task(work, loop=loop, **more)
    task.cancel()
    return task


@pytest.mark.parametrize("factory", [None, _cancelled_at_once], ids=["of this Python", "cancelled at once"])
async def test_a_caller_cancelled_before_its_work_began_waits_for_its_end(
    factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work begins and is cancelled then, or it never begins: since Python 3.14, and there is no end to wait for."""
    monkeypatch.setattr("prefect_qruntime.client.network_loop._CANCEL_GRACE", 120.0)
    blocked, release = threading.Event(), threading.Event()

    def block() -> None:
        network_loop().loop.set_task_factory(factory)
        blocked.set()
        release.wait(60)

    network_loop().loop.call_soon_threadsafe(block)
    assert await asyncio.to_thread(blocked.wait, 5)
    work = Work(settle=0.1)
    task = asyncio.create_task(network_loop().arun(work()))
    await asyncio.sleep(0)  # it is handed over, and cannot begin
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    began = time.monotonic()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 120
    assert work.how == ("cancelled" if work.began.is_set() else "")
    assert factory is None or not work.began.is_set()


async def test_a_timeout_of_anyio_waits_for_the_work_too() -> None:
    work = Work(settle=0.3)
    with anyio.move_on_after(0.1) as scope:
        await network_loop().arun(work())
    assert scope.cancelled_caught
    assert work.how == "cancelled"


async def test_a_timeout_of_asyncio_waits_for_the_work_too() -> None:
    work = Work(settle=0.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await network_loop().arun(work())
    assert work.how == "cancelled"


def test_an_exception_from_a_signal_handler_ends_the_work_first() -> None:
    # What Prefect's TerminationSignal and Ctrl-C do to a thread that blocks in `run`.
    code = """
import asyncio, os, signal, threading
from prefect_qruntime.client.network_loop import network_loop
class Stop(BaseException): ...
def handler(number, frame): raise Stop
signal.signal(signal.SIGUSR1, handler)
began = []
how = []
async def work():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.3)
        how.append("settled")
        raise
try:
    network_loop().run(work())
except Stop:
    print("stopped", how)
"""
    assert script(code) == "stopped ['settled']"


def script(code: str) -> str:
    """Run a script of its own, which must end well without a warning, and return what it printed."""
    shown = (
        "-W",
        "default::ResourceWarning",
        "-W",
        "default::RuntimeWarning",
        "-W",
        "ignore::DeprecationWarning:__main__",
    )
    began = time.monotonic()
    run = subprocess.run([sys.executable, *shown, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert time.monotonic() - began < 50  # what it left would take a minute
    return run.stdout.strip()


def test_a_waiting_thread_is_in_no_code_that_another_threads_exception_breaks() -> None:
    """`Condition.wait` would make "release unlocked lock" of Prefect's timeout if it came between two lines."""
    entered = set[str]()
    network_loop()  # its thread starts with an Event

    def note(frame: FrameType, event: str, _what: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_qualname)

    async def sleep() -> int:
        await asyncio.sleep(0.3)
        return 1

    sys.setprofile(note)
    try:
        assert network_loop().run(sleep()) == 1
    finally:
        sys.setprofile(None)
    assert "NetworkLoop.run" in entered
    assert not [name for name in entered if name in ("Condition.wait", "Event.wait")]


def test_after_a_fork_the_child_has_a_home_of_its_own() -> None:
    code = """
import asyncio, os
from prefect_qruntime.client.network_loop import network_loop
async def here():
    return os.getpid()
assert network_loop().run(here()) == os.getpid()
parent = network_loop()
pid = os.fork()
if pid == 0:
    assert network_loop() is not parent
    assert network_loop().run(here()) == os.getpid() != parent.pid
    assert asyncio.run(network_loop().arun(here())) == os.getpid()
    parent.close()  # not the child's to close
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert network_loop() is parent
assert network_loop().run(here()) == os.getpid()
print("both")
"""
    assert script(code) == "both"


def test_a_lock_that_somebody_held_is_free_in_a_forked_child() -> None:
    code = """
import os, signal, threading
from prefect_qruntime import redact, run_context
from prefect_qruntime.client.network_loop import network_loop
held, end = threading.Event(), threading.Event()
async def take():
    lock = network_loop().lock("record:job-d1")
    await lock.acquire()
    return lock
kept = network_loop().run(take())
def hold():
    with run_context._lock, redact._lock:
        held.set()
        end.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    redact.register_secret("a-secret-0123456789")
    assert "0123456789" not in redact.redact("it is a-secret-0123456789")
    run_context.call_index(run_context.RunContext(None, "call:1", False, False, 0, 0.0), "digest")
    assert network_loop().run(take()) is not kept
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
end.set()
thread.join()
print(status)
"""
    assert script(code) == "7"


def test_every_lock_of_the_package_is_free_in_a_forked_child() -> None:
    code = """
import contextlib, importlib, os, pkgutil, threading
import prefect_qruntime
names = [one.name for one in pkgutil.walk_packages(prefect_qruntime.__path__, "prefect_qruntime.", onerror=print)]
modules = []
for name in names:
    if ".sandbox" not in name and not name.endswith("__main__"):
        with contextlib.suppress(ImportError):  # of an extra
            modules.append(importlib.import_module(name))
def locks():
    kind = type(threading.Lock())
    found = [(one.__name__, name, value) for one in modules for name, value in vars(one).items()]
    return {f"{module}.{name}": value for module, name, value in found if type(value) is kind}
for lock in locks().values():
    lock.acquire()
pid = os.fork()
if pid == 0:
    print(len(locks()) > 2, [name for name, lock in locks().items() if lock.locked()], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
os._exit(0)
"""
    assert script(code) == "True []"


def test_the_process_ends_promptly_with_work_under_way() -> None:
    code = """
import asyncio, concurrent.futures, threading
from prefect_qruntime.client.network_loop import network_loop
began = threading.Event()
async def work():
    began.set()
    try:
        await asyncio.sleep(3600)
    finally:
        print("wound up")
async def closer():
    print("closed")
async def broken():
    raise RuntimeError
network_loop().on_close(broken)
network_loop().on_close(closer)
def wait():
    try:
        network_loop().run(work())
    except concurrent.futures.CancelledError:
        pass
threading.Thread(target=wait, daemon=True).start()
asyncio.run_coroutine_threadsafe(work(), network_loop().loop)
began.wait()
"""
    assert script(code).split("\n") == ["wound up", "wound up", "closed"]


@pytest.mark.parametrize("process", ["itself", "a forked child", "a forked worker of a pool"])
def test_a_process_that_ends_lets_work_finish_that_cannot_be_repeated(process: str) -> None:
    code = f"""
import asyncio, concurrent.futures, multiprocessing, threading
from prefect_qruntime.client.network_loop import network_loop
async def only_once(began):
    began.set()
    await asyncio.create_task(asyncio.sleep(0.5))
    print("kept", flush=True)
async def start(began):
    task = asyncio.create_task(only_once(began))
    network_loop().finish(task, "a result")
    await task
def main():
    began = threading.Event()
    asyncio.run_coroutine_threadsafe(start(began), network_loop().loop)
    began.wait()
fork = multiprocessing.get_context("fork")
if {process!r} == "itself":
    main()
elif {process!r} == "a forked child":
    child = fork.Process(target=main)
    child.start()
    child.join()
else:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fork) as pool:
        pool.submit(main).result()
"""
    assert script(code) == "kept"


@pytest.mark.parametrize("how", ["network_loop().run(submits())", "asyncio.run(network_loop().arun(submits()))"])
def test_no_call_goes_on_while_a_process_that_ends_lets_work_finish(how: str) -> None:
    code = f"""
import asyncio, threading
from prefect_qruntime.client.network_loop import network_loop
began, stopped = threading.Event(), asyncio.Event()
left = [1, 2]
async def submits():
    began.set()
    try:
        await asyncio.sleep(3600)
    finally:
        left.pop()
        if not left:
            stopped.set()
def calls():
    for _ in (1, 2):
        try:
            {how}
        except BaseException:
            pass
async def only_once():
    await stopped.wait()
    print("kept")
async def start():
    network_loop().finish(asyncio.create_task(only_once()), "a result")
threading.Thread(target=calls, daemon=True).start()
began.wait()
network_loop().run(start())
"""
    assert script(code) == "kept"


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2),
    reason="CPython starts no thread once the main thread has ended (python/cpython#113964, fixed in 3.12.2)",
)
@pytest.mark.parametrize("used_before", [True, False], ids=str)
@pytest.mark.parametrize("start", ["Thread(target=late).start()", "ThreadPoolExecutor(1).submit(late)"], ids=str)
def test_threads_that_outlive_the_main_thread_go_on(start: str, used_before: bool) -> None:
    code = f"""
import asyncio, concurrent.futures.thread as pools, contextvars, time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from prefect_qruntime.client.network_loop import network_loop
name = contextvars.ContextVar("name")
def fails():
    raise OSError(name.get())
async def work():
    name.set("from a thread")
    print(await asyncio.to_thread(sum, [1, 2]), await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80) != [])
    print(repr((await asyncio.gather(asyncio.to_thread(fails), return_exceptions=True))[0]))
def late():
    while not pools._shutdown:  # from then on Python refuses work to every pool
        time.sleep(0.01)
    network_loop().run(work())
if {used_before}:
    network_loop().run(asyncio.sleep(0))
{start}
"""
    assert script(code).split("\n") == ["3 True", "OSError('from a thread')"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("how", ["awaited", "in the background", "callback"])
def test_what_would_end_the_loop_ends_its_own_work_only(how: str, error: type[BaseException]) -> None:
    """As rich does when the pipe that Prefect logs to was closed."""

    async def ends() -> None:
        raise error(1)

    def called() -> None:
        raise error(1)

    async def starts() -> None:
        if how == "callback":
            asyncio.get_running_loop().call_soon(called)
        else:
            background.append(asyncio.create_task(ends()))
        await asyncio.sleep(0.01)

    background: list[asyncio.Task[None]] = []
    release = threading.Event()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(network_loop().run, asyncio.to_thread(release.wait))
        if how == "awaited":
            with pytest.raises(error):
                network_loop().run(ends())
        else:
            network_loop().run(starts())
            assert [task.exception().__class__ for task in background] == [error] * (how != "callback")
        release.set()
        assert other.result() is True


def test_a_closed_home_is_replaced_and_closing_twice_does_no_harm() -> None:
    code = """
from prefect_qruntime.client.network_loop import network_loop
async def one():
    return 1
first = network_loop()
first.close()
first.close()
assert network_loop() is not first
print(network_loop().run(one()))
"""
    assert script(code) == "1"


def test_a_client_used_and_forgotten_ends_quietly() -> None:
    code = """
import asyncio
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.sandbox import Sandbox
with Sandbox(physics=False) as sandbox:
    client = QuantumRuntimeClient(Connection(**sandbox.connection()))
    print(client.run(client.usage()).consumed_seconds)
    print(len(asyncio.run(client.jobs())))
"""
    assert script(code) == "0.0\n0"


def test_callers_that_come_meanwhile_share_one_run() -> None:
    async def story() -> None:
        runs, gate = [0], asyncio.Event()

        async def work() -> int:
            runs[0] += 1
            await gate.wait()
            return runs[0]

        flight = SingleFlight[int]()
        first, *others = (asyncio.create_task(flight.join(work)) for _ in range(5))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        assert await asyncio.gather(*others) == [1] * 4
        assert first.cancelled()
        assert await flight.join(work) == 2, "what is over is begun anew"

    asyncio.run(story())


def test_a_shared_failure_reaches_all_and_is_not_kept() -> None:
    async def story() -> None:
        flight = SingleFlight[int]()

        async def fails() -> int:
            raise ValueError("no")

        async def works() -> int:
            return 1

        outcomes = await asyncio.gather(*(flight.join(fails) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in outcomes] == [ValueError] * 3
        assert await flight.join(works) == 1
        await asyncio.wait([flight.start(fails)])  # in the background: nobody is told

    asyncio.run(story())


def waits_for_a_result(thread: int) -> bool:
    """Whether a thread is blocked in `NetworkLoop.run`, not on its way there."""
    frame = sys._current_frames().get(thread)
    return frame is not None and frame.f_code.co_name == "_result_in_slices"


def test_an_exception_set_by_another_thread_ends_a_blocked_caller_and_its_work() -> None:
    """As a timeout of Prefect's for a task in a worker thread."""
    work, raised = Work(settle=0.1), []

    class Interrupted(BaseException):
        pass

    def caller() -> None:
        try:
            network_loop().run(work())
        except Interrupted:
            raised.append((time.monotonic(), work.how))

    thread = threading.Thread(target=caller)
    thread.start()
    assert work.began.wait(60)
    assert thread.ident is not None
    while not waits_for_a_result(thread.ident):
        time.sleep(0.01)
    sent = time.monotonic()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_long(thread.ident), ctypes.py_object(Interrupted))
    thread.join(60)
    ((at_last, how),) = raised
    assert how == "cancelled"
    assert at_last - sent < 3


@pytest.mark.parametrize("how", ["too slow", "interrupted"])
def test_what_a_process_that_ends_cannot_finish_is_said(how: str) -> None:
    code = f"""
import asyncio, os, signal, threading, time
from prefect_qruntime.client import network_loop as module
from prefect_qruntime.client.network_loop import network_loop
began = threading.Event()
async def only_once():
    began.set()
    await asyncio.sleep(3600)
async def start():
    network_loop().finish(asyncio.create_task(only_once()), "a result")
network_loop().run(start())
began.wait()
if {how!r} == "too slow":
    module._WIND_UP = 0.2
else:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
    wait = asyncio.wait
    async def interrupts(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return await wait(*args, **kwargs)
    asyncio.wait = interrupts
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.stderr.splitlines()[0] == "The process ended before its work was done: a result may be lost."
    assert ("KeyboardInterrupt" in ended.stderr) == (how == "interrupted")


def test_a_process_does_not_wait_at_its_end_for_work_that_was_cancelled() -> None:
    """Before: it ran at full load for all of the time that unfinished work has."""
    code = """
import asyncio
from prefect_qruntime.client import network_loop as module
from prefect_qruntime.client.network_loop import network_loop
async def start():
    task = asyncio.create_task(asyncio.sleep(3600))
    network_loop().finish(task, "a result")
    task.cancel()
    await asyncio.wait([task])
network_loop().run(start())
module._WIND_UP = 3600
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.stderr.splitlines() == ["The process ended before its work was done: a result may be lost."]
