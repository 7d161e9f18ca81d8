"""A sandbox in a process of its own, warm: prints its connection as JSON and ends with its stdin."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from benchmarks.lab import BELL, Lab
from prefect_qruntime.sandbox import Sandbox


async def serve(options: dict[str, Any]) -> None:
    """Serve until stdin is closed.

    Args:
        options: Options of `Sandbox`.
    """
    async with Sandbox(api_key="benchmark-key", **options) as sandbox:
        lab = Lab(sandbox.url, sandbox.api_key, sandbox.crn)
        # The first circuit makes the sandbox import Qiskit; that is nothing a client should wait for.
        sandbox.control.set_times(queue_time=0, run_time=0)
        await asyncio.to_thread(lab.raw_result, {"pubs": [[BELL, None, 1]], "version": 2, "support_qiskit": True})
        sandbox.reset()
        sys.stdout.write(json.dumps({"url": lab.url, "api_key": lab.api_key, "crn": lab.crn}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
