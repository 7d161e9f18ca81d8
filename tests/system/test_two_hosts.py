"""Two workers on two hosts, which share nothing but Prefect's server and the service: one host dies in the middle.

With `make postgres-test` the server keeps its data in PostgreSQL. A host is a set of namespaces with a name of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.operations.sweep import resume_flow_run
from prefect_qruntime.sandbox import Sandbox
from tests.support import host
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import BLOCK, ROOT, Site, until
from tests.system import nightly

LONG = 400.0
pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not host.can_be_made(), reason="hosts are namespaces: needs Linux, root, unshare and ip"),
]


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.1, "run_time": 0.1, "api_key": "hosts-tests-key-0123456789"}


class Host:
    """A host with a worker on it."""

    def __init__(self, name: str, site: Site, folder: Path) -> None:
        self.name = name
        ports = [urlsplit(url).port or 0 for url in (site.server.url, site.sandbox.url)]
        worker = ["-m", "prefect", "worker", "start", "--pool", site.pool, "--name", name, "--limit", "1"]
        with (site.server.home / "worker.log").open("ab") as out:
            self.process = subprocess.Popen(
                host.on_host(name, folder, ports, [sys.executable, *worker]),
                env=site.server.env | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def runs(self, flow_run_id: UUID) -> bool:
        """Whether a flow run's process is here."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if child.environ().get("PREFECT__FLOW_RUN_ID") == str(flow_run_id):
                    return True
            except psutil.Error:
                continue
        return False

    def kill(self) -> None:
        """Cut the power."""
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=60)


@pytest.fixture
def site(prefect_server: PrefectServer, sandbox: Sandbox) -> Site:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    return Site(prefect_server, sandbox, pool="two-hosts")


@pytest.fixture
def hosts(site: Site) -> Iterator[list[Host]]:
    ports = [urlsplit(url).port or 0 for url in (site.server.url, site.sandbox.url)]
    folder = Path(tempfile.mkdtemp(prefix="qr-"))  # short, as a unix socket's path must be
    made: list[Host] = []
    try:
        with host.doors(folder, ports):
            site.sandbox.control.hold()
            site.deploy(nightly.nightly_sync)  # makes the pool that the workers want
            made += [Host(name, site, folder) for name in ("host-one", "host-two")]
            yield made
    finally:
        for one in made:
            one.kill()
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


def test_a_host_dies_and_the_other_one_ends_its_flow_run(site: Site, hosts: list[Host]) -> None:
    runs = [site.run(nightly.nightly_sync) for _ in range(2)]
    for run in runs:
        until(lambda run=run: len(site.jobs(run)) == 2, LONG, "two jobs submitted")
    (lost,) = [run for run in runs if hosts[0].runs(run)]
    (kept,) = [run for run in runs if hosts[1].runs(run)]
    before = sorted(job["id"] for job in site.jobs(lost))

    hosts[0].kill()
    assert site.state(lost) == "Running", "no part of Prefect noticed"
    site.sandbox.control.release()
    site.reaches(kept, "Completed", LONG)

    resume_flow_run(str(lost), force=True)  # from another host it cannot be told that its process is gone
    site.reaches(lost, "Completed", LONG)
    assert sorted(job["id"] for job in site.jobs(lost)) == before, "nothing was submitted twice"
    assert len(site.sandbox.control.jobs()) == 4
    for run in runs:
        assert site.statuses(run) == ["Completed"] * 2
    until(lambda: not site.sandbox.control.open_sessions(), LONG, "the sessions closed")
