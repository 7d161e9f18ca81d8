"""Thousands of waits in one process: memory, CPU, requests, lag."""

from __future__ import annotations

import statistics
import threading

from benchmarks.hurry import real_sleep
from benchmarks.lab import Gauge, Lab
from benchmarks.peers import Peer

_STEP = 0.25  # seconds between looks at the memory
_SLOWEST = 80  # jobs a second that any peer submits at least; the window is longer by what that takes
_QUIET = 10.0  # seconds of waiting alone, without which the numbers say nothing


def waits(lab: Lab, peer: Peer) -> dict[str, float]:
    """Await jobs that stay queued for a while, then let all end within some seconds.

    Memory is what the process has grown by since one job was through, so the submitted jobs count as well; CPU and
    requests are those of the wait alone, lag is that of all jobs.
    """
    count = lab.args["jobs"]
    window = lab.args["window"] + count / _SLOWEST
    peer.load()
    peer.open()
    lab.control("set_times", queue_time=0, run_time=0)
    peer.run(1)
    # The backends run at the same time whatever is ready, so jobs end as they were submitted, a window later.
    lab.control("set_times", queue_time=window, run_time=0)
    gauge = Gauge()
    clock = lab.service_clock()
    jobs = peer.submit(count)
    submitting = gauge.wall
    quiet_until = window - submitting - 1
    if quiet_until < min(_QUIET, lab.args["window"] / 2):
        raise RuntimeError(f"submitting took {submitting:.0f} s of {window:.0f} s: too little of the wait is left")
    lab.control("clear_journal")
    known: dict[str, float] = {}
    wait = Gauge()
    waiting = threading.Thread(
        target=peer.wait, args=(jobs, lambda job: known.setdefault(job, clock.now())), daemon=True
    )
    waiting.start()
    grown = 0
    while wait.wall < quiet_until:
        real_sleep(_STEP)
        grown = max(grown, gauge.grown)
    wall, cpu = wait.wall, wait.cpu
    asked = lab.requests()
    waiting.join(window + 120)
    ends = lab.ends()
    lags = [known[job] - ends[job] for job in known]
    peer.close()
    if len(known) != count:
        raise RuntimeError(f"{len(known)} of {count} waits ended")
    return {
        "kb_per_job": grown / count / 1000,
        "grown_mib": grown / 2**20,
        "cpu_share": cpu / wall,
        "requests_per_minute": asked.total * 60 / wall,
        "lag_p50": statistics.median(lags),
        "lag_p99": sorted(lags)[int(0.99 * (count - 1))],
        "lag": max(lags),
        "submitting": submitting,
    }
