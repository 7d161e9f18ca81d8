"""One network loop per process: a background event loop on which all network work runs.

httpx and websocket clients belong to one event loop, and Prefect runs tasks in many. So callers of
any kind (sync, async, threads, notebooks) hand their work to this loop and wait for it: one
connection pool, one token, one watcher. Cancelling the caller cancels the work.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import copy
import functools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from multiprocessing import parent_process, util
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio

from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import get_logger, lock_of_process

__all__ = ["DaemonThreads", "NetworkLoop", "SingleFlight", "network_loop", "on_network_loop", "used_loop"]

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")

log = get_logger(__name__)

_WIND_UP = 10.0  # seconds in which an ending process may still complete its work
_CANCEL_GRACE = 15.0  # seconds a cancelled caller waits for its work to wind up
_SHORTEST_SLICE, _LONGEST_SLICE = 0.05, 1.0  # seconds that a blocked thread cannot be interrupted from another one


class DaemonThreads(concurrent.futures.ThreadPoolExecutor):
    """Gives each piece of work a daemon thread of its own, also after the main thread has ended.

    The end of the process waits for none of them.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """As `Executor.submit`."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name="qruntime-daemon", daemon=True).start()
        return future


class _WorkerThreads(DaemonThreads):
    """The threads in which the network loop does what would block it, also after the main thread has ended.

    From then on Python refuses work to every pool, although threads of the user may still run jobs.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        try:
            return concurrent.futures.ThreadPoolExecutor.submit(self, fn, *args, **kwargs)
        except RuntimeError as error:
            if "cannot schedule" not in str(error):  # any other comes after the work was queued
                raise
        return super().submit(fn, *args, **kwargs)


class NetworkLoop:
    """A daemon thread with a running event loop, and the objects that live on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_WorkerThreads())
        self.pid = os.getpid()
        self._states: dict[tuple[Any, ...], Any] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._finishing: dict[asyncio.Task[Any], str] = {}
        self._calls: set[concurrent.futures.Future[Any]] = set()
        self._thread = threading.Thread(target=self._serve, name="qruntime-network", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            # asyncio hands these to who awaits the task, and ends the loop: all others would wait for ever.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()
                return

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Register an async clean-up for the end of the process."""
        self._closers.append(closer)

    def finish(self, task: asyncio.Task[Any], outcome: str) -> None:
        """When the process ends, give a task of this loop some seconds to end by itself, as it cannot be repeated.

        Args:
            task: The task.
            outcome: What is lost if the process ends before it, for the log.
        """
        self._finishing[task] = outcome
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            self._finishing.pop(task, None)

    def state(self, kind: Callable[[], S], *key: Hashable) -> S:
        """Return the one object of a kind (and key) that belongs to this loop; made on first use.

        Args:
            kind: The class, or another function without arguments that makes the object and names its kind.
            *key: Distinguishes several of a kind, for instance a connection's fingerprint.
        """
        which = (kind, *key)
        if which not in self._states:
            self._states[which] = kind()
        found: S = self._states[which]
        return found

    def keep(self, state: S, *key: Hashable) -> S:
        """Store an object under its class and key, for classes that need arguments."""
        self._states[(type(state), *key)] = state
        return state

    def find(self, kind: type[S], *key: Hashable) -> S | None:
        """The object of a class and key if there is one."""
        found: S | None = self._states.get((kind, *key))
        return found

    def all_of(self, kind: type[S]) -> list[S]:
        """All objects of a class."""
        return [state for (one, *_), state in self._states.items() if one is kind]

    def forget(self, kind: type[Any]) -> None:
        """Drop all objects of a class."""
        for which in [which for which in self._states if which[0] is kind]:
            del self._states[which]

    def lock(self, name: str) -> asyncio.Lock:
        """Return the lock of that name; a forked process has locks of its own."""
        return self._locks.setdefault(name, asyncio.Lock())

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on this loop."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` here and block until it ends; for callers without a loop of their own to keep alive."""
        if self.is_here:
            work.close()
            raise RuntimeError("blocking on the network loop from itself would never end")
        future: concurrent.futures.Future[T] | None = None
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
            self._calls.add(future)
            future.add_done_callback(self._calls.discard)
            return _result_in_slices(future)
        except BaseException:
            # Raised in the waiting thread by a signal handler (Prefect's TerminationSignal, Ctrl-C) or from another
            # thread (a timeout of Prefect's in a worker thread).
            if future is not None and not future.done():
                future.cancel()
                with contextlib.suppress(BaseException):
                    concurrent.futures.wait([future], timeout=_CANCEL_GRACE)
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` here and await it from any loop."""
        if self.is_here:
            return await work
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # wrap_future has passed the cancellation on; let the work wind up before we go, so that
            # what it was doing (a POST on its way) is settled when the caller's clean-up runs. The
            # shield is for anyio (Prefect's timeouts), which cancels again at every await. A cancelled future is
            # waited for until the work's task has ended, also if it never began (from Python 3.14 on it may not).
            if self._thread.is_alive():
                with anyio.CancelScope(shield=True):
                    await asyncio.to_thread(concurrent.futures.wait, [future], _CANCEL_GRACE)
            raise

    async def _finish(self, *, calls_end: bool) -> None:
        """Wait for the tasks that cannot be repeated."""
        end = self.loop.time() + _WIND_UP
        # One that was cancelled is lost, and would end each wait at once.
        while (busy := [one for one in self._finishing if not one.done()]) and self.loop.time() < end:
            for call in list(self._calls) if calls_end else ():
                call.cancel()
            await asyncio.wait(busy, timeout=_SHORTEST_SLICE)

    def _last(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what the end of the process leaves time for, and log what is lost."""
        try:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=2 * _WIND_UP + 5)
        finally:  # a further Ctrl-C comes here, too
            lost = list(self._finishing.values())
            self._finishing.clear()  # a child that was not forked calls `atexit` as well
            for outcome in lost:
                log.error("The process ended before its work was done: %s may be lost.", outcome)

    def finish_in_child(self) -> None:
        """Wait for the tasks that cannot be repeated; the child's threads may go on, as Python waits for them."""
        if self.pid == os.getpid() and self._thread.is_alive():
            self._last(self._finish(calls_end=False))

    def close(self) -> None:
        """Close what lives here and stop the loop. Called at exit; may be called twice."""
        if self.pid != os.getpid() or not self._thread.is_alive():
            return

        async def wind_up() -> None:
            # Meanwhile nothing is submitted any more, not even by a daemon thread that makes another call.
            await self._finish(calls_end=True)
            # First the work: asyncio reports pending tasks on stderr.
            end, told = self.loop.time() + _WIND_UP, set[asyncio.Task[Any]]()
            while left := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in left - told:  # work that ends may start other work, which must end too
                    task.cancel()
                told |= left
                await asyncio.wait(left, timeout=end - self.loop.time())
                if self.loop.time() >= end:
                    break
            for closer in self._closers:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(closer(), timeout=2)

        self._last(wind_up())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            self.loop.close()  # so that `network_loop` sees it and no caller waits for a stopped loop


class SingleFlight(Generic[T]):
    """Let callers that arrive while some work is in flight share its outcome, rather than start it again.

    Belongs to one event loop. A caller that is cancelled does not take the outcome from the others. Work of different
    keys is independent; nothing is kept of work that is over.

    Example:
        ```python
        from prefect_qruntime.client.network_loop import SingleFlight, network_loop

        async def work() -> int:
            return 1

        assert network_loop().run(SingleFlight[int]().join(work)) == 1
        ```
    """

    def __init__(self) -> None:
        self._tasks: dict[tuple[Hashable, ...], asyncio.Task[T]] = {}

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], *key: Hashable) -> asyncio.Task[T]:
        """Begin the work of a key in the background, unless it is under way; its failure may go unseen."""
        task = self._tasks.get(key)
        if task is None or task.done():
            task = self._tasks[key] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(functools.partial(self._over, key))
        return task

    def cancel(self, *key: Hashable) -> None:
        """Cancel the work of a key, for all who wait for it; a later caller starts it again."""
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()

    def _over(self, key: tuple[Hashable, ...], task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # else asyncio logs that the exception was never retrieved

    async def join(self, work: Callable[[], Coroutine[Any, Any, T]], *key: Hashable) -> T:
        """The outcome of the work of a key that is under way, or of a new one. Each caller gets an error of its own."""
        try:
            return await asyncio.shield(self.start(work, *key))
        except QuantumRuntimeError as error:
            own = copy.copy(error)
        raise own  # out here, as its context would hold the other's traceback


def _result_in_slices(future: concurrent.futures.Future[T]) -> T:
    """Wait for a result so that an exception that another thread sets in this one is raised soon.

    Such an exception is seen between two instructions only, never inside one long wait. The slices grow with the wait:
    an interruption comes at most a tenth of the time late, and hundreds of waiting threads cost nothing. A bare lock,
    because `Condition.wait` below `Event` and `Future.result` holds another one that it loses when the exception comes
    between two of its lines: the caller would see "release unlocked lock" in place of its timeout.
    """
    done = threading.Lock()
    done.acquire()
    future.add_done_callback(lambda _future: done.release())
    began = time.monotonic()
    while not done.acquire(timeout=min(max((time.monotonic() - began) / 10, _SHORTEST_SLICE), _LONGEST_SLICE)):
        pass
    return future.result()


_lock = lock_of_process()
_current: NetworkLoop | None = None
_left_behind: list[NetworkLoop] = []


def network_loop() -> NetworkLoop:
    """The network loop of this process; made on first use, and again after a fork."""
    global _current
    with _lock:
        if _current is None or _current.pid != os.getpid() or _current.loop.is_closed():
            _current = NetworkLoop()
            if parent_process() is not None:  # a child of `multiprocessing` that was forked does not call `atexit`
                util.Finalize(None, _current.finish_in_child, exitpriority=0)
        return _current


def used_loop() -> NetworkLoop | None:
    """The network loop of this process if there is one. At the process's end none can be made."""
    current = _current
    return current if current is not None and current.pid == os.getpid() and not current.loop.is_closed() else None


def _close_at_exit() -> None:
    if _current is not None:
        _current.close()


def _forget_after_fork() -> None:
    # The parent's loop thread does not exist in the child, and its sockets are not ours to close:
    # they are kept, as the garbage collector would close them.
    global _current
    if _current is not None:
        _left_behind.append(_current)
    _current = None


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_after_fork)


def on_network_loop(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make an async method run on the network loop, wherever it is awaited."""

    @functools.wraps(method)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return await network_loop().arun(method(*args, **kwargs))

    return wrapper
