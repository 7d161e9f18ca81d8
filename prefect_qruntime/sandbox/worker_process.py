"""Start, feed and kill the process that simulates circuits; there is one per process, shared by its sandboxes.

Tasks run one after another. A task can be cancelled and has a limit in real seconds; both kill the process if the
task is running, and the next task starts a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Any

import orjson

from prefect_qruntime.redact import lock_of_process
from prefect_qruntime.sandbox.state import CANCELLED, FAILED, RAN_TOO_LONG, Outcome

# A cancelled task that ends by itself within this time leaves the process alive: starting one takes a second.
_GRACE = 1.0
_CODE = (
    "import sys\n"
    "lifeline, sys.path[:] = sys.argv[1], sys.argv[2:]\n"
    "from prefect_qruntime.sandbox.worker import main\n"
    "main(int(lifeline) if lifeline else None)\n"
)


@dataclass(slots=True, eq=False)
class Task:
    """One request to the process. `done` is called with the outcome, in another thread, unless cancelled."""

    request: dict[str, Any]
    done: Callable[[Outcome], None]
    limit: float | None = None
    cancelled: bool = False
    too_long: bool = False
    timers: list[threading.Timer] = field(default_factory=list)


class WorkerProcess:
    """The process, started when the first task comes, and the queue of tasks before it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._current: Task | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._thread: threading.Thread | None = None
        # Whether the process was sent a kill signal, which takes effect a moment later.
        self._killed = False
        self._closed = False

    def submit(self, task: Task) -> None:
        """Queue a task."""
        with self._changed:
            self._waiting.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandbox-simulation", daemon=True)
                self._thread.start()
            self._changed.notify()

    def warm_up(self) -> Future[None]:
        """Start the process if there is none, and import and warm up the simulator."""
        ready: Future[None] = Future()
        self.submit(Task({}, lambda outcome: ready.set_result(None)))
        return ready

    def cancel(self, task: Task) -> None:
        """Drop a task; if it is running and does not end very soon, kill the process."""
        with self._changed:
            task.cancelled = True
            if task in self._waiting:
                self._waiting.remove(task)
            elif task is self._current:
                self._kill_later(task, _GRACE)

    def close(self) -> None:
        """Kill the process; the queued tasks are dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._kill()
            self._changed.notify()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            outcome = self._perform(task)
            with self._changed:
                self._current = None
                for timer in task.timers:
                    timer.cancel()
                if self._killed:
                    self._kill()
            if task.too_long:
                outcome = Outcome(status=CANCELLED, reason="Ran too long", reason_code=RAN_TOO_LONG)
            if not task.cancelled:
                task.done(outcome)

    def _next(self) -> Task | None:
        """Wait for a task; `None` once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _perform(self, task: Task) -> Outcome:
        """Send a task to the process and wait for its answer."""
        try:
            with self._changed:
                first = self._process is None
                process = self._process or self._start()
            if first:
                _read(process)  # Once it is ready: imports do not count against the limit.
            if task.limit is not None:
                with self._changed:
                    self._kill_later(task, task.limit, too_long=True)
            _write(process, task.request)
            return _read(process)
        except (OSError, EOFError) as error:
            with self._changed:
                self._kill()
            return _broken(f"The simulation's process has failed: {error}.")

    def _kill_later(self, task: Task, delay: float, *, too_long: bool = False) -> None:
        def kill() -> None:
            with self._changed:
                if task is self._current and not task.too_long:
                    task.too_long = too_long
                    if self._process is not None:
                        self._killed = True
                        self._process.kill()

        timer = threading.Timer(min(delay, threading.TIMEOUT_MAX), kill)
        timer.daemon = True
        task.timers.append(timer)
        timer.start()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError("it is closed")
        theirs: int | None = None
        if os.name == "posix":
            theirs, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _CODE, "" if theirs is None else str(theirs), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=() if theirs is None else (theirs,),
            )
        finally:
            if theirs is not None:
                os.close(theirs)
        return self._process

    def _kill(self) -> None:
        process, self._process, self._killed = self._process, None, False
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def _write(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    stream = _pipe(process.stdin)
    content = orjson.dumps(request)
    stream.write(b"%d\n" % len(content) + content)
    stream.flush()


def _read(process: subprocess.Popen[bytes]) -> Outcome:
    stream = _pipe(process.stdout)
    line = stream.readline()
    answer = orjson.loads(line) if line.endswith(b"\n") else None
    size = 0 if answer is None else answer["size"]
    body = None if size is None else stream.read(size)
    if answer is None or (body is not None and len(body) < size):
        raise EOFError(f"exit code {process.wait()}")
    return Outcome(body=body, **answer["fields"])


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None or stream.closed:
        raise EOFError("it was ended")
    return stream


def _broken(reason: str) -> Outcome:
    return Outcome(status=FAILED, reason=reason, reason_code=1000, text=reason)


_lock = lock_of_process()
_shared: WorkerProcess | None = None


def worker_process() -> WorkerProcess:
    """Return the process shared by the sandboxes of this one."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = WorkerProcess()
        return _shared


def _close() -> None:
    if _shared is not None:
        _shared.close()


def _after_fork() -> None:
    # The worker belongs to the parent; a forked process starts its own.
    global _shared
    _shared = None


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
