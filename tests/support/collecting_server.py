"""`prefect server start`, with its garbage collected beside the event loop.

On SQLite the server stood still for a minute at times: its event loop at an allocation, another thread waiting for the
write lock that the loop had to give back. Python collects garbage wherever it happens to allocate, and what it finds
may have to wait for SQLite; so, probably, did the loop.
"""

from __future__ import annotations

import gc
import runpy
import threading
import time

SECONDS = 5.0


def collect_for_ever() -> None:
    """Collect now and then; a wait in here holds nobody up."""
    while True:
        time.sleep(SECONDS)
        gc.collect()


if __name__ == "__main__":
    gc.disable()
    threading.Thread(target=collect_for_ever, daemon=True).start()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
