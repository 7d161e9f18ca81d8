"""What is measured, for which peers, in which size and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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
    timeout: float = 300.0


def status_fault(times: int) -> dict[str, Any]:
    """So many 503 on looks at a job, single or in a list."""
    return {"method": "GET", "path": "/jobs*", "status": 503, "times": times}


FAULTS = {"cut": CUT, "gateway": GATEWAY, "two": status_fault(2), "eight": status_fault(8)}


def plan(*, quick: bool) -> Iterator[Measurement]:
    """Yield all measurements, the cheap ones first.

    Args:
        quick: Small and few: for trying out the benchmarks themselves, not for numbers to quote.
    """
    few, some = (1, 1) if quick else (3, 5)
    flows = FLOWS[1:] if quick else FLOWS
    flat = {"physics": False}
    yield Measurement("import", "weight.import_time", ("official", "prefect-qiskit", "ours"), 1 if quick else 7)
    yield Measurement("size", "weight.installed_size", ("official", "prefect-qiskit", "ours"), 1)
    yield Measurement("one", "requests.one_job", ("official", "bare", "ours"), few, sandbox=flat)
    yield Measurement("one", "requests.one_job", FLOWS, few, sandbox=flat, server=True)
    yield Measurement(
        "ten", "requests.ten_jobs", ("bare",) if quick else ("official", "bare", "ours"), few, sandbox=flat
    )
    yield Measurement("ten", "requests.ten_jobs", flows, few, sandbox=flat, server=True)
    for name, fault in FAULTS.items():
        settings: dict[str, Any] = {"args": {"fault": fault}, "sandbox": flat}
        if not quick:
            yield Measurement(name, "money.bought", ("official",), 3, **settings)
        yield Measurement(name, "money.bought", FLOWS if name == "two" else flows, few, **settings, server=True)
    yield Measurement(
        "decode",
        "decode.decode",
        ("official", "ours"),
        few,
        args={"shots": 100_000 if quick else 1_000_000, "times": 3 if quick else 7},
        sandbox={"queue_time": 0, "run_time": 0, "seed": 5},
    )
    yield from _notice(quick)
    yield from _crowds(some, 20 if quick else 200)
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
    repeats, jobs = (1, 8) if quick else (3, 40)
    args = {"jobs": jobs}
    flat = {"physics": False}
    yield Measurement("running", "notice.running", CLIENTS[2:] if quick else CLIENTS, repeats, args=args, sandbox=flat)
    yield Measurement("socket", "notice.running", ("ours-legacy",), repeats, args=args, sandbox=flat)
    args = {"jobs": jobs // 2}
    peers = ("ours",) if quick else ("official", "ours")
    yield Measurement("session", "notice.in_session", peers, repeats, args=args, sandbox=flat)


def _crowds(repeats: int, jobs: int) -> Iterator[Measurement]:
    sandbox = {"physics": False, "queue_time": 2, "run_time": 0.05}
    args = {"jobs": jobs}
    yield Measurement("crowd", "crowd.crowd", CLIENTS, repeats, args=args, sandbox=sandbox)
    yield Measurement("flow", "crowd.crowd", FLOWS, repeats, args=args, sandbox=sandbox, server=True)


def _queues(quick: bool) -> Iterator[Measurement]:
    """An hour of queue for one job and for many, and four hours; peers with a flat pace are sampled."""
    hours, repeats = (0.05, 1) if quick else (1.0, 2)
    peers = CLIENTS[2:3] if quick else CLIENTS[:3]
    many = 20 if quick else 200
    for key, jobs in (("hour", 1), ("hours", many)):
        yield Measurement(
            key,
            "queue.sample",
            peers,
            1,
            args={"jobs": jobs, "window": 5 if quick else 30},
            sandbox={"physics": False, "queue_time": 0, "run_time": 0},
        )
        scale = 20
        yield Measurement(
            key,
            "queue.whole",
            ("ours",),
            repeats,
            args={"jobs": jobs},
            sandbox={"physics": False, "queue_time": hours * 3600, "run_time": 1, "clock_scale": scale},
            scale=scale,
            timeout=600,
        )
    scale = 60
    yield Measurement(
        "long",
        "queue.whole",
        ("ours",),
        1,
        args={"jobs": 1 if quick else 20},
        sandbox={"physics": False, "queue_time": hours * 4 * 3600, "run_time": 1, "clock_scale": scale},
        scale=scale,
        timeout=900,
    )


def _scale(quick: bool) -> Iterator[Measurement]:
    window = 8 if quick else 60
    for jobs in (10,) if quick else (1, 10, 100, 1000, 5000):
        peers = CLIENTS[2:] if jobs <= 1000 else CLIENTS[3:]
        if jobs <= 100 and not quick:
            peers = (CLIENTS[0], *peers)
        yield Measurement(
            f"waits-{jobs}",
            "waits.waits",
            peers,
            3 if jobs == 1000 else 1,
            args={"jobs": jobs, "window": window},
            sandbox={"physics": False},
            timeout=600,
        )
