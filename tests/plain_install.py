"""Walk a new user's way with the wheel alone, in an empty environment, from `pip install` to the counts of a job.

The wheel is built and installed without extras. Then come a Prefect server that starts and schedules, `init`, a saved
block, a deployment, a worker and a run, as the quick start has them. The service is the sandbox, in the environment
that runs this file, as IBM's is elsewhere too.

Prefect 3.8 lets pip take a fastapi with which its own server fails to import, and a SQLAlchemy with which its
scheduler fails; our requirements keep pip from both. Run by `make plain-install`; needs a package index.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 300.0
DEPLOYMENT = "run-circuits/circuits-on-demand"
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
        end = time.monotonic() + 300
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


@contextlib.contextmanager
def running(command: list[str | Path], folder: Path, env: dict[str, str], **pipes: Any) -> Iterator[subprocess.Popen]:
    """A process, with those it starts, until the block ends."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **pipes}
    process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **quiet)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a worker sends itself SIGINT, which a background job may have to ignore
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def running_sandbox(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The service: what `prefect-qruntime sandbox --json` says of itself."""
    code = "from prefect_qruntime.cli import main; main()"
    command: list[str | Path] = [sys.executable, "-c", code, "sandbox", "--port", "0", "--run-time", "0.2", "--json"]
    with running(command, ROOT, env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the sandbox ended with code {process.wait()}")
        yield json.loads(line)


def check_page(wheel: Path) -> None:
    """Whether the wheel's page on an index leads somewhere: every link is an address, and the project has some."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        page = packed.read(name).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    if not links or [link for link in links if not link.startswith(("https://", "#"))]:
        raise SystemExit(f"the package's page has links that lead nowhere: {links}")
    if page.count("Project-URL: ") < 4 or "Description-Content-Type: text/markdown" not in page:
        raise SystemExit(f"the package's page lacks the project's addresses or its kind of text:\n{page[:2000]}")


def walk_dockerfile(tools: Path, folder: Path, env: dict[str, str], wheel: Path) -> None:
    """Run the steps of `deploy/Dockerfile` in the empty environment, but for the user that an image needs."""
    folder.mkdir()
    env = {**env, "PATH": f"{tools}:{env['PATH']}", "PACKAGE": str(wheel), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    steps = re.findall(r"^RUN (.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    for step in steps:
        if not step.startswith("useradd"):
            subprocess.run(["bash", "-c", step], check=True, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    if not steps or not (folder / "prefect.yaml").exists():
        raise SystemExit(f"the Dockerfile's steps left no deployment file: {steps}")


class Story:
    """The commands of the quick start, in the empty environment."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.tools = home / "env" / "bin"
        self.site = home / "site"
        self.env = env

    def call(self, tool: str, *words: str | Path) -> str:
        """What a command prints. One that fails ends the story with all that it said."""
        command = [str(self.tools / tool), *map(str, words)]
        done = subprocess.run(command, cwd=self.site, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{tool} {words[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def deploy(self) -> None:
        """Write the files, register the blocks and deploy."""
        self.site.mkdir()
        said = self.call("prefect-qruntime", "init")
        self.call("prefect", "block", "register", "-m", "prefect_qruntime.blocks")
        self.call("prefect", "work-pool", "create", "quantum", "--type", "process")
        self.call("prefect", "--no-prompt", "deploy", "--all")
        self.call("prefect", "deployment", "inspect", DEPLOYMENT)
        if DEPLOYMENT not in said:
            raise SystemExit(f"init does not say how to run {DEPLOYMENT}:\n{said}")

    def save_block(self, connection: dict[str, str]) -> None:
        """Save the credentials as the README does, and have `doctor` look at them."""
        code = "import json, sys; from prefect_qruntime import QuantumRuntimeCredentials as C; "
        code += "C(**json.loads(sys.argv[1])).save('ibm')"
        self.call("python", "-c", code, json.dumps(connection))
        self.call("prefect-qruntime", "doctor", "--block", "ibm")

    def run(self) -> dict[str, int]:
        """Run the deployment on the block with a worker; returns the counts that `result` shows."""
        worker: list[str | Path] = [self.tools / "prefect", "worker", "start", "--pool", "quantum"]
        with running(worker, self.site, self.env):
            self.call(
                "prefect", "deployment", "run", DEPLOYMENT, "--param", "credentials_block=ibm", "--param", "mode=job",
                "--watch",
            )  # fmt: skip
        listed = json.loads(self.call("prefect-qruntime", "jobs", "--json"))["jobs"]
        if [(job["state"], bool(job["flow_run"])) for job in listed] != [("completed", True)]:
            raise SystemExit(f"the run left other jobs than one that is completed and its own: {listed}")
        shown = self.call("prefect-qruntime", "result", listed[0]["id"])
        return {outcome: int(count) for outcome, count in re.findall(r"│ +(?:[01]+ +│ +)?([01]{2}) +│ +(\d+)", shown)}


def main() -> None:
    """Walk the way; the last line says how far it led."""
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        home = Path(folder)
        venv.create(home / "env", with_pip=True)
        # Without PYTHONPATH: pip would take what lies there for installed.
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHON"))},
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "COLUMNS": "80",
        }
        python = home / "env" / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", home / "dist", ROOT], check=True, env=env)
        (wheel,) = (home / "dist").glob("*.whl")
        check_page(wheel)
        subprocess.run([*pip, "install", "--quiet", wheel], check=True, env=env)
        heavy = "import sys, prefect_qruntime; sys.exit(any(m in sys.modules for m in ('qiskit', 'numpy')))"
        subprocess.run([python, "-c", heavy], check=True, cwd=home, env=env)
        # The demo's flow and its circuits come with the package, not with the repository only.
        example = (
            "from prefect_qruntime.flows.run_circuits import CIRCUITS; assert len(list(CIRCUITS.glob('*.qasm'))) == 3"
        )
        subprocess.run([python, "-c", example], check=True, cwd=home, env=env)
        walk_dockerfile(home / "env" / "bin", home / "image", env, wheel)
        port = free_port()
        server: list[str | Path] = [home / "env" / "bin" / "prefect", "server", "start", "--host", "127.0.0.1"]
        with running([*server, "--port", str(port)], home, env) as process, running_sandbox(env) as connection:
            api = f"http://127.0.0.1:{port}/api"
            wait_until_healthy(f"{api}/health", process)
            env["PREFECT_API_URL"] = api
            subprocess.run([python, "-c", SCHEDULE], check=True, cwd=home, env=env)
            story = Story(home, env)
            story.deploy()
            story.save_block(connection)
            counts = story.run()
    if sum(counts.values()) != 1000 or not set(counts) & {"00", "11"}:
        raise SystemExit(f"the Bell circuit's 1000 shots gave {counts}")
    sys.stdout.write(
        "plain install: the wheel imports without qiskit, the Prefect server starts and schedules, what init writes "
        f"deploys, and a worker's run of {DEPLOYMENT} gave {counts}\n"
    )


if __name__ == "__main__":
    main()
