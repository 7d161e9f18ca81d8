"""What hours in the queue cost, and how late the end is noticed."""

from __future__ import annotations

import statistics
import threading

from benchmarks.hurry import real_sleep
from benchmarks.lab import Gauge, Lab
from benchmarks.peers import Peer


def whole(lab: Lab, peer: Peer) -> dict[str, float]:
    """Wait through the whole queue, with the clocks of both sides sped up.

    The promise on lag is the larger of 0.5 s and 2 % of the time waited: `allowed`.
    """
    peer.load()
    peer.open()
    clock = lab.service_clock()
    known: dict[str, float] = {}
    jobs = peer.submit(lab.args["jobs"])
    begun = clock.now()
    lab.control("clear_journal")
    gauge = Gauge()
    peer.wait(jobs, lambda job: known.setdefault(job, clock.now()))
    cpu, asked = gauge.cpu, lab.requests()
    ends = lab.ends()
    lags = [known[job] - ends[job] for job in known]
    waited = max(ends.values()) - begun
    peer.close()
    return {
        "polls": asked.polls,
        "hours": waited / 3600,
        "lag": max(lags),
        "lag_p50": statistics.median(lags),
        "allowed": max(0.5, 0.02 * waited),
        "cpu": cpu,
    }


def sample(lab: Lab, peer: Peer) -> dict[str, float]:
    """Count the looks in a stretch of real time, for a peer whose pace never changes, and reckon an hour."""
    lab.control("hold")
    peer.load()
    peer.open()
    clock = lab.service_clock()
    known: dict[str, float] = {}
    jobs = peer.submit(lab.args["jobs"])
    waiting = threading.Thread(
        target=peer.wait, args=(jobs, lambda job: known.setdefault(job, clock.now())), daemon=True
    )
    waiting.start()
    real_sleep(1)
    lab.control("clear_journal")
    stretch = Gauge()
    real_sleep(lab.args["window"])
    # Read before the journal is: thousands of entries take a while to come over, and nothing of that is waiting.
    wall, cpu = stretch.wall, stretch.cpu
    asked = lab.requests()
    lab.control("release")
    waiting.join(60)
    ends = lab.ends()
    lags = [known[job] - ends[job] for job in known]
    peer.close()
    return {"polls": asked.polls * 3600 / wall, "cpu": cpu * 3600 / wall, "lag": max(lags)}
