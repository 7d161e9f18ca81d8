"""Many jobs at the same time, from submission to result."""

from __future__ import annotations

from benchmarks.lab import Gauge, Lab, peak_memory
from benchmarks.peers import Peer


def crowd(lab: Lab, peer: Peer) -> dict[str, float]:
    """Imports and the circuit aside, everything counts: token, backend, jobs, results."""
    peer.load()
    gauge = Gauge()
    peer.open()
    finished = peer.run(lab.args["jobs"])
    wall, cpu, memory = gauge.wall, gauge.cpu, peak_memory()
    asked = lab.requests()
    peer.close()
    if finished != lab.args["jobs"]:
        raise RuntimeError(f"{finished} results of {lab.args['jobs']}")
    return {
        "wall": wall,
        "cpu": cpu,
        "memory": memory,
        "requests": asked.total,
        "polls": asked.polls,
        "connections": asked.connections,
    }
