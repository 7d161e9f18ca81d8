"""Prove that a plain `pip install .` in an empty environment gives a Prefect server that starts and schedules,
and that what `prefect-qruntime init` writes deploys.

Prefect 3.8 lets pip take a fastapi with which its own server fails to import, and a SQLAlchemy with which its
scheduler fails; our requirements keep pip from both. Run by `make plain-install`; needs a package index.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 400.0
SCHEDULE = """
import asyncio, sys, time
from datetime import timedelta
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule

@flow
def scheduled(): ...

async def main():
    async with get_client() as client:
        schedule = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(minutes=1)))
        await client.create_deployment(await client.create_flow(scheduled), "plain", schedules=[schedule])
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if await client.read_flow_runs():
                return
            await asyncio.sleep(0.5)
    sys.exit("the server's scheduler made no run of a schedule")

asyncio.run(main())
"""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers its health check."""
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit(f"the Prefect server ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise SystemExit(f"the Prefect server did not start within {START_LIMIT:.0f} s")


def deploy_what_init_writes(home: Path, env: dict[str, str]) -> None:
    """Follow the quick start with the installed package alone: init, register, deploy."""
    tools, site = home / "env" / "bin", home / "site"
    subprocess.run([tools / "prefect-qruntime", "init", site], check=True, cwd=home, env=env)
    for words in (
        ["block", "register", "-m", "prefect_qruntime.blocks"],
        ["work-pool", "create", "quantum", "--type", "process"],
        ["--no-prompt", "deploy", "--all"],
    ):
        subprocess.run([tools / "prefect", *words], check=True, cwd=site, env=env, stdout=subprocess.DEVNULL)
    listed = subprocess.run(
        [tools / "prefect", "deployment", "ls"], check=True, cwd=site, env=env, capture_output=True, text=True
    ).stdout
    if "circuits-on-demand" not in listed:
        raise SystemExit(f"what init writes was not deployed:\n{listed}")


def main() -> None:
    """Install into a new environment, start the server, look at it, stop it."""
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        home = Path(folder)
        venv.create(home / "env", with_pip=True)
        python = home / "env" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT], check=True)
        heavy = "import sys, prefect_qruntime; sys.exit(any(m in sys.modules for m in ('qiskit', 'numpy')))"
        subprocess.run([python, "-c", heavy], check=True, cwd=home)
        # The demo's flow and its circuits come with the package, not with the repository only.
        story = (
            "from prefect_qruntime.flows.run_circuits import CIRCUITS; assert len(list(CIRCUITS.glob('*.qasm'))) == 3"
        )
        subprocess.run([python, "-c", story], check=True, cwd=home)
        port = free_port()
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = [home / "env" / "bin" / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(
            command, cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            api = f"http://127.0.0.1:{port}/api"
            wait_until_healthy(f"{api}/health", server)
            env["PREFECT_API_URL"] = api
            subprocess.run([python, "-c", SCHEDULE], check=True, cwd=home, env=env)
            deploy_what_init_writes(home, env)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)
    sys.stdout.write(
        "plain install: the package imports without qiskit, the Prefect server starts and schedules, "
        "and what init writes deploys\n"
    )


if __name__ == "__main__":
    main()
