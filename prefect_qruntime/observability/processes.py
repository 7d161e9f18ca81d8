"""Tell processes of all hosts apart, and tell whether one has ended: noted with jobs and sessions.

A process id alone says little: it is given again, and every host and container counts its own. So it is noted with its
host, the host's start, its space of process ids and its own start. What cannot be told from here is never guessed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
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
    """When a process started, in ticks since its machine's; empty if it is gone or the system does not tell."""
    # The name in the second field may hold blanks and parentheses.
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
    """What identifies this process among those of all hosts."""
    return {**_place(), "pid": str(os.getpid()), "started": _start_of(os.getpid())}


def process_is_gone(facts: Mapping[str, str]) -> bool | None:
    """Whether a process has ended: None if that cannot be told from here, as on another host.

    Args:
        facts: What `process_facts` said in that process.
    """
    here = _place()
    same = {name: facts.get(name, "") == value for name, value in here.items()}
    pid = facts.get("pid", "")
    if not pid.isdigit() or not same["host"] or not same["space"]:
        return None
    if not same["boot"]:
        # Restarted since, if it is this very machine. A container may share its name and id with one elsewhere.
        restarted = same["machine"] and here["machine"] and here["boot"] and here["space"] == _FIRST_PID_SPACE
        return True if restarted else None
    if not here["boot"]:  # no Linux: that a process of this id is there does not say that it is the same one
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
