"""Schemathesis makes requests out of the OpenAPI document, fitting and not fitting; the sandbox stands by the document.

Bounded and the same each time (`derandomize`), so that a failure is a change and not luck. The library's pytest plugin
is not used: it costs half a second in every run.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks, not_a_server_error

from prefect_qruntime.sandbox import Sandbox
from tests.support.sandbox_api import BELL, SCHEMA_FILE, Api

load_all_checks()
CHECKED = [not_a_server_error, *CHECKS.get_by_names(["response_schema_conformance", "content_type_conformance"])]
API = schemathesis.openapi.from_path(SCHEMA_FILE)
OPERATIONS = {found.ok().label: found.ok() for found in API.get_all_operations()}
BOUNDED = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
JOB_KEYS = API.raw_schema["components"]["schemas"]["JobRunParams"]["properties"].keys()
# What a generated request has to come by to get past the lookups; everything else stays as generated.
BACKENDS = ("sandbox_ideal", "sandbox_noisy", "sandbox_paused")


@pytest.fixture
def ids(cloud: Api, fast: Sandbox) -> dict[str, list[str]]:
    """Jobs in every state and sessions, open and closed, besides the backends."""
    completed = cloud.job_id()
    cloud.control.wait_job(completed)
    cloud.control.script_job(status="Failed", reason="scripted")
    failed = cloud.job_id()
    cloud.control.wait_job(failed)
    waiting = cloud.job_id(backend="sandbox_paused")
    cancelled = cloud.job_id(backend="sandbox_paused")
    cloud("POST", f"/jobs/{cancelled}/cancel")
    sessions = [cloud("POST", "/sessions", json={"mode": mode}).json()["id"] for mode in ("dedicated", "batch")]
    cloud("DELETE", f"/sessions/{sessions[1]}/close")
    return {"jobs": [completed, failed, waiting, cancelled], "sessions": sessions, "backends": list(BACKENDS)}


def fitted(data: Any, case: Any, ids: dict[str, list[str]]) -> None:
    """Let most requests meet something that is there."""
    if case.path_parameters and data.draw(st.integers(0, 9)):
        case.path_parameters["id"] = data.draw(st.sampled_from(ids[case.path.split("/")[2]]))
    body = case.body
    if case.operation.label != "POST /v1/jobs" or not isinstance(body, dict) or not data.draw(st.integers(0, 9)):
        return
    # The document says nothing of other keys, the service refuses them.
    for name in body.keys() - JOB_KEYS:
        del body[name]
    body["backend"] = data.draw(st.sampled_from(BACKENDS))
    body.pop("session_id", None)
    if body.get("program_id") == "executor":
        return
    body["program_id"] = program = data.draw(st.sampled_from(["sampler", "estimator"]))
    if not isinstance(body.get("params"), dict) or "pubs" not in body["params"]:
        body["params"] = {}
    if data.draw(st.integers(0, 3)):
        body["params"]["pubs"] = [[BELL] if program == "sampler" else [BELL, "ZZ"]]


def headers(data: Any, cloud: Api, case: Any, mode: GenerationMode) -> dict[str, str]:
    """Return our headers for a request; one that may be wrong also goes with those made up for it."""
    if mode is GenerationMode.NEGATIVE and data.draw(st.booleans()):
        return {name: value for name, value in cloud.headers.items() if name not in (case.headers or {})}
    return cloud.headers


def stands_by_the_document(case: Any, answer: Any) -> None:
    # The text of a failed job, which the document leaves out.
    failed = case.path.endswith("/results") and answer.headers.get("content-type", [""])[0].startswith("text/plain")
    case.validate_response(answer, checks=CHECKED[:1] if failed else CHECKED)
    if answer.status_code >= 400:
        assert answer.json()["errors"][0]["message"]
        assert answer.json()["trace"]


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, mode) for label, one in OPERATIONS.items() for mode in GenerationMode if one.path != "/v1/versions"],
)
def test_operation(cloud, ids, label, mode):
    operation = OPERATIONS[label]
    seen = set()

    @BOUNDED
    @given(st.data())
    def run(data: Any) -> None:
        case = data.draw(operation.as_strategy(mode))
        fitted(data, case, ids)
        answer = case.call(f"{cloud.sandbox.url}/api", headers=headers(data, cloud, case, mode))
        seen.add(answer.status_code)
        stands_by_the_document(case, answer)

    run()
    assert seen
    if mode is GenerationMode.POSITIVE:
        assert min(seen) < 300, f"nothing went through: {seen}"
    for job in cloud.control.jobs():
        if job["backend"] != "sandbox_paused":
            cloud.control.wait_job(job["id"])
