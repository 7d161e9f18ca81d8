"""Deployments on a real work pool with a real worker: cancelled, stopped, killed, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from prefect.states import Cancelling, Scheduled

from tests.support.command_line import command
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import BLOCK, Site, until, worked_on
from tests.system import nightly

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(prefect_server: PrefectServer) -> Iterator[Site]:
    with worked_on(prefect_server, api_key="system-tests-key-0123456789") as place:
        yield place


@pytest.fixture(autouse=True)
def clean(site: Site) -> None:
    site.ready()
    site.sandbox.reset()
    site.sandbox.control.hold()


def test_cancel_reaches_jobs_and_sessions_and_detached_ones_live_on(site: Site) -> None:
    in_process = [site.run(nightly.nightly_sync), site.run(nightly.nightly_async)]
    mapped = site.run(nightly.nightly_mapped)
    busy, detached = site.run(nightly.nightly_busy), site.run(nightly.nightly_detached)
    site.complete_or_withdraw({**dict.fromkeys(in_process, 2), mapped: 3, busy: 1, detached: 1})
    assert len(site.sandbox.control.open_sessions()) == 2

    began = time.monotonic()
    for run in (*in_process, mapped, busy, detached):
        site.set_state(run, Cancelling())
    for run in in_process:
        until(lambda run=run: site.statuses(run) == ["Cancelled"] * 2, 15, "both jobs cancelled")
    left = 15 - (time.monotonic() - began)
    until(lambda: not site.sandbox.control.open_sessions(), left, "the sessions closed")
    # These wait in threads: Prefect is asked each ten seconds whether somebody pressed Cancel.
    until(lambda: site.statuses(mapped) == ["Cancelled"] * 3, 25, "the mapped jobs cancelled")
    # This process sleeps in foreign code: only the hook, in a process of its own, can cancel its job.
    until(lambda: site.statuses(busy) == ["Cancelled"], 60, "the job cancelled by the hook")
    for run in (*in_process, mapped, busy, detached):
        site.reaches(run, "Cancelled", 60)
    assert site.statuses(detached) == ["Queued"]
    assert site.cancels(detached) == 0
    assert len(site.sandbox.control.jobs()) == 9


def test_losing_the_process_cancels_nothing_and_a_rerun_attaches(site: Site) -> None:
    ends = {site.run(nightly.nightly_sync): signal.SIGTERM, site.run(nightly.nightly_async): signal.SIGKILL}
    site.complete_or_withdraw(dict.fromkeys(ends, 2))
    for run, number in ends.items():
        os.kill(site.process(run).pid, number)
    for run, number in ends.items():
        site.crashes(run, 60, killed=number == signal.SIGKILL)
        assert site.cancels(run) == 0
        assert site.statuses(run) == ["Queued"] * 2
    site.sandbox.control.release()
    for run in ends:
        site.set_state(run, Scheduled(), force=True)
    for run in ends:
        site.reaches(run, "Completed", 90)
        assert site.statuses(run) == ["Completed"] * 2
        assert site.cancels(run) == 0


def sweep(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, as an operator uses it."""
    return command(site.server.env, *words)


def test_worker_and_process_killed_together_the_sweep_says_how_to_go_on_and_resume_does(site: Site) -> None:
    run = site.run(nightly.nightly_sync)
    site.complete_or_withdraw({run: 2})
    alive = sweep(site, "resume", str(run))
    assert alive.returncode == 2
    assert "may be alive" in alive.stderr
    assert site.state(run) == "Running"

    process = site.process(run)
    assert site.worker is not None
    site.worker.kill()
    os.kill(process.pid, signal.SIGKILL)
    site.worker.wait()
    psutil.wait_procs([process], timeout=10)
    assert site.state(run) == "Running", "no part of Prefect noticed"
    before = [job["id"] for job in site.jobs(run)]

    report = sweep(site, "sweep", "--block", BLOCK, "--json")
    assert report.returncode == 1, report.stderr
    (stalled,) = json.loads(report.stdout)["stalled"]
    assert stalled["id"] == str(run)
    assert f"prefect-qruntime resume {run}" in stalled["next_step"]
    assert "Copy to new run" in stalled["next_step"]
    assert site.statuses(run) == ["Queued"] * 2, "the sweep only reports"

    done = sweep(site, "resume", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["jobs"]) == sorted(before)
    (session,) = site.sandbox.control.sessions()
    assert session["accepting_jobs"] is False
    assert site.state(run) == "Resuming"
    again = sweep(site, "resume", str(run))
    assert again.returncode == 2
    assert "already" in again.stderr

    site.start_worker(name="another")
    site.sandbox.control.release()
    site.reaches(run, "Completed", 90)
    assert [job["id"] for job in site.jobs(run)] == before, "nothing was submitted twice"
    assert site.statuses(run) == ["Completed"] * 2
    assert site.flow_run(run).run_count == 1, "it was no retry"
    until(lambda: not site.sandbox.control.open_sessions(), 15, "the sessions closed")
    assert sweep(site, "sweep", "--block", BLOCK).returncode == 0


def test_stopping_the_worker_cancels_nothing(site: Site) -> None:
    run = site.run(nightly.nightly_async)
    site.complete_or_withdraw({run: 2})
    assert site.worker is not None
    site.worker.terminate()
    time.sleep(3.0)  # long enough for a cancel to be seen, were there one
    assert site.cancels(run) == 0
    assert site.statuses(run) == ["Queued"] * 2
    site.sandbox.control.release()
    until(lambda: site.statuses(run) == ["Completed"] * 2, 30, "the jobs completed by themselves")
    assert site.cancels(run) == 0
