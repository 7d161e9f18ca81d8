"""Faults of each kind, and the journal."""

import time

import httpx
import pytest

from prefect_qruntime.sandbox import ControlError
from tests.support.sandbox_api import GRANT, code


def test_status_replaces_the_handler(cloud, fast):
    fault = cloud.control.add_fault("POST", "/jobs", status=503)
    answer = cloud.submit()
    assert code(answer) == (503, "unavailable")
    assert cloud.control.jobs() == []
    assert cloud.control.journal("POST", "/jobs")[-1]["fault"] == fault
    assert cloud.submit().status_code == 200
    assert cloud.control.faults() == []


def test_status_after_the_handler_leaves_the_job(cloud, fast):
    cloud.control.add_fault("POST", "/jobs", status=503, after_handler=True)
    assert cloud.submit().status_code == 503
    assert len(cloud.control.jobs()) == 1


@pytest.mark.parametrize(("drop", "jobs"), [("before", 0), ("after", 1), ("middle", 1)])
def test_dropped_connections(cloud, fast, drop, jobs):
    cloud.control.add_fault("POST", "/jobs", drop=drop)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        cloud.submit()
    assert len(cloud.control.jobs()) == jobs
    entry = cloud.control.journal("POST", "/jobs")[-1]
    assert entry["status"] == 0
    assert cloud.submit().status_code == 200


def test_body_headers_and_retry_after(cloud):
    cloud.control.add_fault(
        "GET", "/jobs", status=429, body={"error": "slow down"}, retry_after=7, headers={"X-Extra": "1"}
    )
    answer = cloud.http.get(f"{cloud.sandbox.base_url()}/jobs", headers=cloud.headers)
    assert (answer.status_code, answer.json()) == (429, {"error": "slow down"})
    assert (answer.headers["retry-after"], answer.headers["x-extra"]) == ("7", "1")
    cloud.control.add_fault("GET", "/jobs", status=502, body="<html>bad gateway</html>")
    answer = cloud.http.get(f"{cloud.sandbox.base_url()}/jobs", headers=cloud.headers)
    assert (answer.text, answer.headers["content-type"]) == (
        "<html>bad gateway</html>",
        "text/plain; charset=utf-8",
    )


def test_skip_times_and_patterns(cloud, legacy, fast):
    job_id = cloud.job_id()
    cloud.control.wait_job(job_id)
    cloud.control.add_fault("GET", "/jobs/*/results", status=500, skip=1, times=2)
    path = f"/jobs/{job_id}/results"
    assert [cloud("GET", path).status_code for _ in range(4)] == [200, 500, 500, 200]
    assert cloud("GET", f"/jobs/{job_id}").status_code == 200
    cloud.control.add_fault(path="/backends", status=504, times=None)
    answers = [api("GET", "/backends").status_code for api in (cloud, legacy, cloud)]
    assert answers == [504, 504, 504]
    cloud.control.clear_faults()
    assert cloud("GET", "/backends").status_code == 200


def test_delay_is_service_time_before_the_answer(cloud, fast):
    cloud.control.add_fault("POST", "/jobs", delay=100)
    cloud.control.set_clock_scale(250)
    started = time.monotonic()
    assert cloud.submit().status_code == 200
    assert 0.35 < time.monotonic() - started < 60
    cloud.control.set_clock_scale(1)
    cloud.control.add_fault("POST", "/jobs", delay=100)
    with pytest.raises(httpx.ReadTimeout):
        cloud.http.post(
            f"{cloud.sandbox.base_url()}/jobs",
            headers=cloud.headers,
            json={"program_id": "sampler", "backend": "sandbox_ideal", "params": {"pubs": ["x"]}},
            timeout=0.2,
        )
    assert len(cloud.control.jobs()) == 2


def test_iam_can_fail_too(cloud):
    cloud.control.add_fault("POST", "/identity/token", status=500)
    form = {"grant_type": GRANT, "apikey": cloud.key}
    assert cloud.http.post(f"{cloud.sandbox.iam_url}/identity/token", data=form).status_code == 500
    cloud.login()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"drop": "sideways"},
        {"status": 99},
        {"body": {}, "delay": 1},
        {"status": 500, "times": 0},
        {"status": 500, "skip": -1},
        {"ws_close": 12},
        {"status": 500, "delay": -1},
    ],
)
def test_faults_that_make_no_sense_are_refused(qruntime_sandbox, fields):
    with pytest.raises(ControlError):
        qruntime_sandbox.control.add_fault("GET", "/jobs", **fields)
    assert qruntime_sandbox.control.faults() == []


def test_journal_tells_what_was_asked_and_no_secret(cloud, legacy, fast):
    fast.control.clear_journal()
    job_id = cloud.job_id()
    cloud("GET", "/jobs", loose=True, params={"limit": 3, "api": cloud.key})
    legacy("GET", f"/jobs/{job_id}", headers={"Authorization": None})
    cloud.login()
    journal = fast.control.journal()
    shown = [(one["method"], one["path"], one["status"], one["dialect"]) for one in journal]
    assert shown == [
        ("POST", "/jobs", 200, "cloud"),
        ("GET", "/jobs?limit=3&api=***", 200, "cloud"),
        ("GET", f"/jobs/{job_id}", 401, "legacy"),
        ("POST", "/identity/token", 200, "iam"),
    ]
    assert [one["n"] for one in journal] == list(range(journal[0]["n"], journal[0]["n"] + 4))
    assert journal[0]["t"] <= journal[-1]["t"]
    assert len(fast.control.journal("get")) == 2
    assert len(fast.control.journal(path="/jobs/*")) == 1
    token = cloud.headers["Authorization"].split()[1]
    assert cloud.key not in str(journal)
    assert token not in str(journal)


def test_connections_are_counted_and_named(cloud, make):
    before = cloud.control.tcp_connections()
    for _ in range(3):
        cloud("GET", "/jobs")
    assert cloud.control.tcp_connections() == before
    make()
    assert cloud.control.tcp_connections() == before + 1
    ports = [one["connection"] for one in cloud.control.journal()]
    assert len(set(ports)) == 2
