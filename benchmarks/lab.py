"""What a measurement has at hand: the sandbox, its journal, and gauges of this process."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.hurry import real_monotonic

BACKEND = "sandbox_ideal"
BELL = """OPENQASM 3.0;
include "stdgates.inc";
bit[2] meas;
h $0;
cx $0, $1;
meas[0] = measure $0;
meas[1] = measure $1;
"""


@dataclass(frozen=True)
class Requests:
    """What the sandbox was asked for.

    Attributes:
        aside: Requests that are no looks at the state of a job.
        polls: Looks at the state of a job, single or in lists.
        connections: TCP connections they came over.
    """

    aside: int
    polls: int
    connections: int

    @property
    def total(self) -> int:
        """All requests."""
        return self.aside + self.polls


@dataclass
class Lab:
    """The surroundings of one measurement.

    Attributes:
        url: Root of the sandbox.
        api_key: Key of its first user.
        crn: Its first instance.
        peer: Name of the peer that is measured.
        scale: Seconds of the sandbox, and of this process, in a real one.
        args: What is to be measured: counts and durations.
    """

    url: str
    api_key: str
    crn: str
    peer: str = ""
    scale: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """The cloud dialect's address."""
        return f"{self.url}/api/v1"

    # ---- the sandbox ---------------------------------------------------------------------------

    def control(self, action: str, **fields: Any) -> Any:
        """Call the sandbox's control; its requests are not in the journal."""
        request = urllib.request.Request(
            f"{self.url}/_control/{action}",
            data=json.dumps(fields).encode(),
            headers={"content-type": "application/json", "x-sandbox-token": os.environ["QRUNTIME_SANDBOX_TOKEN"]},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["result"]

    def requests(self) -> Requests:
        """Count what was asked since the journal was cleared."""
        journal = self.control("journal")
        polls = sum(is_poll(entry["method"], entry["path"]) for entry in journal)
        return Requests(len(journal) - polls, polls, len({entry["connection"] for entry in journal}))

    def service_clock(self) -> ServiceClock:
        """Read the sandbox's clock, to be told later what it shows without asking again."""
        before = real_monotonic()
        told = float(self.control("now"))
        return ServiceClock(told, (before + real_monotonic()) / 2, self.scale)

    def ends(self) -> dict[str, float]:
        """Return when each job ended, in service seconds."""
        return {job["id"]: job["ended"] for job in self.control("jobs") if job["ended"] is not None}

    def raw_result(self, params: dict[str, Any], backend: str = BACKEND) -> bytes:
        """Buy a sampler job with nothing but the standard library and return the body of its result."""
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": self.api_key}
        body = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{self.url}/identity/token", data=body, timeout=30) as answer:
            token = json.load(answer)["access_token"]
        headers = {
            "Authorization": f"Bearer {token}",
            "Service-CRN": self.crn,
            "IBM-API-Version": "2026-04-15",
            "Content-Type": "application/json",
        }
        payload = json.dumps({"program_id": "sampler", "backend": backend, "params": params}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.base_url}/jobs", data=payload, headers=headers), timeout=30
        ) as answer:
            job = json.load(answer)["id"]
        self.control("wait_job", job_id=job, timeout=100)
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.base_url}/jobs/{job}/results", headers=headers), timeout=60
        ) as answer:
            return bytes(answer.read())


@dataclass(frozen=True)
class ServiceClock:
    """What the sandbox's clock shows, reckoned from one reading."""

    told: float
    at: float
    scale: float

    def now(self) -> float:
        """Service seconds since the epoch."""
        return self.told + (real_monotonic() - self.at) * self.scale


class Gauge:
    """Real seconds, CPU seconds and memory of this process, from construction on."""

    def __init__(self) -> None:
        self._wall = real_monotonic()
        self._cpu = time.process_time()
        self.rss = psutil.Process().memory_info().rss

    @property
    def wall(self) -> float:
        """Real seconds gone by."""
        return real_monotonic() - self._wall

    @property
    def cpu(self) -> float:
        """CPU seconds spent, all threads."""
        return time.process_time() - self._cpu

    @property
    def grown(self) -> int:
        """Bytes by which the resident memory has grown."""
        return int(psutil.Process().memory_info().rss - self.rss)


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def is_poll(method: str, path: str) -> bool:
    """Whether a request looks at the state of one job or of many; a search for a submission key is none."""
    parts = urllib.parse.urlsplit(path)
    if method != "GET" or "qr-key" in urllib.parse.unquote(parts.query):
        return False
    return parts.path == "/jobs" or (parts.path.startswith("/jobs/") and parts.path.count("/") == 2)
