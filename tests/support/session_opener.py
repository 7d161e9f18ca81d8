"""A script that opens a session outside any flow; run as a process of its own by the tests.

Usage: python -m tests.support.session_opener CONNECTION_JSON MODE [BLOCK], with MODE: `leave` ends with the session
open, `stay` waits until its standard input ends, `close` uses `runtime_session`, `stay-inside` waits inside of it.
`leave-fn` and `stay-fn` call the tasks' functions, which need no Prefect API.
"""

from __future__ import annotations

import json
import sys

import prefect_qruntime as qr
from tests.support.flow_runs import BACKEND, FLIP


def main() -> None:
    """Open, say so, and do as told."""
    connection, mode, *block = sys.argv[1:]
    credentials = qr.load_credentials(block[0]) if block else qr.QuantumRuntimeCredentials(**json.loads(connection))
    if mode in ("close", "stay-inside"):
        with qr.runtime_session(credentials, BACKEND, max_ttl=600) as session:
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, session=session)
            _say(job.session.id if job.session else session.id, mode == "stay-inside")
        return
    plain = mode.endswith("-fn")
    opens, submits = (qr.open_session.fn, qr.submit_job.fn) if plain else (qr.open_session, qr.submit_job)
    session = opens(credentials, BACKEND, max_ttl=600)
    job = submits(credentials, [FLIP], backend=BACKEND, session=session)
    _say(job.session.id if job.session else session.id, mode.startswith("stay"))


def _say(session_id: str | None, stay: bool) -> None:
    sys.stdout.write(f"OPEN {session_id}\n")
    sys.stdout.flush()
    if stay:
        sys.stdin.read()


if __name__ == "__main__":
    main()
