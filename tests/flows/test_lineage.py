"""Traces and assets of a whole flow, in a process of its own: an SDK of OpenTelemetry is set up once a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prefect_qruntime as qr
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import until
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
BLOCK = "lineage"
SCRIPT = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

from prefect import flow
from prefect.assets import materialize
import prefect_qruntime as qr
from tests.support.flow_runs import BACKEND, FLIP

@materialize("s3://lab/table.csv")
def table(result):
    return result.counts()

@flow(name="traced")
def traced():
    table(qr.run_job(qr.load_credentials(sys.argv[1]), [FLIP], backend=BACKEND, shots=10, route="executor"))

traced()
print("SPANS", json.dumps([
    {"name": span.name, "id": span.context.span_id, "trace": span.context.trace_id,
     "parent": span.parent and span.parent.span_id, "facts": dict(span.attributes)}
    for span in exporter.get_finished_spans()
], default=list))
"""


def asset_events(*assets: str) -> list[dict[str, Any]]:
    """Prefect's events about assets that end so, oldest first; the server has those of other tests, too."""

    async def ask(client: Any) -> list[dict[str, Any]]:
        wanted = {"filter": {"event": {"prefix": ["prefect.asset."]}}, "limit": 50}
        answer = await client._client.post("/events/filter", json=wanted)
        found = [one for one in answer.json()["events"] if one["resource"]["prefect.resource.id"].endswith(assets)]
        return sorted(found, key=lambda event: str(event["occurred"]))

    return until(lambda: found if len(found := asked(ask)) >= 3 else [], seconds=60)


def answered(sandbox: Sandbox) -> bool:
    """Whether a job's state was told."""
    return any(entry["status"] == 200 for entry in sandbox.control.journal("GET", "*/jobs/d*"))


def test_a_flow_is_one_trace_and_its_result_an_asset(sandbox: Sandbox, prefect_server: PrefectServer) -> None:
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    sandbox.control.hold()
    flow = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, BLOCK],
        env={**prefect_server.env, "PREFECT_INTEGRATIONS_QRUNTIME_ASSETS": "true"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:  # the wait is to see the job queued
        until(lambda: flow.poll() is not None or answered(sandbox), seconds=200)
    finally:
        sandbox.control.release()
    told, errors = flow.communicate(timeout=250)
    assert flow.returncode == 0, errors
    spans = json.loads(next(line for line in told.splitlines() if line.startswith("SPANS "))[6:])
    by_id = {span["id"]: span for span in spans}
    assert len({span["trace"] for span in spans}) == 1

    def above(span: dict[str, Any]) -> list[str]:
        names = []
        while span["parent"] is not None:
            span = by_id[span["parent"]]
            names.append(span["name"])
        return names

    ours = {span["name"]: span for span in spans if span["name"].startswith("qruntime ")}
    (root,) = (span["name"] for span in spans if span["parent"] is None)  # Prefect's span of the flow run
    for name in ("submit job", "wait for completion", "fetch results"):
        assert above(ours[f"qruntime {name}"])[-1] == root
    (job,) = {span["facts"]["qruntime.job.id"] for span in ours.values() if "qruntime.job.id" in span["facts"]}
    assert ours["qruntime submit job"]["facts"]["qruntime.attached"] is False
    assert above(ours["qruntime queued"])[0] == "qruntime wait for completion"
    assert above(ours["qruntime chunk"])[0] == "qruntime fetch results"

    result, reference, dataset = asset_events(f"/jobs/{job}", "lab/table.csv")
    assert result["event"] == "prefect.asset.materialization.succeeded"
    assert result["resource"]["prefect.resource.id"].endswith(f"/jobs/{job}")
    assert result["payload"]["job_id"] == job
    assert reference["event"] == "prefect.asset.referenced"
    assert reference["resource"]["prefect.resource.id"] == result["resource"]["prefect.resource.id"]
    assert dataset["resource"]["prefect.resource.id"] == "s3://lab/table.csv"
    assert [one["prefect.resource.id"] for one in dataset["related"] if one["prefect.resource.role"] == "asset"] == [
        result["resource"]["prefect.resource.id"]
    ]
