"""`prefect server start`, with its garbage collected beside the event loop.

Python collects garbage wherever it happens to allocate. In Prefect's server that is the event loop's thread, and a
SQLite cursor found there waits for its connection. If that connection waits for another one's write lock (up to
60 s), the loop that had to give the lock back stands still, and so does every test.
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
