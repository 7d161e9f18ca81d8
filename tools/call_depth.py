"""Count the functions and modules of the package that are entered until a task's request leaves.

Run `python tools/call_depth.py` for the figures, `--names` for the functions too; it ends with 1 if a bound is passed.
The service is the embedded sandbox, and the token is there already, so only the call itself is counted. Comprehensions
and lambdas are not counted, nor what the sandbox does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

import prefect_qruntime
from prefect_qruntime import fetch_results, submit_job, wait_for_completion
from prefect_qruntime.sandbox import Sandbox

ROOT = str(Path(prefect_qruntime.__file__).parent)
BOUNDS = {"submit": (161, 38), "wait": (80, 21), "fetch": (40, 17)}
"""The most functions and modules for each of the three."""

_QASM = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
_ANONYMOUS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>", "<module>")


# Tasks and threads inherit it from the call that starts them, so what an earlier call left running is not counted.
_CALL: ContextVar[object] = ContextVar("_CALL", default=None)


class Trace:
    """Records the functions of the package that a call enters, from `start` until the wanted request leaves."""

    def __init__(self) -> None:
        self.entered: dict[tuple[str, str], None] = {}
        self._wanted: Callable[[httpx.Request], bool] | None = None
        self._call: object = None

    def start(self, wanted: Callable[[httpx.Request], bool], *, shared: bool = False) -> None:
        """Begin anew; the request that `wanted` accepts ends it. With `shared`, work for several calls counts too."""
        self.entered, self._wanted = {}, wanted
        self._call = None if shared else object()
        _CALL.set(self._call)

    def leaves(self, request: httpx.Request) -> None:
        """A request leaves."""
        if self._wanted is not None and self._wanted(request):
            self._wanted = None

    def stop(self) -> list[tuple[str, str]]:
        """What was entered.

        Raises:
            RuntimeError: The wanted request has not left.
        """
        if self._wanted is not None:
            raise RuntimeError("the wanted request was not sent")
        return list(self.entered)

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """The hook of `sys.setprofile`."""
        if event != "call" or self._wanted is None or (self._call and _CALL.get() is not self._call):
            return
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or f"{os.sep}sandbox{os.sep}" in code.co_filename:
            return
        if code.co_name not in _ANONYMOUS and code.co_name.isidentifier():
            self.entered[(os.path.relpath(code.co_filename, ROOT), code.co_qualname)] = None


def measure() -> dict[str, list[tuple[str, str]]]:
    """The functions entered by submitting, waiting and fetching, each until its request leaves."""
    trace = Trace()
    send = httpx.AsyncClient.send

    async def traced(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        trace.leaves(request)
        return await send(self, request, **options)

    def posts(request: httpx.Request) -> bool:
        return request.method == "POST" and request.url.path.endswith("/jobs")

    def reads(request: httpx.Request) -> bool:
        return request.method == "GET" and "/jobs/" in request.url.path

    found: dict[str, list[tuple[str, str]]] = {}
    before = sys.getprofile()
    threading.setprofile(trace.profile)
    sys.setprofile(trace.profile)
    httpx.AsyncClient.send = traced  # type: ignore[method-assign]
    try:
        with Sandbox(physics=False, websocket=False) as sandbox:
            credentials = sandbox.credentials()
            client = credentials.get_client()
            client.run(client.authenticate())
            submit_job.fn(credentials, [_QASM], backend="sandbox_ideal", shots=10)  # the lazy imports
            trace.start(posts)
            job = submit_job.fn(credentials, [_QASM], backend="sandbox_ideal", shots=10)
            found["submit"] = trace.stop()
            trace.start(reads, shared=True)  # one poller looks at the jobs of all waits
            wait_for_completion.fn(credentials, job)
            found["wait"] = trace.stop()
            trace.start(reads)
            fetch_results.fn(credentials, job)
            found["fetch"] = trace.stop()
    finally:
        httpx.AsyncClient.send = send  # type: ignore[method-assign]
        threading.setprofile(None)
        sys.setprofile(before)
    return found


def figures(found: dict[str, list[tuple[str, str]]]) -> dict[str, tuple[int, int]]:
    """Functions and modules of each."""
    return {name: (len(path), len({module for module, _ in path})) for name, path in found.items()}


def main() -> int:
    """Print the figures; 1 if one is over its bound."""
    found = measure()
    over = False
    for name, (functions, modules) in figures(found).items():
        bound = BOUNDS[name]
        over = over or functions > bound[0] or modules > bound[1]
        print(f"{name}: {functions} functions in {modules} modules (at most {bound[0]} in {bound[1]})")
        if "--names" in sys.argv:
            for module, count in Counter(module for module, _ in found[name]).items():
                print(f"  {module} ({count}): {', '.join(entry for where, entry in found[name] if where == module)}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
