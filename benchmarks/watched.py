"""A measurement as seen from outside its process: its end, its CPU, and what it asks of the Prefect server."""

from __future__ import annotations

import json
import resource
import threading
import time
import urllib.request
from contextlib import ExitStack

import psutil

from benchmarks.neighbours import PrefectServer
from tests.support.api_proxy import ApiProxy

_AT_REST = 0.1  # of a core
_QUIET = 2.0  # seconds for which it must be so
_LONGEST = 300.0
_PROBE = 0.2  # seconds between questions for the server's health


class Watched:
    """The surroundings of one process; make it right before the process starts.

    Args:
        server: The Prefect server that the process uses.
        aside: What is looked at, see `Measurement`.
    """

    def __init__(self, server: PrefectServer, aside: tuple[str, ...]) -> None:
        self._server = server
        self._aside = aside
        self._url = server.environment["PREFECT_API_URL"]
        self._stack = ExitStack()
        self._over = threading.Event()
        self._slowest = 0.0

    def __enter__(self) -> Watched:
        self._proxy: ApiProxy | None = None
        if "calls" in self._aside:
            port = int(self._url.rpartition(":")[2].partition("/")[0])
            self._proxy = self._stack.enter_context(ApiProxy(port).running())
        if "health" in self._aside:
            threading.Thread(target=self._probe, daemon=True).start()
        self._server_cpu = self._cpu_of_server()
        self._cpu = _cpu_of_children()
        self._pages = self._count_pages()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs to be seen."""
        return {"PREFECT_API_URL": self._proxy.url} if self._proxy is not None else {}

    def numbers(self, told: dict[str, float]) -> dict[str, float]:
        """Complete what the process told of itself. Call it right after the process's end."""
        ended = time.monotonic()
        found = {name: value for name, value in told.items() if name not in ("began", "cpu_before")}
        if "end" in self._aside:
            found["wall"] = ended - told["began"]
            found["cpu"] = _cpu_of_children() - self._cpu - told["cpu_before"]
            found["pages"] = self._count_pages() - self._pages
        if self._proxy is not None:
            found["calls"] = len(self._proxy.seen)
        if "health" in self._aside:
            found["standstill"] = self._slowest
        if "rest" in self._aside:
            found["rest"] = self._rests() - ended
            found["server_cpu"] = self._cpu_of_server() - self._server_cpu
        return found

    def _rests(self) -> float:
        """Wait for the server to rest; returns since when it does."""
        since, last, until = time.monotonic(), self._cpu_of_server(), time.monotonic() + _LONGEST
        while time.monotonic() - since < _QUIET and time.monotonic() < until:
            time.sleep(0.5)
            now = self._cpu_of_server()
            if now - last > _AT_REST * 0.5:
                since = time.monotonic()
            last = now
        return since

    def _cpu_of_server(self) -> float:
        times = psutil.Process(self._server.process.pid).cpu_times()
        return float(times.user + times.system)

    def _count_pages(self) -> int:
        request = urllib.request.Request(
            f"{self._url}/artifacts/count", data=b"{}", headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(json.load(answer))

    def _probe(self) -> None:
        while not self._over.wait(_PROBE):
            asked = time.monotonic()
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=180):
                    pass
            except OSError:
                continue
            self._slowest = max(self._slowest, time.monotonic() - asked)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
