"""Whatever comes in, the answer is a refusal or a success, never a 5xx."""

import socket

import orjson
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.support.sandbox_api import BELL, Api, code

QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
JOB_KEYS = (  # noqa: SIM905
    "program_id backend params tags cost session_id private log_level runtime calibration_id start_session"
    " session_time remote_storage"
).split()
PARAM_KEYS = (  # noqa: SIM905
    "pubs options shots version support_qiskit precision resilience_level circuits observables parameter_values"
    " circuit_indices run_options"
).split()
JOBS = st.fixed_dictionaries(
    {
        "program_id": st.sampled_from(["sampler", "estimator"]) | JSON,
        "backend": st.sampled_from(["sandbox_ideal", "sandbox_noisy"]) | JSON,
        "params": st.dictionaries(st.sampled_from(PARAM_KEYS), JSON)
        | st.fixed_dictionaries({"pubs": st.lists(st.lists(st.just(BELL) | JSON, max_size=4), max_size=3)}),
    },
    optional=dict.fromkeys(JOB_KEYS[3:], JSON),
)
QUERY_KEYS = (  # noqa: SIM905
    "limit offset pending sort tags created_after created_before exclude_params program backend session_id next"
    " previous status mode user search type fields updated_before"
).split()


@QUIET
@given(body=JOBS | JSON, dialect=st.sampled_from(["cloud", "legacy"]))
def test_job_bodies(apis, body, dialect):
    answer = apis[dialect]("POST", "/jobs", loose=True, content=orjson.dumps(body))
    assert answer.status_code < 500
    if answer.status_code == 200:
        job_id = answer.json()["id"]
        job = apis[dialect].control.wait_job(job_id)
        assert job["status"] in ("Completed", "Failed")
        assert apis[dialect]("GET", f"/jobs/{job_id}").status_code == 200


@QUIET
@given(body=JSON, call=st.sampled_from(["POST /sessions", "PUT /instances/configuration", "PUT /jobs/x/tags"]))
def test_other_bodies(apis, body, call):
    method, path = call.split()
    assert apis["cloud"](method, path, loose=True, content=orjson.dumps(body)).status_code < 500


@QUIET
@given(
    query=st.dictionaries(st.sampled_from(QUERY_KEYS), st.text(max_size=12) | st.integers().map(str)),
    path=st.sampled_from(["/jobs", "/workloads", "/tags", "/backends", "/backends/sandbox_ideal/properties"]),
)
def test_queries(apis, query, path):
    assert apis["cloud"]("GET", path, loose=True, params=query).status_code < 500


@pytest.fixture
def apis(cloud, legacy, fast):
    return {"cloud": cloud, "legacy": legacy}


@pytest.mark.parametrize("depth", [200, 300, 900, 5000])
def test_deep_nesting(cloud, fast, depth):
    body = {"program_id": "sampler", "backend": "sandbox_ideal", "params": {"pubs": [[BELL, 1]]}}
    content = orjson.dumps(body).replace(b"1]]", b"[" * depth + b"]" * depth + b"]]")
    answer = cloud("POST", "/jobs", loose=True, content=content)
    if answer.status_code == 200:
        assert cloud.control.wait_job(answer.json()["id"])["status"] == "Failed"
        assert cloud("GET", f"/jobs/{answer.json()['id']}").status_code == 200
    else:
        assert code(answer) == (400, 1208)


def test_ids_that_are_none(cloud):
    for job_id in ("%00", "%2e%2e", "a%20b", "%F0%9F%92%A9", "x" * 3000, "%ff"):
        assert code(cloud("GET", f"/jobs/{job_id}")) == (404, 1291)


def test_no_http_at_all_is_told_so_and_logged_nowhere(qruntime_sandbox: Api, capfd):
    port = int(qruntime_sandbox.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert capfd.readouterr().err == ""
