"""`prefect-qruntime sandbox`."""

from __future__ import annotations

import sys

import orjson
from rich.console import Console

from prefect_qruntime.sandbox.server import Sandbox, run_forever

__all__ = ["serve_sandbox"]


def serve_sandbox(*, port: int, queue_time: float, run_time: float, clock_scale: float, json: bool) -> int:
    """Serve it until interrupted."""

    def tell(running: Sandbox) -> None:
        facts = running.connection()
        if json:
            sys.stdout.write(orjson.dumps(facts).decode() + "\n")
            sys.stdout.flush()
            return
        console = Console()
        console.print(f"Sandbox on {running.url}: the cloud dialect under /api/v1, legacy and IAM at the root.")
        for name, value in facts.items():
            console.print(f"  {name:<9} {value}", soft_wrap=True, highlight=False)
        console.print("For the legacy dialect use base_url without /api/v1. Stop with Ctrl-C.")

    run_forever(port=port, on_start=tell, queue_time=queue_time, run_time=run_time, clock_scale=clock_scale)
    return 0
