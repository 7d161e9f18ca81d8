"""How long after the end of a job its caller knows."""

from __future__ import annotations

import random
import statistics

from benchmarks.lab import Lab
from benchmarks.peers import Peer


def running(lab: Lab, peer: Peer) -> dict[str, float]:
    """Jobs that run for different times, waited for together."""
    peer.load()
    peer.open()
    clock = lab.service_clock()
    draw = random.Random(7)
    jobs = []
    for _ in range(lab.args["jobs"]):
        lab.control("set_times", queue_time=0, run_time=draw.uniform(2, 5))
        jobs += peer.submit(1)
    known: dict[str, float] = {}
    peer.wait(jobs, lambda job: known.setdefault(job, clock.now()))
    return _finish(lab, peer, known)


def in_session(lab: Lab, peer: Peer) -> dict[str, float]:
    """Jobs of one session, each waited for before the next, as an iterative algorithm does."""
    peer.load()
    peer.open()
    clock = lab.service_clock()
    draw = random.Random(7)
    known: dict[str, float] = {}
    for _ in range(lab.args["jobs"]):
        lab.control("set_times", queue_time=0, run_time=draw.uniform(0.3, 1.3))
        peer.wait(peer.submit(1, session=True), lambda job: known.setdefault(job, clock.now()))
    return _finish(lab, peer, known)


def _finish(lab: Lab, peer: Peer, known: dict[str, float]) -> dict[str, float]:
    ends = lab.ends()
    lags = [known[job] - ends[job] for job in known]
    asked = lab.requests()
    peer.close()
    return {"p50": statistics.median(lags), "worst": max(lags), "polls_per_job": asked.polls / len(lags)}
