"""The processes beside a measurement: a sandbox and a Prefect server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lab import Lab

ROOT = Path(__file__).resolve().parent.parent
_START_LIMIT = 120.0


def plain_environment(home: Path) -> dict[str, str]:
    """This environment without Prefect's settings, with a PREFECT_HOME of its own.

    Modules are compiled once, as pip does it for those that it installs; else each start of a process would pay.
    """
    home.mkdir(parents=True, exist_ok=True)
    left_out = ("PREFECT_", "PYTHONDONTWRITEBYTECODE")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(left_out)},
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }


class _Neighbour:
    """A process that lives beside the measurements."""

    process: subprocess.Popen[str]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def cpu_percent(self, interval: float) -> float:
        """Per cent of one core that it uses; none once it is gone."""
        try:
            return float(psutil.Process(self.process.pid).cpu_percent(interval))
        except psutil.NoSuchProcess:
            return 0.0


class SandboxProcess(_Neighbour):
    """A sandbox.

    Args:
        options: Options of `Sandbox`.

    Attributes:
        connection: Root, API key and CRN.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve", json.dumps(options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"the sandbox ended with {self.process.wait()}")
        self.connection: dict[str, str] = json.loads(line)

    def reset(self) -> None:
        """Start over."""
        Lab(self.connection["url"], "", "").control("reset")

    def stop(self) -> None:
        """End it, by ending its stdin."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PrefectServer(_Neighbour):
    """A Prefect server with a database of its own.

    Args:
        home: Folder for it.
        collecting: Start it by `prefect-qruntime server`, not by `prefect server start`.

    Attributes:
        environment: What a process needs to use it.
    """

    def __init__(self, home: Path, *, collecting: bool = False) -> None:
        self.collecting = collecting
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        url = f"http://127.0.0.1:{port}/api"
        self.environment = {"PREFECT_API_URL": url}
        ours = str(Path(sys.executable).parent / "prefect-qruntime")
        command = [ours, "server"] if collecting else [sys.executable, "-m", "prefect", "server", "start"]
        with (home.parent / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                cwd=home.parent,
                env={**plain_environment(home), "PREFECT_SERVER_API_PORT": str(port)},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        until = time.monotonic() + _START_LIMIT
        while not _answers(f"{url}/health"):
            if not self.alive or time.monotonic() > until:
                if self.alive:
                    self.stop()
                raise RuntimeError("the Prefect server did not start")
            time.sleep(0.3)

    def stop(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
