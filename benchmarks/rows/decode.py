"""From the body of a large result to counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.lab import Lab
from benchmarks.peers import Peer

GHZ5 = """OPENQASM 3.0;
include "stdgates.inc";
bit[5] c;
h $0;
cx $0, $1;
cx $1, $2;
cx $2, $3;
cx $3, $4;
c[0] = measure $0;
c[1] = measure $1;
c[2] = measure $2;
c[3] = measure $3;
c[4] = measure $4;
"""


def _median(work: Callable[[], Any], times: int) -> float:
    spans = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        spans.append(time.perf_counter() - begun)
    return statistics.median(spans)


def decode(lab: Lab, peer: Peer) -> dict[str, float]:
    """Count the outcomes of one large sampler result, in both wire forms where the peer reads them.

    Both peers get the same bodies, as the sandbox is seeded; the time is the median of several readings.
    """
    shots, times = lab.args["shots"], lab.args["times"]
    bodies = {
        form: lab.raw_result(
            {"pubs": [[GHZ5, None, shots]], "version": 2, "support_qiskit": form == "encoded"}, "sandbox_noisy"
        )
        for form in ("plain", "encoded")
    }
    numbers: dict[str, float] = {f"{form}_mb": len(body) / 1e6 for form, body in bodies.items()}
    if lab.peer == "official":
        from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

        encoded = bodies["encoded"].decode()

        def theirs() -> dict[str, int]:
            return dict(ResultDecoder.decode(encoded)[0].data.c.get_counts())

        counts = theirs()
        numbers["encoded"] = _median(theirs, times)
    else:
        import orjson

        from prefect_qruntime import JobResult

        counts = {}
        for form, body in bodies.items():

            def ours(body: bytes = body) -> dict[str, int]:
                return JobResult.from_body(body, job_id="d1").counts()

            counts = ours()
            numbers[form] = _median(ours, times)
        numbers["loads"] = _median(lambda: orjson.loads(bodies["plain"]), times)
    if sum(counts.values()) != shots:
        raise RuntimeError("shots are missing")
    return {**numbers, "outcomes": len(counts), "zeros": counts["00000"]}
