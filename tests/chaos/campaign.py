"""What a run of the campaign is: drawn from its seed, and set on the sandbox."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.support.odd_answers import CASES, PHASES

CRASH_POINTS = (
    "before-post",
    "in-post",
    "after-post",
    "after-submit",
    "mid-wait",
    "mid-fetch",
    "in-open",
    "after-open",
)
"""Exchanges with the service in which a process kills itself."""
STAGES = {"start": 2.0, "open": 0.8, "submit": 1.0, "wait": 1.0, "leave": 0.8, "fetch": 0.5, "close": 0.6, "end": 0.5}
"""What a process says that it begins, and after how many seconds, on average, it is killed from outside."""
FAULTS = (
    "none",
    "lost-reply",
    "503-after",
    "503-burst-reads",
    "503-burst-create",
    "429",
    "401",
    "reset",
    "stall",
    "list-lag",
    "list-lag-beyond",
    "get-lag",
    "websocket-1011",
    "websocket-silence",
)
WAYS = {"flow": 68, "leave": 8, "suspend": 12, "script": 12}
"""A flow that waits; one that leaves its job to the watcher; one that is suspended; a script without a flow."""
GRACE = 2.0  # seconds; stands for the default of 30, so a list lag of 1.2 stands for 18 s, and one of 4 for a minute

CIRCUIT = """OPENQASM 3;
include "stdgates.inc";
qubit[{n}] q;
bit[{n}] c;
{flips}
c = measure q;
"""
_WIDTH = 10


def circuit_for(number: int) -> tuple[str, dict[str, int]]:
    """A circuit for each number, and the counts it must give."""
    bits = f"{number % 2**_WIDTH:0{_WIDTH}b}"
    flips = "\n".join(f"x q[{i}];" for i, bit in enumerate(reversed(bits)) if bit == "1")
    return CIRCUIT.format(n=_WIDTH, flips=flips), {bits: 20}


@dataclass(frozen=True)
class Kill:
    """When a process dies.

    Attributes:
        point: An exchange with the service; the process kills itself in it.
        nth: Which one of these exchanges.
        stage: What the process must have begun; then it is killed from outside.
        delay: Seconds after that.
    """

    point: str = "none"
    nth: int = 1
    stage: str = ""
    delay: float = 0.0


@dataclass(frozen=True)
class Odd:
    """An answer that is not the service's own."""

    phase: str
    name: str
    method: str
    path: str
    fault: dict[str, Any]


@dataclass
class Plan:
    """One run of the campaign."""

    seed: int
    way: str
    runner: str
    dialect: str
    explicit: bool
    session: bool
    kills: tuple[Kill, ...]
    watcher: Kill
    again: str
    fault: str
    odd: tuple[Odd, ...]
    lag: float
    expected: dict[str, int] = field(default_factory=dict)
    circuit: str = ""

    def order(self) -> dict[str, Any]:
        """What a process is told."""
        return {
            "runner": self.way if self.way != "flow" else self.runner,
            "circuit": self.circuit,
            "key": f"chaos/{self.seed}" if self.explicit else None,
            "session": self.session,
        }

    def kill(self, process: int) -> dict[str, Any]:
        """When the n-th process dies."""
        return asdict(self.kills[process] if process < len(self.kills) else Kill())


def draw(seed: int) -> Plan:
    """Draw a run; the same seed draws the same one."""
    rng = random.Random(seed)
    way = rng.choices(tuple(WAYS), weights=tuple(WAYS.values()))[0]
    session = way == "script" or rng.random() < 0.5
    plan = Plan(
        seed=seed,
        way=way,
        runner=rng.choices(("sync", "async", "threads", "subprocess"), weights=(6, 6, 6, 1))[0],
        dialect=rng.choice(("cloud", "legacy")),
        explicit=rng.random() < 0.5 and way != "script",
        session=session,
        kills=_kills(rng, way, session),
        watcher=Kill(stage="start", delay=rng.uniform(0, 2)) if rng.random() < 0.4 else Kill(),
        again=rng.choices(("again", "sweep and again", "sweep only"), weights=(6, 3, 1))[0],
        fault=rng.choice(FAULTS),
        odd=_odd(rng),
        lag=rng.uniform(0.1, 1.2),
    )
    if plan.fault == "list-lag-beyond":
        plan.lag = GRACE + rng.uniform(0.5, 3.0)
    plan.circuit, plan.expected = circuit_for(seed)
    return plan


def _kills(rng: random.Random, way: str, session: bool) -> tuple[Kill, ...]:
    """How the first process dies, and now and then the second."""
    return tuple(_kill(rng, way, session) for _ in range(rng.choices((0, 1, 2), weights=(2, 14, 4))[0]))


def _kill(rng: random.Random, way: str, session: bool) -> Kill:
    left_out = set() if session else {"open", "close"}
    if rng.random() < 0.2:
        point = rng.choice([one for one in CRASH_POINTS if session or not one.endswith("-open")])
        return Kill(point, 2 if point.startswith("mid-") and rng.random() < 0.2 else 1)
    left_out |= {"wait"} if way in ("leave", "suspend") else {"leave"}
    left_out |= {"fetch"} if way == "leave" else set()
    stage = rng.choice([one for one in STAGES if one not in left_out])
    return Kill(stage=stage, delay=rng.expovariate(1 / STAGES[stage]))


_ODD_PHASES = {
    **{phase: PHASES[phase] for phase in ("token", "list", "wait", "fetch")},
    "submit": ("POST", "/jobs"),
    "open": ("POST", "/sessions"),
    "stop": ("PATCH", "/sessions/*"),
    "close": ("DELETE", "/sessions/*"),
    "read back": ("GET", "/sessions/*"),
    "workloads": ("GET", "/workloads"),
}
_CHANGES = ("submit", "open", "stop", "close")


def _odd(rng: random.Random) -> tuple[Odd, ...]:
    """Up to four answers of something in between."""
    found = []
    for _ in range(rng.choices((0, 1, 2, 4), weights=(4, 6, 3, 2))[0]):
        phase = rng.choice(tuple(_ODD_PHASES))
        name, fault = rng.choice(CASES)
        # A success is no success if the request was not carried out: that is no odd answer, but a lie.
        accepted = phase in _CHANGES and (name.startswith("200") or rng.random() < 0.5)
        more = {"after_handler": accepted, "times": rng.choice((1, 1, 2)), "skip": rng.choice((0, 0, 1))}
        if accepted:
            name += ", accepted"
        found.append(Odd(phase, name, *_ODD_PHASES[phase], fault={**fault, **more}))
    return tuple(found)


def inject(control: Any, plan: Plan) -> dict[int, str]:
    """Set the plan's faults on the sandbox; returns what each of them is."""
    rng = random.Random(plan.seed + 1)
    numbers: dict[int, str] = {}

    def add(method: str | None, path: str, **fields: Any) -> None:
        numbers[control.add_fault(method, path, **fields)] = plan.fault

    for odd in plan.odd:
        numbers[control.add_fault(odd.method, odd.path, **odd.fault)] = f"odd: {odd.phase}"
    if plan.fault == "lost-reply":
        add("POST", "/jobs", drop="after")
    elif plan.fault == "503-after":
        add("POST", "/jobs", status=503, after_handler=True)
    elif plan.fault == "503-burst-reads":
        add("GET", "/jobs/*", status=503, times=rng.randint(1, 3), skip=rng.randint(0, 2))
    elif plan.fault == "503-burst-create":
        add("POST", "/jobs", status=503)
    elif plan.fault == "429":
        add("POST", "/jobs", status=429, retry_after=0.3, times=rng.randint(1, 2))
    elif plan.fault == "401":
        add(rng.choice(("GET", "POST")), "/jobs*", status=401, skip=rng.randint(0, 1))
    elif plan.fault == "reset":
        add(None, "/jobs*", drop="before", times=rng.randint(1, 2), skip=rng.randint(0, 2))
    elif plan.fault == "stall":
        add("POST", "/jobs", delay=3.0)
    elif plan.fault in ("list-lag", "list-lag-beyond"):
        control.set_option("list_lag", plan.lag)
    elif plan.fault == "get-lag":
        control.set_option("get_lag", plan.lag)
    elif plan.fault == "websocket-1011":
        add(None, "/stream/jobs/*", ws_close=1011, times=2)
    elif plan.fault == "websocket-silence":
        add(None, "/stream/jobs/*", ws_silence=True)
    return numbers


def calm(control: Any) -> None:
    """Take all faults back."""
    control.clear_faults()
    for name in ("list_lag", "get_lag"):
        control.set_option(name, 0.0)
