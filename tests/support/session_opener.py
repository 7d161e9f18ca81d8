"""A script that opens a session outside any flow; run as a process of its own by the tests.

Usage: python -m tests.support.session_opener CONNECTION_JSON MODE [BLOCK], with MODE: `leave` ends with the session
open, `stay` waits until its standard input ends, `close` uses `runtime_session`, `stay-inside` waits inside of it and
`stay-async` in its async twin. `open` says that it is about to open one. `twice` is as `stay`, `handled` has a handler
for SIGTERM, and `forked` has had children by then to which it sent the signal. `leave-fn` and `stay-fn` call the
tasks' functions, which need no Prefect API.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

import prefect_qruntime as qr
from tests.support.flow_runs import BACKEND, FLIP


def main() -> None:
    """Open, say so, and do as told."""
    connection, mode, *block = sys.argv[1:]
    # In the background and under `nohup` they are ignored in all processes of the tests.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    credentials = qr.load_credentials(block[0]) if block else qr.QuantumRuntimeCredentials(**json.loads(connection))
    if mode == "stay-async":
        asyncio.run(_inside(credentials))
        return
    if mode == "open":
        _say("OPENING")
    if mode == "handled":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    if mode in ("close", "stay-inside"):
        with qr.runtime_session(credentials, BACKEND, max_ttl=600) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            _say("OPEN", job.session.id if job.session else session.id)
            if mode == "stay-inside":
                sys.stdin.read()
        return
    plain = mode.endswith("-fn")
    opens, submits = (qr.open_session.fn, qr.submit_job.fn) if plain else (qr.open_session, qr.submit_job)
    session = opens(credentials, BACKEND, max_ttl=600)
    job = submits(credentials, [FLIP], backend=BACKEND, session=session)
    if mode == "forked":
        children = list[int]()
        for _ in range(20):
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(30)
                os._exit(0)
            os.kill(children[-1], signal.SIGTERM)
        ends = {-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        sys.stderr.write(f"children ended by {ends}\n")
    _say("OPEN", job.session.id if job.session else session.id)
    if not mode.startswith("leave"):
        sys.stdin.read()


async def _inside(credentials: qr.QuantumRuntimeCredentials) -> None:
    async with qr.aruntime_session(credentials, BACKEND, max_ttl=600) as session:
        job = await qr.asubmit_job(credentials, [FLIP], backend=BACKEND, session=session)
        _say("OPEN", session.id)
        await qr.await_for_completion(credentials, job)


def _say(*words: str | None) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
