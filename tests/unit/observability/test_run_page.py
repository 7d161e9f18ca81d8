"""How pages are gathered, written again and drained, without Prefect."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prefect.client.schemas.objects import Artifact

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability import artifacts, run_page
from prefect_qruntime.observability.artifacts import Record, _open_jobs, open_note
from prefect_qruntime.observability.run_page import PageWrites, drain, flush

Written = list[tuple[str, dict[str, Any], str | None]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """What was written, page by page; pages of jobs that begin with `bad` fail, of those with `slow` never end."""
    done: Written = []

    async def write(job_id: str, pending: Any) -> bool:
        await asyncio.sleep(3600 if job_id.startswith("slow") else 0)
        done.append((job_id, dict(pending.meta), pending.section))
        return not job_id.startswith("bad")

    monkeypatch.setattr(run_page, "_write", write)
    return done


def on_loop(work: Callable[[PageWrites], Coroutine[Any, Any, Any]]) -> Any:
    network_loop().forget(PageWrites)

    async def run() -> Any:
        return await work(network_loop().state(PageWrites))

    try:
        return network_loop().run(run())
    finally:
        network_loop().forget(PageWrites)


def test_what_comes_together_is_written_once(written: Written) -> None:
    async def work(pages: PageWrites) -> None:
        pages.put("d1", {"state": "submitted", "block": "b"}, new=True, after=60)
        pages.put("d2", {"state": "submitted"}, after=60)
        pages.put("d1", {"state": "Completed", "block": None}, after=60)
        pages.put("d1", {}, section="counts", after=0)
        while not written:  # noqa: ASYNC110 - the write happens in another task, without an event of ours
            await asyncio.sleep(0.01)
        assert list(pages.pages) == ["d2"]
        await flush()

    on_loop(work)
    assert written == [
        ("d1", {"state": "Completed", "block": "b"}, "counts"),
        ("d2", {"state": "submitted"}, None),
    ]


def test_a_page_that_failed_is_written_again_with_what_came_meanwhile(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page, "_AGAIN", 0.01)

    async def work(pages: PageWrites) -> None:
        pages.put("bad", {"state": "submitted"})
        while len(written) < run_page._TRIES:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not pages.pages  # and given up then

    on_loop(work)
    assert len(written) == run_page._TRIES


@pytest.mark.parametrize("flushed", [False, True])
def test_facts_of_a_failed_write_never_replace_newer_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flushed: bool
) -> None:
    monkeypatch.setattr(run_page, "_AGAIN", 0.01)
    done: list[dict[str, Any]] = []

    async def work(pages: PageWrites) -> None:
        begun, fail = asyncio.Event(), asyncio.Event()

        async def write(_job_id: str, pending: Any) -> bool:
            if not begun.is_set():  # the first attempt fails, but late
                begun.set()
                await fail.wait()
                return False
            done.append(dict(pending.meta))
            return True

        monkeypatch.setattr(run_page, "_write", write)
        pages.put("d1", {"state": "submitted", "block": "b"}, new=True)
        await begun.wait()
        pages.put("d1", {"state": "Completed"})
        flushing = asyncio.create_task(flush()) if flushed else None
        await asyncio.sleep(0.05)
        assert not done
        fail.set()
        while pages.pages or pages.writing:  # noqa: ASYNC110 - the write happens in another task
            await asyncio.sleep(0.01)
        if flushing is not None:
            await flushing

    on_loop(work)
    assert done == [{"state": "Completed", "block": "b"}]
    gc.collect()  # asyncio logs the error of a task that was lost then
    assert "asyncio" not in {record.name for record in caplog.records}


def test_an_ending_process_reports_once_what_it_cannot_write(
    written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(pages: PageWrites) -> list[str]:
        for number in range(20):
            pages.put(f"d{number}", {"state": "Completed"}, after=60)
        pages.put("slow-1", {"state": "Completed"}, after=0)
        pages.put("bad-1", {"state": "Completed"}, after=60)
        await asyncio.sleep(0.05)
        missing = await drain(0.5)
        assert await drain(0.5) == []
        return missing

    assert on_loop(work) == ["bad-1", "slow-1"]
    assert {job_id for job_id, _, _ in written} >= {f"d{number}" for number in range(20)}
    (said,) = [one.getMessage() for one in caplog.records if "before the process ended" in one.getMessage()]
    assert said.startswith("2 job pages could not be written")
    assert "`prefect-qruntime sweep`" in said


def test_a_note_in_the_summary_is_a_record_and_always_fits() -> None:
    facts = {"state": "submitted", "block": "b", "flow_run": "f", "url": "https://h/" + "x" * 600, "reason": None}
    note = open_note(facts)
    assert len(note) <= 500
    summary = Record(None, "qruntime-summary-f", {"jobs": "1", "open D1": note, "open d2": "no json"}, None, None)  # type: ignore[arg-type]
    (record,) = _open_jobs(summary)
    assert record.key == "qruntime-job-d1"
    assert record.meta == {"kind": "job", "id": "D1", "state": "submitted", "block": "b", "flow_run": "f"}
    assert not record.is_over


@pytest.mark.parametrize("note", ["no json", "[]", "5", '"text"', "null", '{"state": 5}', '{"state": null}'])
@pytest.mark.parametrize("meta", [None, {}, {"state": "Queued"}, {"kind": "job", "flow_run": "f"}])
def test_what_something_else_wrote_in_place_of_records_stops_no_reader(
    monkeypatch: pytest.MonkeyPatch, note: str, meta: dict[str, str] | None
) -> None:
    good = {"kind": "job", "id": "d1", "crn": "crn", "base_url": "http://[odd"}
    stored = {
        "qruntime-job-": [
            Artifact(key="qruntime-job-d0", metadata_=meta),
            Artifact(key="qruntime-job-d1", metadata_=good),
        ],
        "qruntime-summary-": [Artifact(key="qruntime-summary-f", metadata_={"id": "f", "open d2": note})],
    }

    class Prefect:
        async def read_artifacts(self, *, artifact_filter: Any, **_: Any) -> list[Artifact]:
            return stored[artifact_filter.key.like_.rstrip("%")]

    async def api() -> Prefect:
        return Prefect()

    monkeypatch.setattr(artifacts, "api", api)
    (record,) = asyncio.run(artifacts.find_records("job"))
    assert record.meta["id"] == "d1"
    crn = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
    assert not record.leads_to(Connection(api_key="unit-test-key", crn=crn), "")


def test_a_process_that_did_no_network_work_starts_no_thread_for_it_at_its_end() -> None:
    # Python 3.12 refuses new threads there.
    code = """
import threading
from prefect_qruntime.observability import run_page
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
threading.Thread.start = refuse
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
