"""What a person sees on the run page: the job's artifact with its picture, the flow run's summary, the log."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

import prefect_qruntime as qr
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import artifacts, notifications, run_page, run_summary
from prefect_qruntime.observability.artifacts import Record, find_record, find_records, upsert
from prefect_qruntime.observability.markdown import result_section, summary_card
from prefect_qruntime.observability.run_summary import write_summary
from prefect_qruntime.observability.telemetry import Observation, queue_and_run_seconds
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, SVG, events, noted, picture, ran, run, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
RY = 'OPENQASM 3.0; include "stdgates.inc"; input float[64] theta; qubit[1] q; ry(theta) q[0];'


def record(kind: Any, identifier: str) -> Record | None:
    noted()
    return network_loop().run(find_record(kind, identifier))


def page(job_id: str, *words: str) -> str:
    """The job's text, once it says all the words."""
    text = until(lambda: (r := record("job", job_id)) is not None and all(w in r.text for w in words) and r.text)
    assert text, (words, record("job", job_id))
    return str(text)


def summary_of(flow_run_id: UUID, *words: str) -> str:
    def look() -> Any:
        found = record("summary", str(flow_run_id))
        return found is not None and all(word in found.text for word in words) and found.text

    text = until(look)
    assert text, (words, record("summary", str(flow_run_id)))
    return str(text)


def drawn(text: str) -> list[str]:
    """The texts of the first picture in some Markdown."""
    return [str(node.text) for node in picture(text).iter(f"{SVG}text")]


def test_a_sampler_job_shows_its_way_its_cost_and_its_counts(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_option("queue_time", 0.6)
    sandbox.control.set_option("run_time", 0.7)

    @flow
    def bell() -> Any:
        return qr.run_job(credentials, [BELL], backend=BACKEND, shots=200).counts()

    flow_run, state = ran(bell)
    counts = run(state.aresult())
    job = sandbox.control.jobs()[0]
    text = page(job["id"], "#### Result")
    assert text.startswith(f"### [Job {job['id']}](http")
    rows = dict(re.findall(r"^\| (\w[\w ]*) \| (.+) \|$", text, re.MULTILINE))
    assert rows["state"] == "Completed"
    assert re.fullmatch(r"queued \([\d.]+ s\) → running \([\d.]+ s\) → completed \([\d.]+ s\)", rows["seen"])
    assert 0.1 < float(rows["queued"].split()[1]) < 5
    assert 0.1 < float(rows["ran"].split()[1]) < 5
    assert float(rows["QPU seconds"]) == pytest.approx(job["usage_seconds"])
    assert rows["backend"] == BACKEND
    texts = drawn(text)
    assert {bits: f"{count} ({count / 200:.1%})" for bits, count in counts.items()} == dict(
        zip(texts[1::2], texts[2::2], strict=True)
    )
    assert "1 job: 1 completed" in summary_of(flow_run.id, "in all.", job["id"])


def test_an_estimator_job_shows_its_values(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def values() -> Any:
        pubs = [(RY, "Z", [0.0]), (RY, "Z", [3.141592653589793])]
        result = qr.run_job(credentials, pubs, program_id="estimator", backend=BACKEND, shots=100)
        return [result.expectation_values(pub) for pub in (0, 1)]

    ran(values)
    text = page(sandbox.control.jobs()[0]["id"], "#### Result")
    assert re.search(r"^\| 0 \| 0? ?\| 1 \|", text, re.MULTILINE), text
    assert re.search(r"^\| 1 \| 0? ?\| -1 \|", text, re.MULTILINE), text


def test_a_private_job_shows_no_result(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def hidden() -> Any:
        shown = qr.run_job(credentials, [BELL], backend=BACKEND)
        secret = qr.submit_job(credentials, [FLIP], backend=BACKEND, private=True)
        qr.wait_for_completion(credentials, secret)
        return qr.fetch_results(credentials, secret).counts(), shown.job_id, secret.id

    _, state = ran(hidden)
    counts, shown, secret = run(state.aresult())
    assert set(counts) == {"1"}
    page(shown, "#### Result")  # what is shown behind the flow's back was shown by now
    assert "Result" not in page(secret, "Completed")


def test_the_summary_counts_what_failed_and_cancelled_jobs_cost(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.script_job(status="Completed")
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1517)

    @flow
    def three() -> None:
        jobs = [qr.submit_job(credentials, [BELL], backend=BACKEND, shots=n) for n in (10, 20)]
        for job in jobs:
            qr.wait_for_completion(credentials, job, return_state=True)
        sandbox.control.hold()
        qr.cancel_job(credentials, qr.submit_job(credentials, [BELL], backend=BACKEND, shots=30))

    flow_run, _ = ran(three)
    used = sum(job["usage_seconds"] for job in sandbox.control.jobs())
    text = summary_of(flow_run.id, "1 cancelled")
    assert text.startswith("### 3 jobs: 1 completed, 1 failed, 1 cancelled")
    assert f"**{used:g} QPU seconds** in all." in text
    found = record("summary", str(flow_run.id))
    assert found is not None
    assert found.flow_run_id == flow_run.id
    assert float(found.meta["usage_seconds"]) == pytest.approx(used)


def written_anew(flow_run_id: UUID) -> str:
    """The summary as a process writes it that knows of no job but by Prefect's records."""
    noted()
    network_loop().run(run_summary.write_summary(str(flow_run_id)))
    found = record("summary", str(flow_run_id))
    assert found is not None
    return found.text


def test_the_summary_of_a_process_that_saw_nothing_has_the_jobs_of_subflows_too(
    sandbox: Sandbox, credentials: Any
) -> None:
    @flow
    def inner(shots: int) -> None:
        qr.run_job(credentials, [BELL], backend=BACKEND, shots=shots)

    @flow
    def middle() -> None:
        inner(2)

    @flow
    def outer() -> None:
        qr.run_job(credentials, [BELL], backend=BACKEND, shots=1)
        middle()

    flow_run, state = ran(outer)
    assert state.is_completed()
    used = sum(job["usage_seconds"] for job in sandbox.control.jobs())
    text = written_anew(flow_run.id)
    assert text.startswith("### 2 jobs: 2 completed")
    assert f"**{used:g} QPU seconds** in all." in text


def test_the_newest_note_of_a_job_counts(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def one() -> None:
        for state, usage in (("Queued", None), ("Completed", "7")):
            facts = {"state": state, "usage_seconds": usage, "usage_final": "true"}
            network_loop().run(upsert("job", "d-noted-twice", "", facts, new=True))

    flow_run, _ = ran(one)
    assert written_anew(flow_run.id).startswith("### 1 job: 1 completed\n\n**7 QPU seconds** in all.")


def test_a_job_that_two_runs_share_is_paid_by_the_one_that_bought_it(sandbox: Sandbox, credentials: Any) -> None:
    key = f"shared-{uuid4().hex[:6]}"

    @flow
    def sharing() -> Any:
        qr.run_job(credentials, [BELL], backend=BACKEND, submission_key=key)
        return qr.run_job(credentials, [FLIP], backend=BACKEND, shots=1).job_id

    first, _ = ran(sharing)
    second, state = ran(sharing)
    shared, _, own = (job["usage_seconds"] for job in sandbox.control.jobs())
    assert run(state.aresult()) == sandbox.control.jobs()[2]["id"]
    text = summary_of(second.id, "2 jobs: 2 completed")
    assert f"**{own:g} QPU seconds** in all; 1 submitted by another flow run, not counted here." in text
    assert f"| {shared:g} (another run's) |" in text
    assert "another" not in summary_of(first.id, "2 jobs: 2 completed")


def test_usage_is_read_again_until_it_is_final(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_option("usage_lag", 6.0)  # longer than a page waits to be written

    @flow
    def late() -> Any:
        return qr.run_job(credentials, [BELL], backend=BACKEND).job_id

    flow_run, state = ran(late)
    job_id = run(state.aresult())
    first = record("job", job_id)
    assert first is not None
    assert first.meta["usage_final"] == "false"
    assert "not final yet" in first.text
    page(job_id, f"| QPU seconds | {sandbox.control.job(job_id)['usage_seconds']:g} |")
    summary_of(flow_run.id, "in all.")


def test_whatever_way_jobs_end_the_total_is_the_service_s_once_it_is_final(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_option("usage_lag", 60)  # over once the clock runs
    for status in ("Completed", "Failed", "Cancelled", "Ran too long"):
        sandbox.control.script_job(status=status, reason="as the script says")

    @flow
    def five() -> int:
        jobs = [qr.submit_job(credentials, [BELL], backend=BACKEND, shots=shots) for shots in (1, 2, 3, 4)]
        ends = [qr.wait_for_completion(credentials, job, return_state=True) for job in jobs]
        last = qr.submit_job(credentials, [BELL], backend="sandbox_paused", shots=5)
        qr.cancel_job(credentials, last)
        return sum(end.is_failed() for end in ends)

    flow_run, state = ran(five)
    assert run(state.aresult()) == 3
    text = summary_of(flow_run.id, "5 jobs", "so far")  # some end is not final yet
    assert "the service has not reported the final usage of" in text
    sandbox.control.set_clock_scale(200)
    text = summary_of(flow_run.id, "QPU seconds** in all.")
    used = {job["id"]: job["usage_seconds"] for job in sandbox.control.jobs()}
    assert f"**{sum(used.values()):g} QPU seconds** in all." in text
    assert text.startswith("### 5 jobs: 1 completed, 1 failed, ")
    for job_id, seconds in used.items():
        found = record("job", job_id)
        assert found is not None
        assert (float(found.meta["usage_seconds"]), found.meta["usage_final"]) == (pytest.approx(seconds), "true")


def test_the_sweep_reports_the_end_of_a_job_whose_process_was_gone(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_option("usage_lag", 3600)  # over once the clock runs
    credentials.save("run-page", overwrite=True)

    @flow
    def careless() -> Any:
        return qr.submit_job(qr.load_credentials("run-page"), [BELL], backend=BACKEND).id

    flow_run, state = ran(careless)
    job_id = run(state.aresult())
    sandbox.control.wait_job(job_id)
    run_sweep(["run-page"])
    assert "(not final yet)" in page(job_id, "Completed")
    sandbox.control.set_clock_scale(100_000)
    assert until(lambda: sandbox.control.job(job_id)["usage_final"])
    run_sweep(["run-page"])
    used = sandbox.control.job(job_id)["usage_seconds"]
    page(job_id, f"| QPU seconds | {used:g} |")
    summary_of(flow_run.id, "1 job: 1 completed", f"**{used:g} QPU seconds** in all.")


def test_each_event_is_emitted_with_its_flow_run_and_facts(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_times(run_time=600)
    sandbox.control.hold()

    @flow
    def told() -> Any:
        job = qr.submit_job(credentials, [BELL], backend=BACKEND, submission_key="run-page-events", tags=["mine"])
        again = qr.submit_job(credentials, [BELL], backend=BACKEND, submission_key="run-page-events", tags=["mine"])
        waiting = qr.wait_for_completion.submit(credentials, again)
        sandbox.control.release()
        events(f"qruntime.job.{job.id}", 3)  # the job runs until it was seen to, however late the wait began
        sandbox.control.finish(job.id)
        waiting.result()
        return job.id

    flow_run, state = ran(told)
    found = events(f"qruntime.job.{run(state.aresult())}", 4)
    names = [event["event"].removeprefix("qruntime.job.") for event in found]
    assert names == ["submitted", "attached", "running", "completed"]
    for event in found:
        assert event["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{flow_run.id}"
        payload = event["payload"]
        assert payload["backend"] == BACKEND
        assert payload["url"].startswith("http")
        assert "mine" in payload["tags"]
    assert found[-1]["payload"]["usage_final"] is True
    assert found[-1]["payload"]["waited_seconds"] > found[-2]["payload"]["waited_seconds"]


def test_a_long_wait_says_that_it_goes_on(sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_PROGRESS_SECONDS", "0.3")
    sandbox.control.hold()

    @flow
    def patient() -> Any:
        job = qr.submit_job(credentials, [BELL], backend=BACKEND, shots=10)
        waiting = qr.wait_for_completion.submit(credentials, job)
        assert until(lambda: (r := record("job", job.id)) is not None and r.meta["state"] == "Queued")
        sandbox.control.release()
        waiting.result()
        qr.fetch_results(credentials, job)
        return job.url

    flow_run, state = ran(patient)
    url = run(state.aresult())
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id]))

    def look() -> list[str]:
        said = [log.message for log in asked(lambda client: client.read_logs(wanted, limit=200))]
        return said if any("fetched" in line for line in said) else []

    said = until(look)
    still = r"^job \w+: queued [\d.]+ s, \d+ jobs? in the queue, sandbox_ideal online$"
    assert any(re.search(still, line) for line in said), said
    assert [line.endswith(f": {url}") for line in said if url in line] == [True], "the link once"
    assert "1 PUB, 10 shots, " in next(line for line in said if line.startswith("fetched"))
    assert all(len(line) <= 120 for line in said if url not in line), said


SHORT_LIVED = f"""
from prefect import flow
import prefect_qruntime as qr

@flow
def short(credentials_block):
    qr.run_job(qr.load_credentials(credentials_block), [{BELL!r}], backend={BACKEND!r})

short("run-page")
"""


def test_a_process_that_ends_at_once_still_tells_all(sandbox: Sandbox, prefect_server: Any) -> None:
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("run-page", overwrite=True)
    done = subprocess.run(
        [sys.executable, "-c", SHORT_LIVED],
        env=prefect_server.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "could not be completed" not in done.stderr
    found = record("job", sandbox.control.jobs()[0]["id"])
    assert found is not None
    assert len(drawn(found.text)) == 5, "a title, two bitstrings, two counts"
    assert "1 job: 1 completed" in summary_of(UUID(found.meta["flow_run"]))


def test_what_happens_at_once_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_summary, "_PAUSE", 0.05)
    written: list[int] = []

    async def write(flow_run_id: str, job_ids: Any) -> None:
        written.append(len(list(job_ids)))
        await asyncio.sleep(0.01)

    monkeypatch.setattr(run_summary, "write_summary", write)

    async def burst() -> None:
        for number in range(100):
            run_summary.mark_dirty("a-flow-run", f"d{number}")

    network_loop().run(burst())
    assert until(lambda: written) == [100]
    network_loop().run(burst())
    assert until(lambda: len(written) > 1 and written) == [100, 100]


# --- text only ------------------------------------------------------------------------------------------------


def result(*pubs: Any) -> qr.JobResult:
    return qr.JobResult.from_body({"results": list(pubs)}, job_id="d1")


def test_a_picture_is_small_whatever_the_result() -> None:
    wide = {"data": {"c": {"samples": [hex((n * 7919) << 90) for n in range(3000)], "num_bits": 127}}, "metadata": {}}
    text = result_section(result(*[wide] * 30))
    assert len(text) < 30_000
    assert text.count("](data:image/svg+xml;base64,") == 4
    assert "30 PUBs in all" in text
    assert "2985 others" in drawn(text)
    long = {"data": {"evs": [0.5] * 5000, "stds": [0.01] * 5000}, "metadata": {}}
    assert len(result_section(result(long))) < 12_000


def test_a_result_without_counts_and_values_shows_nothing() -> None:
    assert result_section(qr.JobResult.from_body({"anything": 1}, job_id="d1")) == ""


def test_a_text_of_the_service_cannot_break_the_table() -> None:
    text = summary_card([{"id": "d1", "state": "Failed", "backend": "a|b\n| c |"}])
    assert len(text.splitlines()) == 9
    assert r"| a\|b \| c \| |" in text


def test_times_are_told_only_where_they_were_seen() -> None:
    now = datetime.now(UTC)
    queued, running = (
        Observation(JobStatus.QUEUED, "queued", 0.1, now - timedelta(seconds=9.9)),
        Observation(JobStatus.RUNNING, "running", 4.0, now - timedelta(seconds=6)),
    )
    ended = Observation(JobStatus.COMPLETED, "completed", 10.0, now)
    job = Job(id="d1", status=JobStatus.COMPLETED, created_at=now - timedelta(seconds=26))
    assert queue_and_run_seconds(job, [queued, running, ended]) == pytest.approx((20.0, 6.0))
    assert queue_and_run_seconds(job.model_copy(update={"created_at": now}), [queued, running, ended]) == pytest.approx(
        (4.0, 6.0)
    )
    assert queue_and_run_seconds(job, [running, ended]) == (None, None)
    assert queue_and_run_seconds(job, [ended]) == queue_and_run_seconds(job, []) == (None, None)


def test_the_pages_of_one_flow_run_are_found_together(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def two() -> None:
        for shots in (1, 2):
            qr.submit_job(credentials, [BELL], backend=BACKEND, shots=shots)

    flow_run, _ = ran(two)
    ids = {job["id"] for job in sandbox.control.jobs()}
    found = network_loop().run(find_records("job", flow_run_ids=[flow_run.id]))
    assert {item.meta["id"] for item in found} == ids
    assert {item.meta["id"] for item in network_loop().run(find_records("job", identifiers=ids))} == ids


WRITERS: dict[str, Any] = {
    "the sweep": lambda job, owner: notifications.job_ended(job, [], flow_run_id=owner),
    "a late usage": lambda job, owner: notifications.usage_settled(job, flow_run_id=owner),
    "a watcher": lambda job, owner: run_page.write_progress(job.id, {"state": "Completed"}, flow_run_id=owner),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_page_that_another_process_makes_does_not_hide_what_the_submission_noted(writer: str) -> None:
    """The process that submitted it was killed before it wrote the page. A repeated run looks for the key here."""

    @flow
    def killed() -> None:
        pass

    job = Job(id=f"made-{uuid4().hex[:12]}", status=JobStatus.COMPLETED, raw_status="Completed")
    owner = ran(killed)[0].id
    facts = {"key": "qr-key:0123", "block": "ibm", "on_cancel": "cancel", "state": "submitted"}

    async def write() -> None:
        noted = {artifacts.OPEN + job.id: artifacts.open_note(facts)}
        await upsert("summary", str(owner), "", noted, flow_run_id=str(owner))
        await WRITERS[writer](job, str(owner))

    network_loop().run(write())
    assert until(lambda: record("job", job.id))
    network_loop().run(write_summary(str(owner)))
    for wanted in ({"flow_run_ids": [owner]}, {"identifiers": [job.id]}):
        (found,) = network_loop().run(find_records("job", **wanted))
        assert found.meta.items() >= {"key": "qr-key:0123", "block": "ibm", "on_cancel": "cancel"}.items()
        assert writer == "a late usage" or found.meta["state"] == "Completed", "the page is newer"
