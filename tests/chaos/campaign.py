"""What the chaos suite draws at random, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CRASH_POINTS = (
    "none",
    "before-post",
    "in-post",
    "after-post",
    "after-submit",
    "mid-wait",
    "mid-fetch",
    "in-open",
    "after-open",
)
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
    "get-lag",
    "websocket-1011",
    "websocket-silence",
)
GRACE = 2.0  # seconds; stands for the default of 30, so a list lag of 1.2 stands for 18 s

CIRCUIT = """OPENQASM 3;
include "stdgates.inc";
qubit[{n}] q;
bit[{n}] c;
{flips}
c = measure q;
"""


def circuit_for(number: int) -> tuple[str, dict[str, int]]:
    """A circuit of its own for each number, and the counts it must give."""
    bits = f"{number % 1024:010b}"
    flips = "\n".join(f"x q[{i}];" for i, bit in enumerate(reversed(bits)) if bit == "1")
    return CIRCUIT.format(n=10, flips=flips), {bits: 20}


@dataclass
class Plan:
    """One run of the campaign."""

    seed: int
    runner: str
    dialect: str
    point: str
    fault: str
    explicit: bool
    session: bool
    nth: int
    lag: float
    expected: dict[str, int] = field(default_factory=dict)
    circuit: str = ""


def draw(seed: int) -> Plan:
    """Draw a run; the same seed draws the same one."""
    rng = random.Random(seed)
    plan = Plan(
        seed=seed,
        runner=rng.choices(("sync", "async", "threads", "subprocess"), weights=(4, 4, 4, 1))[0],
        dialect=rng.choice(("cloud", "legacy")),
        point=rng.choice(CRASH_POINTS),
        fault=rng.choice(FAULTS),
        explicit=rng.random() < 0.5,
        session=rng.random() < 0.5,
        nth=rng.choice((1, 1, 2)) if rng.random() < 0.5 else 1,
        lag=rng.uniform(0.1, 1.2),
    )
    plan.circuit, plan.expected = circuit_for(seed)
    if plan.point.endswith(("-post", "-open")):
        plan.nth = 1
    return plan


def inject(control: Any, plan: Plan) -> None:
    """Set the plan's fault on the sandbox."""
    rng = random.Random(plan.seed + 1)
    if plan.fault == "lost-reply":
        control.add_fault("POST", "/jobs", drop="after")
    elif plan.fault == "503-after":
        control.add_fault("POST", "/jobs", status=503, after_handler=True)
    elif plan.fault == "503-burst-reads":
        control.add_fault("GET", "/jobs/*", status=503, times=rng.randint(1, 3), skip=rng.randint(0, 2))
    elif plan.fault == "503-burst-create":
        control.add_fault("POST", "/jobs", status=503)
    elif plan.fault == "429":
        control.add_fault("POST", "/jobs", status=429, retry_after=0.3, times=rng.randint(1, 2))
    elif plan.fault == "401":
        control.add_fault(rng.choice(("GET", "POST")), "/jobs*", status=401, skip=rng.randint(0, 1))
    elif plan.fault == "reset":
        control.add_fault(None, "/jobs*", drop="before", times=rng.randint(1, 2), skip=rng.randint(0, 2))
    elif plan.fault == "stall":
        control.add_fault("POST", "/jobs", delay=3.0)
    elif plan.fault == "list-lag":
        control.set_option("list_lag", plan.lag)
    elif plan.fault == "get-lag":
        control.set_option("get_lag", plan.lag)
    elif plan.fault == "websocket-1011":
        control.add_fault(None, "/stream/jobs/*", ws_close=1011, times=2)
    elif plan.fault == "websocket-silence":
        control.add_fault(None, "/stream/jobs/*", ws_silence=True)


class Host:
    """The process that forks victims."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.victim"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready"

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order; returns its counts, its error, or the signal that ended it."""
        text = json.dumps(order)
        if order["runner"] == "subprocess":
            done = subprocess.run(
                [sys.executable, "-m", "tests.chaos.victim", text],
                cwd=ROOT,
                env=self._env,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            return json.loads(lines[-1]) if lines else {"killed": -done.returncode}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the host of the victims ended: {self._process.poll()}")
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer

    def stop(self) -> None:
        """End the host."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def runs() -> int:
    """How many runs: `QRUNTIME_CHAOS_RUNS`, by default few enough for every test run."""
    return int(os.environ.get("QRUNTIME_CHAOS_RUNS", "10"))


def first_seed() -> int:
    """Where the seeds begin: `QRUNTIME_CHAOS_SEED`."""
    return int(os.environ.get("QRUNTIME_CHAOS_SEED", "1000"))
