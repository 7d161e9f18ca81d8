"""Jobs in a flow, from its start to the end of its process; `run` reads what is measured from outside."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.hurry import real_monotonic
from benchmarks.lab import BACKEND, BELL, Lab, peak_memory
from benchmarks.peers import Peer


def to_the_end(lab: Lab, peer: Peer) -> dict[str, float]:
    """Imports aside, everything counts up to the end of the process: `run` puts `wall` and `cpu` for `began`."""
    peer.load()
    began, cpu = real_monotonic(), time.process_time()
    peer.open()
    finished = peer.run(lab.args["jobs"])
    if finished != lab.args["jobs"]:
        raise RuntimeError(f"{finished} results of {lab.args['jobs']}")
    return {
        "began": began,
        "cpu_before": cpu,
        "results_after": real_monotonic() - began,
        "memory": peak_memory(),
        "requests": lab.requests().total,
    }


def mapped(lab: Lab, peer: Peer) -> dict[str, float]:
    """Submit, wait and fetch by `.map` on threads, or as many empty tasks."""
    from prefect import flow, task, unmapped

    count = lab.args["jobs"]
    if lab.peer == "empty-flow":

        @task
        def nothing(number: int) -> int:
            return number

        @flow(name="benchmark mapped")
        def many() -> int:
            found: Any = list(range(count))
            for _ in range(3):
                found = nothing.map(found)
            return len(found.result())
    else:
        import prefect_qruntime as qr

        @flow(name="benchmark mapped")
        def many() -> int:
            credentials = unmapped(
                qr.QuantumRuntimeCredentials(api_key=lab.api_key, crn=lab.crn, base_url=lab.base_url, iam_url=lab.url)
            )
            jobs = qr.submit_job.map(credentials, [[BELL]] * count, backend=BACKEND, shots=10)
            done = qr.wait_for_completion.map(credentials, jobs)
            return len(qr.fetch_results.map(credentials, done).result())

    began, cpu = real_monotonic(), time.process_time()
    finished = many()
    if finished != count:
        raise RuntimeError(f"{finished} results of {count}")
    return {"began": began, "cpu_before": cpu, "results_after": real_monotonic() - began}


def fresh_key(lab: Lab, peer: Peer) -> dict[str, float]:
    """Submit once under an explicit key that nobody used, and once without a key."""
    from prefect import flow

    import prefect_qruntime as qr

    taken: dict[str, float] = {}

    @flow(name="benchmark key")
    def keyed() -> None:
        credentials = qr.QuantumRuntimeCredentials(
            api_key=lab.api_key, crn=lab.crn, base_url=lab.base_url, iam_url=lab.url
        )
        for name, more in (("plain", {}), ("seconds", {"submission_key": f"bench-{real_monotonic()}"})):
            began = real_monotonic()
            qr.submit_job(credentials, [BELL], backend=BACKEND, shots=10, **more)
            taken[name] = real_monotonic() - began

    keyed()
    return taken
