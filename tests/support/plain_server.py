"""`prefect server start` as users have it, without helpers of ours, for tests that restart or kill it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import orjson

from tests.support.prefect_server import ROOT, SHORT_TRUST, migrate, outside_prefect

START_LIMIT = 300.0


class PlainServer:
    """`prefect server start` on SQLite, which can be restarted with its data."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.settings = home, settings
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None
        migrate(home)

    def env(self, url: str | None = None) -> dict[str, str]:
        return {
            **outside_prefect(),
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": url or self.url,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "0.4",
            "DO_NOT_TRACK": "1",
            **SHORT_TRUST,
            **self.settings,
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--no-ui"], env=self.env(), cwd=self.home, stdout=out, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.home / "server.log").read_text()[-3000:]
                time.sleep(0.2)
        raise AssertionError("the Prefect server did not start")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", data=orjson.dumps(body), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=150) as answer:
            return orjson.loads(answer.read())

    def artifacts(self, kind: str) -> list[dict[str, Any]]:
        wanted = {"artifacts": {"key": {"like_": f"qruntime-{kind}-%"}}, "limit": 200}
        return [one["metadata_"] for one in self.ask("/artifacts/filter", wanted)]

    def locks(self) -> list[str]:
        wanted = {"variables": {"name": {"like_": "qruntime-"}}, "limit": 200}
        return [one["name"] for one in self.ask("/variables/filter", wanted)]
