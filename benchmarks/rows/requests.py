"""How many requests jobs cost, looks at their state aside."""

from __future__ import annotations

from benchmarks.lab import Lab
from benchmarks.peers import Peer


def one_job(lab: Lab, peer: Peer) -> dict[str, float]:
    """One job from nothing to its result, and a second one in the same process."""
    peer.load()
    peer.open()
    peer.run(1)
    first = lab.requests()
    lab.control("clear_journal")
    peer.run(1)
    second = lab.requests()
    peer.close()
    return {"first": first.aside, "second": second.aside, "first_polls": first.polls}


def ten_jobs(lab: Lab, peer: Peer) -> dict[str, float]:
    """Ten jobs, one after the other."""
    peer.load()
    peer.open()
    finished = peer.run(10, together=False)
    asked = lab.requests()
    peer.close()
    return {"requests": asked.aside, "connections": asked.connections, "polls": asked.polls, "finished": finished}
