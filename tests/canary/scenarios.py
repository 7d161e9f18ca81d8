"""Twenty flow runs at DEBUG, good and bad, with a key and tokens that are easy to recognise.

Run as a process: `python -m tests.canary.scenarios FILE`. Everything it writes is searched afterwards; the
secrets it ever held go into FILE, so that the search knows what to look for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task, unmapped
from prefect.flow_engine import BaseFlowRunEngine

import prefect_qruntime as qr
from prefect_qruntime import redact
from prefect_qruntime.sandbox import Sandbox

KEY = "CANARYkey-0123456789-CANARYkey"
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
BACKEND = "sandbox_ideal"


@flow(persist_result=True)
def story(block: str, **more: Any) -> dict[str, int]:
    """The plain story."""
    credentials = qr.load_credentials(block)
    qr.authenticate(credentials)
    with qr.runtime_session(credentials, BACKEND, max_ttl=60) as session:
        job = qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, session=session, **more)
        qr.wait_for_completion(credentials, job, timeout=3)
        return qr.fetch_results(credentials, job).counts()


@flow(persist_result=True)
async def async_story(block: str) -> dict[str, int]:
    """The story in an async flow."""
    credentials = await qr.aload_credentials(block)
    return (await qr.arun_job(credentials, [CIRCUIT], backend=BACKEND)).counts()


@flow(persist_result=True)
def mapped(block: str) -> int:
    """Several submits on threads."""
    credentials = qr.load_credentials(block)
    jobs = qr.submit_job.map(unmapped(credentials), [CIRCUIT, CIRCUIT], backend=BACKEND).result()
    return len(jobs)


@task(persist_result=True)
def careless(credentials: qr.QuantumRuntimeCredentials) -> str:
    """Print and raise the block, as people do."""
    get_run_logger().info("my credentials are %s and %r", credentials, credentials)
    raise RuntimeError(f"it failed with {credentials!r}")


@flow(persist_result=True)
def careless_flow(block: str) -> str:
    """Log a block and fail with it."""
    return careless(qr.load_credentials(block))


@flow(persist_result=True)
def verify(block: str) -> list[str]:
    """Report on the instance."""
    return list(qr.load_credentials(block).verify().problems)


@flow(persist_result=True)
def private_twice(block: str) -> bool:
    """Read a private result twice."""
    credentials = qr.load_credentials(block)
    job = qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, private=True)
    qr.wait_for_completion(credentials, job)
    return qr.fetch_results(credentials, job) == qr.fetch_results(credentials, job)


@flow(persist_result=True)
def cancel(block: str) -> str:
    """Cancel a job."""
    credentials = qr.load_credentials(block)
    return qr.cancel_job(credentials, qr.submit_job(credentials, [CIRCUIT], backend=BACKEND)).raw_status


def all_scenarios(control: Any) -> list[tuple[str, Callable[[], Any]]]:
    """Name and action of each scenario; faults are set right before."""

    def with_fault(action: Callable[[], Any], *args: Any, **what: Any) -> Callable[[], Any]:
        def run() -> Any:
            control.add_fault(*args, **what)
            return action()

        return run

    def with_token_in(action: Callable[[], Any], path: str, status: int) -> Callable[[], Any]:
        """An error body that repeats the key and every token back at us."""
        known = [secret for secret in redact._passing if secret.startswith("ey")] or ["none"]
        text = {"errors": [{"code": 1208, "message": f"bad key {KEY} or token {known[-1]}"}], "trace": known[-1]}
        return with_fault(action, "POST", path, status=status, body=text, times=2)

    cloud, legacy = (lambda: story("canary-cloud")), (lambda: story("canary-legacy"))
    return [
        ("cloud", cloud),
        ("legacy with websocket", legacy),
        ("async", lambda: asyncio.run(async_story("canary-cloud"))),  # type: ignore[arg-type]
        ("mapped", lambda: mapped("canary-cloud")),
        ("wrong key", lambda: story("canary-wrong-key")),
        ("wrong instance", lambda: story("canary-wrong-crn")),
        ("verify", lambda: verify("canary-cloud")),
        ("verify wrong key", lambda: verify("canary-wrong-key")),
        ("careless", lambda: careless_flow("canary-cloud")),
        ("private", lambda: private_twice("canary-cloud")),
        ("cancel", lambda: cancel("canary-cloud")),
        ("bad input", lambda: story("canary-cloud", shots=-1)),
        ("lost answer", with_fault(cloud, "POST", "/jobs", drop="after")),
        ("401 twice", with_fault(cloud, "POST", "/jobs", status=401, times=2)),
        ("503 while waiting", with_fault(cloud, "GET", "/jobs/*", status=503, times=2)),
        ("key and token in an error body", with_token_in(cloud, "/jobs", 400)),
        ("key and token in an IAM error", with_token_in(verify_again, "/identity/token", 400)),
        ("token refused by the socket", with_fault(legacy, None, "/stream/jobs/*", status=401)),
        ("broken socket", with_fault(legacy, None, "/stream/jobs/*", ws_close=1011)),
        ("cut in half", with_fault(cloud, "GET", "/jobs/*/results", drop="middle")),
    ]


def verify_again() -> Any:
    """Verify with a block that has no token yet."""
    return verify("canary-second")


def main(found: Path) -> None:
    """Run them all."""
    # Prefect joins its heartbeat thread, which costs each sync flow a second.
    BaseFlowRunEngine.heartbeat_seconds = None  # type: ignore[assignment]
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    for name in ("httpx", "httpcore", "websockets", "hpack", "prefect_qruntime", "prefect"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    ended: dict[str, str] = {}
    with Sandbox(api_key=KEY, queue_time=0.05, run_time=0.3) as sandbox:
        for name, facts in {
            "canary-cloud": sandbox.connection("cloud"),
            "canary-legacy": sandbox.connection("legacy"),
            "canary-second": {**sandbox.connection("cloud"), "application": "second"},
            "canary-wrong-key": {**sandbox.connection("cloud"), "api_key": "WRONG" + KEY},
            "canary-wrong-crn": {
                **sandbox.connection("cloud"),
                "crn": "crn:v1:bluemix:public:quantum-computing:us-east:a/0123:no-such-instance::",
            },
        }.items():
            qr.QuantumRuntimeCredentials(**facts).save(name, overwrite=True)
        for name, action in all_scenarios(sandbox.control):
            try:
                action()
                ended[name] = "ok"
            except Exception as error:
                ended[name] = type(error).__name__
                logging.getLogger("prefect_qruntime").exception("scenario %s", name)
            sandbox.control.clear_faults()
    secrets = {KEY, "WRONG" + KEY, *redact._lasting, *redact._passing}
    found.write_text(json.dumps({"secrets": sorted(secrets), "ended": ended}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
