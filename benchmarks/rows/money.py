"""How many jobs are bought when something goes wrong on the way."""

from __future__ import annotations

from benchmarks.lab import Lab
from benchmarks.peers import Peer


def bought(lab: Lab, peer: Peer) -> dict[str, float]:
    """Take one job to its result with one fault prepared, and look at what was bought."""
    peer.load()
    peer.open()
    lab.control("add_fault", **lab.args["fault"])
    try:
        finished = peer.run(1)
        gave_up = None
    except Exception as error:  # whatever it is: the peer gave up, and what counts is what was bought by then
        finished, gave_up = 0, error
    lab.control("clear_faults")
    jobs = len(lab.control("jobs"))
    if not jobs:
        raise RuntimeError("nothing was bought at all") from gave_up
    return {"bought": jobs, "finished": finished}
