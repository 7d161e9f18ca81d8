"""Follow a process by what it says, and kill it some time after it has begun something."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 900.0  # seconds after which a process counts as stuck


def follow(read: int, pid: int, kill: dict[str, Any]) -> dict[str, Any]:
    """Read what a child says until it has ended, and reap it.

    Args:
        read: Where it says it.
        pid: The child.
        kill: When it is to be killed: `stage` and `delay`.

    Returns:
        What it said at its end, if it did, with `pid`, `stage` (the last one it began), `signal` and `stuck`.
    """
    answer: dict[str, Any] = {"pid": pid, "stage": "none", "stuck": False}
    began, at, rest = time.monotonic(), None, b""
    while True:
        now = time.monotonic()
        ready, _, _ = select.select([read], [], [], max(0.0, (began + LONGEST if at is None else at) - now))
        if not ready:
            answer["stuck"] = at is None
            os.kill(pid, signal.SIGKILL)
            began, at = now, None
            continue
        piece = os.read(read, 65536)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"{"):
                continue  # a subprocess may print other things
            facts = json.loads(line)
            answer |= facts
            if kill["stage"] and facts.get("stage") == kill["stage"] and at is None:
                at = time.monotonic() + kill["delay"]
    os.close(read)
    _, status = os.waitpid(pid, 0)
    answer["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return answer


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
        """Carry out an order in a process; returns what `follow` tells of it."""
        if order["runner"] == "subprocess":
            return self._alone(order)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the host of the victims ended: {self._process.poll()}")

    def _alone(self, order: dict[str, Any]) -> dict[str, Any]:
        """In a process with an interpreter of its own."""
        read, write = os.pipe()
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.victim", json.dumps(order)],
            cwd=ROOT,
            env=self._env,
            stdout=write,
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        answer = follow(read, child.pid, order["kill"])
        child.returncode = -answer["signal"]  # reaped already
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
