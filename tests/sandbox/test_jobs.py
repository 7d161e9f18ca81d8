"""Jobs in the cloud dialect: create, look, list, cancel, delete, results, tags."""

from importlib import metadata

import httpx
import pytest

from prefect_qruntime.sandbox import api_errors, call, service
from tests.support.sandbox_api import BELL, BELL_STATE, code


def test_life_of_a_job(cloud):
    cloud.control.hold()
    answer = cloud.submit(tags=["a"], cost=30)
    assert set(answer.json()) == {"id", "backend"}
    job_id = answer.json()["id"]
    seen = cloud("GET", f"/jobs/{job_id}").json()
    assert (seen["status"], seen["state"], seen["cost"], seen["tags"]) == (
        "Queued",
        {"status": "Queued"},
        30,
        ["a"],
    )
    assert seen["params"]["pubs"] == [[BELL, None, 50]]
    assert seen["usage"] == {"qpu_charge_time_seconds": 0.0, "status": "pending"}
    assert cloud("GET", f"/jobs/{job_id}/results").status_code == 204
    assert code(cloud("GET", f"/jobs/{job_id}/logs")) == (404, "not_found")
    cloud.control.release()
    cloud.control.wait_job(job_id)
    seen = cloud("GET", f"/jobs/{job_id}", params={"exclude_params": "true"}).json()
    assert seen["status"] == seen["state"]["status"] == "Completed"
    assert "params" not in seen
    assert seen["usage"] == {"qpu_charge_time_seconds": 0.05, "status": "complete"}
    metrics = cloud("GET", f"/jobs/{job_id}/metrics").json()
    stamps = metrics["timestamps"]
    assert stamps["created"] <= stamps["running"] <= stamps["finished"]
    assert metrics["circuits_execution_time_ns"] > 0
    assert "Completed" in cloud("GET", f"/jobs/{job_id}/logs").text


def test_queue_and_run_take_their_times(cloud):
    cloud.run()  # warm
    cloud.control.set_times(queue_time=0.2, run_time=0.1, backend="sandbox_ideal")
    job = cloud.control.wait_job(cloud.job_id())
    assert 0.19 < job["started"] - job["created"] < 0.4
    assert 0.09 < job["ended"] - job["started"] < 0.4
    assert job["usage_seconds"] == 0.1


def test_clock_scale_moves_timers_that_are_set(cloud):
    cloud.run()
    cloud.control.set_times(queue_time=3600, run_time=1800)
    job_id = cloud.job_id()
    assert cloud.status(job_id) == "Queued"
    cloud.control.set_clock_scale(36_000)
    job = cloud.control.wait_job(job_id)
    assert job["started"] - job["created"] >= 3600
    assert job["usage_seconds"] == 1800


@pytest.mark.parametrize("absent", ["jsonschema", "qiskit", "qiskit_qasm3_import", "qiskit_aer"])
def test_without_a_package_nothing_is_accepted(cloud, legacy, monkeypatch, absent):
    there = service.find_spec
    monkeypatch.setattr(service, "find_spec", lambda name: None if name == absent else there(name))
    service.missing_packages.cache_clear()
    try:
        refused = [one.submit() for one in (cloud, legacy)]
        refused.append(cloud("POST", "/sessions", json={"mode": "dedicated", "backend": "sandbox_ideal"}))
    finally:
        monkeypatch.undo()
        service.missing_packages.cache_clear()
    for answer in refused:
        assert code(answer) == (400, "not_installed")
        (error,) = answer.json()["errors"]
        assert absent in error["message"]
        assert "Install prefect-qruntime[sandbox]" in error["solution"]
    assert cloud.control.jobs() == []
    assert cloud.control.sessions() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, (400, 1208)),
        ({"start_session": True}, (400, 1208)),
        ({"params": {"pubs": [[BELL]], "shotz": 1}}, (400, 1208)),
        ({"params": {"pubs": [[BELL]], "options": {"transpilation": {}}}}, (400, 1208)),
        ({"params": {"pubs": [[BELL]], "options": {"execution": {"meas_type": "loud"}}}}, (400, 1208)),
        ({"params": {"pubs": []}}, (400, 1208)),
        ({"params": {}}, (400, 1208)),
        ({"params": {"pubs": [[BELL]], "version": 1}}, (400, 1208)),
        ({"params": {"pubs": [[BELL]], "shots": -1}}, (400, 1208)),
        ({"cost": -1}, (400, 1208)),
        ({"cost": True}, (400, 1208)),
        ({"tags": ["t"] * 9}, (400, 1204)),
        ({"tags": ["t" * 87]}, (400, 1205)),
        ({"tags": "t"}, (400, 1208)),
        ({"log_level": "loud"}, (400, 1208)),
        ({"session_id": "no-such-session"}, (404, "not_found")),
        ({"backend": "ibm_nowhere"}, (404, "not_found")),
        ({"backend": "sandbox_offline"}, (400, 1004)),
        ({"program_id": "teleporter"}, (404, "not_found")),
        ({"program_id": "executor"}, (400, 1208)),
        ({"program_id": "noise-learner"}, (400, 1208)),
        ({"program_id": "estimator"}, (400, 1208)),
        ({"program_id": "calibrate", "params": {"options": {}}}, (400, 1208)),
        ({"calibration_id": "of-another-day"}, (404, "not_found")),
    ],
)
def test_bodies_are_checked(cloud, change, expected):
    fields = {"program": "sampler", **change}
    if "program_id" in fields:
        fields["program"] = fields.pop("program_id")
    if fields["program"] == "estimator":
        fields["pubs"] = [[BELL]]
    assert code(cloud.submit(**fields)) == expected
    assert cloud.control.jobs() == []


@pytest.mark.parametrize("level", ["debug", "WARNING"])
def test_log_levels_in_small_letters_and_in_the_official_clients(cloud, level):
    assert cloud.submit(log_level=level, loose=level.isupper()).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"null", b'{"program_id": NaN}', b"\xff"])
def test_odd_bodies_are_400(cloud, content):
    for method, path in [("POST", "/jobs"), ("POST", "/sessions"), ("PUT", "/instances/configuration")]:
        assert code(cloud(method, path, content=content))[0] == 400


def test_limits_of_tags_are_inclusive_and_cost_is_capped(cloud, fast):
    job_id = cloud.job_id(tags=[f"{n}" + "x" * 85 for n in range(8)], cost=99_999, loose=True)
    assert cloud("GET", f"/jobs/{job_id}").json()["cost"] == 10_800


def test_listing_filters_and_pages(cloud, fast):
    ids = [cloud.job_id(tags=["all", f"n{n}"]) for n in range(5)]
    for job_id in ids:
        cloud.control.wait_job(job_id)
    cloud.control.hold()
    waiting = cloud.job_id([[BELL, "ZZ"]], program="estimator", backend="sandbox_noisy", tags=["all", "last"])

    def listed(loose=False, **query):
        answer = cloud("GET", "/jobs", loose=loose, params=query).json()
        return [job["id"] for job in answer["jobs"]], answer["count"]

    assert listed() == ([waiting, *reversed(ids)], 6)
    assert listed(sort="ASC", limit=2, offset=1) == (ids[1:3], 6)
    assert listed(offset=6) == ([], 6)
    assert listed(pending="true") == ([waiting], 1)
    assert listed(pending="False", limit=1, loose=True) == ([ids[-1]], 5)
    assert listed(program="estimator")[0] == [waiting]
    assert listed(backend="sandbox_noisy")[0] == [waiting]
    assert listed(session_id="nothing") == ([], 0)
    assert listed(tags=["all", "n3"]) == ([ids[3]], 1)
    assert listed(tags=["n3", "n4"]) == ([], 0)
    assert listed(tags="al") == ([], 0)
    created = cloud("GET", f"/jobs/{ids[2]}").json()["created"]
    assert ids[2] in listed(created_after=created)[0]
    assert listed(created_after="2999-01-01") == ([], 0)
    assert listed(created_before="2000-01-01T00:00:00+00:00") == ([], 0)
    answer = cloud("GET", "/jobs", params={"limit": 1000}).json()
    assert (answer["limit"], answer["offset"]) == (200, 0)
    assert "params" not in answer["jobs"][0]
    assert "params" in cloud("GET", "/jobs", params={"exclude_params": "false"}).json()["jobs"][0]
    bad = ({"limit": "x"}, {"offset": -1}, {"sort": "UP"}, {"pending": "maybe"}, {"created_after": "soon"})
    for query in bad:
        assert code(cloud("GET", "/jobs", params=query)) == (400, 1208)


def test_tags_can_be_replaced_and_searched(cloud, fast):
    job_id = cloud.job_id(tags=["old-one"])
    assert cloud("PUT", f"/jobs/{job_id}/tags", json={"tags": ["new-one", "two"]}).status_code == 204
    assert cloud("GET", "/jobs", params={"tags": "old-one"}).json()["count"] == 0
    assert cloud("GET", "/jobs", params={"tags": ["two", "new-one"]}).json()["count"] == 1
    assert cloud("GET", "/tags", params={"type": "job", "search": "one"}).json() == {"tags": ["new-one"]}
    later = cloud.job_id(tags=["shared"])
    assert cloud("PUT", f"/jobs/{job_id}/tags", json={"tags": ["shared", "one"]}).status_code == 204
    listed = cloud("GET", "/jobs", params={"tags": "shared"}).json()["jobs"]
    assert [job["id"] for job in listed] == [later, job_id]
    assert code(cloud("PUT", f"/jobs/{job_id}/tags", json={"tags": ["t"] * 9})) == (400, 1204)
    assert code(cloud("GET", "/tags", params={"type": "job", "search": "on"})) == (400, 1208)
    assert code(cloud("GET", "/tags", params={"type": "cat", "search": "one"})) == (400, 1208)


def test_cancel_and_delete(cloud):
    cloud.control.hold()
    job_id = cloud.job_id()
    queued = cloud.job_id()
    assert cloud("DELETE", f"/jobs/{queued}").status_code == 204
    assert code(cloud("GET", f"/jobs/{queued}")) == (404, 1291)
    assert cloud("POST", f"/jobs/{job_id}/cancel").status_code == 204
    assert cloud.status(job_id) == "Cancelled"
    assert cloud("GET", f"/jobs/{job_id}/results").status_code == 204
    assert code(cloud("POST", f"/jobs/{job_id}/cancel"))[0] == 409
    assert cloud("DELETE", f"/jobs/{job_id}").status_code == 204
    for path in ("", "/results", "/metrics", "/logs"):
        assert code(cloud("GET", f"/jobs/{job_id}{path}")) == (404, 1291)


def test_running_job_is_cancelled_and_charged_for_its_time(cloud):
    cloud.control.set_times(queue_time=0, run_time=500)
    cloud.control.set_option("cancel_lag", 1)
    cloud.control.set_clock_scale(20)
    job_id = cloud.job_id()
    while cloud.status(job_id) != "Running":
        pass
    assert code(cloud("DELETE", f"/jobs/{job_id}")) == (400, 1208)
    assert "estimated_running_time_seconds" in cloud("GET", f"/jobs/{job_id}").json()
    assert cloud("POST", f"/jobs/{job_id}/cancel").status_code == 204
    job = cloud.control.wait_job(job_id)
    assert job["status"] == "Cancelled"
    assert 1 <= job["usage_seconds"] < 500


def test_private_job_shows_its_results_once(cloud, fast):
    answer = cloud.submit(private=True)
    job_id = answer.json()["id"]
    assert answer.json()["private"] is True
    cloud.control.wait_job(job_id)
    seen = cloud("GET", f"/jobs/{job_id}").json()
    assert seen["private"] is True
    assert "params" not in seen
    assert len(cloud("GET", f"/jobs/{job_id}/results").json()["results"]) == 1
    again = cloud("GET", f"/jobs/{job_id}/results")
    assert (again.status_code, again.content) == (204, b"")
    assert cloud.control.job(job_id)["result_read"]


def test_job_that_exceeds_its_cost_ran_too_long(cloud):
    cloud.control.set_times(queue_time=0, run_time=10)
    cloud.control.set_clock_scale(100)
    job = cloud.control.wait_job(cloud.job_id(cost=2))
    seen = cloud("GET", f"/jobs/{job['id']}").json()
    assert seen["status"] == "Cancelled - Ran too long"
    assert seen["state"] == {"status": "Cancelled", "reason": "Ran too long", "reason_code": 1305}
    assert job["usage_seconds"] == pytest.approx(2)


def test_usage_is_pending_until_booked(cloud):
    cloud.control.set_option("usage_lag", 1000)
    cloud.control.set_times(queue_time=0, run_time=2.5)
    cloud.control.set_clock_scale(50)
    job_id = cloud.job_id()
    cloud.control.wait_job(job_id)
    seen = cloud("GET", f"/jobs/{job_id}").json()["usage"]
    assert seen == {"qpu_charge_time_seconds": 2.0, "status": "pending"}
    assert cloud("GET", "/instances/usage").json()["usage_consumed_seconds"] == 0
    cloud.control.set_clock_scale(2_000)  # the token lives for an hour of this clock, the usage lags a quarter of it
    while cloud("GET", f"/jobs/{job_id}").json()["usage"]["status"] == "pending":
        pass
    cloud.control.set_clock_scale(1)
    assert cloud("GET", f"/jobs/{job_id}").json()["usage"]["qpu_charge_time_seconds"] == 2.5
    assert cloud("GET", "/instances/usage").json()["usage_consumed_seconds"] == 2.5


def test_old_versions_have_the_old_usage(cloud, fast):
    job_id = cloud.job_id()
    cloud.control.wait_job(job_id)
    old = cloud("GET", f"/jobs/{job_id}", headers={"IBM-API-Version": None}).json()
    assert {"quantum_seconds", "seconds"} <= set(old["usage"])
    assert "bss" in old
    between = cloud("GET", f"/jobs/{job_id}", headers={"IBM-API-Version": "2026-03-15"}).json()
    assert "circuits_execution_time_ns" in between["usage"]
    assert "bss" not in between


def test_too_large_input_is_413(cloud, monkeypatch):
    assert call.MAX_INPUT == 300 * 1024 * 1024
    assert "300 MB" in api_errors.default_error(413)["errors"][0]["message"]
    monkeypatch.setattr(call, "MAX_INPUT", 1024 * 1024)
    body = b'{"program_id":"' + b"x" * (1024 * 1024) + b'"}'
    answer = cloud.http.post(f"{cloud.sandbox.base_url()}/jobs", headers=cloud.headers, content=body)
    assert answer.status_code == 413


def test_unknown_paths_and_methods_use_the_error_container(cloud):
    base = cloud.sandbox.base_url()
    for method, path, status in [("GET", "/nothing", 404), ("PUT", "/jobs", 405), ("GET", "/jobs/a/b", 404)]:
        answer = httpx.request(method, base + path, headers=cloud.headers, trust_env=False)
        assert answer.status_code == status
        assert answer.json()["errors"][0]["message"]
        assert answer.json()["trace"]


def test_the_version_may_be_text(cloud, legacy, fast):
    for api in (cloud, legacy):
        assert api.run(params={"version": "2", "pubs": [[BELL, None, 7]]})["results"][0]["data"]["c"]["num_bits"] == 2
    assert code(cloud.submit(params={"version": "3", "pubs": [[BELL]]})) == (400, 1208)


@pytest.mark.parametrize(
    ("twirling", "pub_shots", "shots"),
    [
        ({"enable_gates": True, "num_randomizations": 3, "shots_per_randomization": 5}, None, 15),
        ({"enable_measure": True, "num_randomizations": 3, "shots_per_randomization": 5}, None, 15),
        ({"enable_gates": True, "num_randomizations": 3, "shots_per_randomization": 5}, 8, 8),
        ({"num_randomizations": 3, "shots_per_randomization": 5}, None, 20),
        ({"enable_gates": True, "num_randomizations": "auto", "shots_per_randomization": 5}, None, 20),
    ],
)
def test_twirling_decides_the_shots_that_nothing_else_asks_for(cloud, fast, twirling, pub_shots, shots):
    params = {"pubs": [[BELL, None, pub_shots]], "options": {"default_shots": 20, "twirling": twirling}}
    assert len(cloud.run(params=params)["results"][0]["data"]["c"]["samples"]) == shots


@pytest.mark.parametrize(("precision", "shots"), [(None, 15), (0.25, 16)])
def test_twirling_decides_the_shots_of_an_estimator_too(cloud, fast, precision, shots):
    twirling = {"enable_gates": True, "num_randomizations": 3, "shots_per_randomization": 5}
    options = {"default_precision": 0.1, "twirling": twirling}
    params = {"pubs": [[BELL_STATE, "ZZ", None, precision]], "version": 2, "options": options}
    (result,) = cloud.run(program="estimator", params=params)["results"]
    assert result["metadata"]["shots"] == shots


def test_metrics_name_the_qiskit_that_ran_the_circuits(cloud, fast):
    job_id = cloud.job_id()
    cloud.control.wait_job(job_id)
    assert cloud("GET", f"/jobs/{job_id}/metrics").json()["qiskit_version"] == metadata.version("qiskit")


def test_kerneled_samples_need_encoded_results(cloud, fast):
    params = {"pubs": [[BELL, None, 5]], "options": {"execution": {"meas_type": "kerneled"}}}
    reason = cloud.control.wait_job(cloud.job_id(params=params))["reason"]
    assert "kerneled needs support_qiskit" in reason
