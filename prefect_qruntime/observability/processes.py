"""Identify processes across hosts, and find out whether one has ended. The facts are recorded with jobs and sessions.

A process id alone is ambiguous: it is reused, and every host and container has its own. So it is recorded with its
host, the host's boot id, its pid namespace and its own start time. What is not known here is never guessed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

__all__ = ["PROCESS_FACTS", "process_facts", "process_is_gone"]

PROCESS_FACTS = ("host", "machine", "boot", "space", "pid", "started")

_FIRST_PID_SPACE = "pid:[4026531836]"  # of a Linux machine itself; a container has another one


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a link to no file
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the machine's start; empty if it is gone or that is not known."""
    # The name in the second field may contain spaces and parentheses.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X") else ""


@cache
def _place() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "machine": _read("/etc/machine-id"),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "space": _pid_space(),
    }


def process_facts() -> dict[str, str]:
    """The facts that identify this process among those of all hosts."""
    return dict(_facts_of(os.getpid()))


@lru_cache(maxsize=1)  # a forked process has another id
def _facts_of(pid: int) -> dict[str, str]:
    return {**_place(), "pid": str(pid), "started": _start_of(pid)}


def process_is_gone(facts: Mapping[str, str]) -> bool | None:
    """Whether a process has ended; None if that is not known here, for instance of another host.

    Args:
        facts: The `process_facts` of that process.
    """
    here = _place()
    same = {name: facts.get(name, "") == value for name, value in here.items()}
    pid = facts.get("pid", "")
    if not pid.isdigit() or not same["host"] or not same["space"]:
        return None
    if not same["boot"]:
        # The machine was restarted since. A container may share its name and id with one elsewhere.
        restarted = same["machine"] and here["machine"] and here["boot"] and here["space"] == _FIRST_PID_SPACE
        return True if restarted else None
    if not here["boot"]:  # not Linux: a process with this id need not be the same one
        return None if os.name == "nt" or _exists(int(pid)) else True
    return _start_of(int(pid)) != facts.get("started")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
