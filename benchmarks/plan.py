"""What is measured, for which peers, in which size and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefect_qruntime.client.waiting.plan import PollLimits

CLIENTS = ("official", "prefect-qiskit", "bare", "ours")
FLOWS = ("prefect-qiskit-flow", "ours-flow")
# The service has taken the job, but its answer is lost: the connection is cut, or a gateway answers in its place.
CUT = {"method": "POST", "path": "/jobs", "drop": "after"}
GATEWAY = {"method": "POST", "path": "/jobs", "status": 503, "after_handler": True}


@dataclass(frozen=True)
class Measurement:
    """One row of measurements: the same for several peers, several times.

    Attributes:
        key: Name of the row.
        row: Module and function in `rows/`.
        peers: Who is measured, in turn.
        repeats: How often.
        args: Sizes and durations for the function.
        sandbox: Options of the sandbox.
        scale: Seconds of both sides' clocks in a real one.
        server: Whether a Prefect server is needed.
        collecting: Whether it is started by `prefect-qruntime server`, not as a plain one.
        pause: Whether the neighbours come to rest before each measurement.
        aside: Measured from outside: `end` (the process's end, the server's CPU meanwhile, pages written), `rest` (the
            server's CPU until it rests), `calls` (requests to Prefect's API), `health` (its slowest answer).
        timeout: Real seconds one process may take.
    """

    key: str
    row: str
    peers: tuple[str, ...]
    repeats: int
    args: dict[str, Any] = field(default_factory=dict)
    sandbox: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    server: bool = False
    collecting: bool = False
    pause: bool = True
    aside: tuple[str, ...] = ()
    timeout: float = 300.0


def status_fault(times: int) -> dict[str, Any]:
    """So many 503 on looks at a job, single or in a list."""
    return {"method": "GET", "path": "/jobs*", "status": 503, "times": times}


FAULTS = {"cut": CUT, "gateway": GATEWAY, "two": status_fault(2), "eight": status_fault(8)}


def plan(*, quick: bool) -> Iterator[Measurement]:
    """Yield all measurements, the cheap ones first.

    What is counted, jobs bought and requests, comes out the same each time and is measured once or twice; what is
    timed, more often. All together takes some 40 minutes on two cores.

    Args:
        quick: Small and few: for trying out the benchmarks themselves, not for numbers to quote.
    """
    once, twice, few = (1, 1, 1) if quick else (1, 2, 3)
    flows = FLOWS[1:] if quick else FLOWS
    flat = {"physics": False}
    yield Measurement("import", "weight.import_time", ("official", "prefect-qiskit", "ours"), 1 if quick else 5)
    yield Measurement("size", "weight.installed_size", ("official", "prefect-qiskit", "ours"), 1)
    yield Measurement("one", "requests.one_job", ("official", "bare", "ours"), twice, sandbox=flat)
    yield Measurement("one", "requests.one_job", FLOWS, twice, sandbox=flat, server=True)
    yield Measurement(
        "ten", "requests.ten_jobs", ("bare",) if quick else ("official", "bare", "ours"), once, sandbox=flat
    )
    yield Measurement("ten", "requests.ten_jobs", flows, once, sandbox=flat, server=True)
    for name, fault in FAULTS.items():
        settings: dict[str, Any] = {"args": {"fault": fault}, "sandbox": flat}
        if not quick:
            yield Measurement(name, "money.bought", ("official",), once, **settings)
        yield Measurement(name, "money.bought", FLOWS if name == "two" else flows, once, **settings, server=True)
    yield Measurement(
        "decode",
        "decode.decode",
        ("official", "ours"),
        few,
        args={"shots": 100_000 if quick else 1_000_000, "times": 3 if quick else 7},
        sandbox={"queue_time": 0, "run_time": 0, "seed": 5},
    )
    yield from _notice(quick)
    yield from _crowds(few, 20 if quick else 200)
    yield Measurement(
        "lifecycle",
        "lifecycle.lifecycle",
        ("ours",),
        few,
        args={"turns": 3 if quick else 15},
        sandbox={**flat, "queue_time": 0, "run_time": 0},
        server=True,
    )
    yield from _queues(quick)
    yield from _scale(quick)


def _notice(quick: bool) -> Iterator[Measurement]:
    repeats, jobs = (1, 8) if quick else (2, 40)
    args = {"jobs": jobs}
    flat = {"physics": False}
    yield Measurement("running", "notice.running", CLIENTS[2:] if quick else CLIENTS, repeats, args=args, sandbox=flat)
    # As many jobs as a process opens websockets for: the others are polled, which is another row.
    sockets = {"jobs": PollLimits().sockets}
    yield Measurement("socket", "notice.running", ("ours-legacy",), 1 if quick else 7, args=sockets, sandbox=flat)
    args = {"jobs": jobs // 2}
    peers = ("ours",) if quick else ("official", "ours")
    yield Measurement("session", "notice.in_session", peers, repeats, args=args, sandbox=flat)


def _crowds(repeats: int, jobs: int) -> Iterator[Measurement]:
    sandbox = {"physics": False, "queue_time": 2, "run_time": 0.05}
    args = {"jobs": jobs}
    yield Measurement("crowd", "crowd.crowd", CLIENTS, repeats, args=args, sandbox=sandbox)
    in_turn = ("prefect-qiskit-flow", "ours-flow", "empty-flow") if jobs > 20 else ("ours-flow", "empty-flow")
    times = 5 if jobs > 20 else 1
    common: dict[str, Any] = {"args": args, "sandbox": sandbox, "server": True, "timeout": 900}
    yield Measurement("flow", "flows.to_the_end", in_turn, times, **common, pause=False, aside=("end",))
    yield Measurement("rest", "flows.to_the_end", in_turn, min(times, 2), **common, aside=("end", "rest"))
    ten: dict[str, Any] = {**common, "args": {"jobs": 10}}
    yield Measurement("calls", "flows.to_the_end", in_turn, min(times, 2), **ten, aside=("end", "calls"))
    many: dict[str, Any] = {**common, "args": {"jobs": 500 if jobs > 20 else 50}}
    yield Measurement("mapped", "flows.mapped", ("ours-flow", "empty-flow"), 1, **many, aside=("end", "health"))
    runs: dict[str, Any] = {**common, "args": {"jobs": 50 if jobs > 20 else 5}}
    yield Measurement("workers", "workers.at_once", ("ours-flow",), 1, **runs)
    yield Measurement("team", "workers.at_once", ("ours-flow",), 1, **runs, collecting=True)
    limited: dict[str, Any] = {**runs, "args": {**runs["args"], "limit": 5}}
    yield Measurement("limited", "workers.at_once", ("ours-flow",), 1, **limited, collecting=True)
    key = ("ours-flow",)
    yield Measurement("key", "flows.fresh_key", key, times, sandbox=sandbox, server=True, timeout=900)


def _queues(quick: bool) -> Iterator[Measurement]:
    """An hour of queue for one job and for many, and four hours; peers with a flat pace are sampled."""
    hours = 0.05 if quick else 1.0
    peers = CLIENTS[2:3] if quick else CLIENTS[:3]
    many = 20 if quick else 200
    for key, jobs in (("hour", 1), ("hours", many)):
        yield Measurement(
            key,
            "queue.sample",
            peers,
            1,
            args={"jobs": jobs, "window": 5 if quick else 20},
            sandbox={"physics": False, "queue_time": 0, "run_time": 0},
        )
        yield _whole(key, jobs, hours)
    yield _whole("long", 1 if quick else 20, 4 * hours)


def _whole(key: str, jobs: int, hours: float) -> Measurement:
    """The whole queue, a minute of it in each real second: what a look takes counts sixty times in the lag."""
    scale = 60
    return Measurement(
        key,
        "queue.whole",
        ("ours",),
        1,
        args={"jobs": jobs},
        sandbox={"physics": False, "queue_time": hours * 3600, "run_time": 1, "clock_scale": scale},
        scale=scale,
        timeout=900,
    )


def _scale(quick: bool) -> Iterator[Measurement]:
    for jobs in (10,) if quick else (1, 10, 100, 1000, 5000):
        peers = CLIENTS[2:] if jobs < 1000 else CLIENTS[3:]
        if jobs <= 100 and not quick:
            peers = (CLIENTS[0], *peers)
        settings: dict[str, Any] = {
            "args": {"jobs": jobs, "window": 8 if quick else 30 if jobs < 1000 else 60},
            "sandbox": {"physics": False},
            "timeout": 600,
        }
        if jobs == 1000:
            yield Measurement(f"waits-{jobs}", "waits.waits", CLIENTS[2:3], 1, **settings)
        yield Measurement(f"waits-{jobs}", "waits.waits", peers, 2 if jobs == 1000 else 1, **settings)
