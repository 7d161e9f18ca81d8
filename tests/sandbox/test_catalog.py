"""Backends, versions, workloads."""

import httpx
import pytest
from jsonschema import ValidationError

from tests.support.sandbox_api import DOCUMENT, code

NAMES = ["sandbox_noisy", "sandbox_ideal", "sandbox_paused", "sandbox_offline"]


def test_backends_are_objects_on_cloud_and_names_before(cloud, legacy):
    devices = cloud("GET", "/backends").json()["devices"]
    assert [device["name"] for device in devices] == NAMES
    assert [device["status"]["name"] for device in devices] == ["online", "online", "paused", "offline"]
    assert [device["qubits"] for device in devices[:2]] == [27, 32]
    assert [device["is_simulator"] for device in devices[:2]] == [False, True]
    assert "wait_time_seconds" not in devices[0]
    devices = cloud("GET", "/backends", params={"fields": "wait_time_seconds"}).json()["devices"]
    assert devices[0]["wait_time_seconds"]["p95"] >= devices[0]["wait_time_seconds"]["p50"]
    assert legacy("GET", "/backends").json() == {"devices": NAMES}
    first = {**cloud.headers, "IBM-API-Version": "2024-01-01"}
    url = f"{cloud.sandbox.base_url()}/backends"
    assert httpx.get(url, headers=first, trust_env=False).json() == {"devices": NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_documents_of_a_backend(cloud, name):
    status = cloud("GET", f"/backends/{name}/status").json()
    assert (status["status"] == "active") is (name in NAMES[:2])
    configuration = cloud("GET", f"/backends/{name}/configuration").json()
    assert configuration["backend_name"] == name
    assert len(cloud("GET", f"/backends/{name}/defaults").json()["qubit_freq_est"]) == configuration["n_qubits"]
    properties = cloud("GET", f"/backends/{name}/properties").json()
    assert len(properties["qubits"]) == configuration["n_qubits"]
    described = {gate["gate"] for gate in properties["gates"]}
    assert described == set(configuration["basis_gates"])
    for what in ("status", "configuration", "properties", "defaults"):
        assert code(cloud("GET", f"/backends/ibm_nowhere/{what}")) == (404, "not_found")


def test_queue_length_counts_pending_jobs_or_shows_what_it_is_told(cloud):
    cloud.control.hold()
    job_id = cloud.job_id()
    assert cloud("GET", "/backends/sandbox_ideal/status").json()["length_queue"] == 1
    cloud.control.set_backend("sandbox_noisy", queue_length=77)
    assert cloud("GET", "/backends").json()["devices"][0]["queue_length"] == 77
    cloud("POST", f"/jobs/{job_id}/cancel")
    assert cloud("GET", "/backends/sandbox_ideal/status").json()["length_queue"] == 0


def test_versions_need_no_token(qruntime_sandbox):
    answer = httpx.get(f"{qruntime_sandbox.base_url()}/versions", trust_env=False)
    DOCUMENT.check("GET", "/v1/versions", answer)
    assert [(one["version"], one["status"], one.get("sunset_date")) for one in answer.json()["versions"]] == [
        ("2026-02-15", "deprecated", "2027-02-15"),
        ("2026-03-15", "deprecated", "2027-03-15"),
        ("2026-04-15", "live", None),
    ]


@pytest.mark.parametrize("version", ["2024-01-01", "2025-05-01", "2026-02-01", "2026-02-15"])
def test_versions_that_are_listed_no_more_still_work(cloud, version):
    assert cloud("GET", "/instance", headers={"IBM-API-Version": version}).status_code == 200


def test_devices_say_how_many_qubits_they_have_with_their_couplers(cloud):
    devices = {device["name"]: device for device in cloud("GET", "/backends").json()["devices"]}
    assert devices["sandbox_noisy"]["physical_qubits"] == 27 + 28
    assert devices["sandbox_ideal"]["physical_qubits"] == 32


def test_calibrations_are_known_by_their_id(cloud, fast):
    job_id = cloud.job_id()
    current = cloud("GET", f"/jobs/{job_id}").json()["calibration_id"]
    assert cloud.submit(calibration_id=current).json()["calibration_id"] == current
    for what in ("configuration", "properties"):
        path = f"/backends/sandbox_ideal/{what}"
        assert cloud("GET", path, params={"calibration_id": current}).json() == cloud("GET", path).json()
        assert code(cloud("GET", path, params={"calibration_id": "other"})) == (404, "not_found")


def test_workloads_page_with_a_cursor_both_ways(cloud):
    cloud.control.hold()
    made = [cloud.job_id(tags=[f"w{n}"]) for n in range(5)]
    session = cloud("POST", "/sessions", json={"mode": "batch", "backend": "sandbox_ideal"}).json()["id"]
    cloud.job_id(session_id=session)
    made.append(session)

    seen, pages = [], []
    page = cloud("GET", "/workloads", params={"limit": 4}).json()
    while True:
        pages.append(page)
        seen += [item["id"] for item in page["workloads"]]
        if "next" not in page:
            break
        href = page["next"]["href"]
        answer = cloud.http.get(href, headers=cloud.headers)
        DOCUMENT.check("GET", "/v1/workloads", answer)
        page = answer.json()
    assert sorted(seen) == sorted(made)
    assert [len(one["workloads"]) for one in pages] == [4, 2]
    assert pages[0]["total_count"] == 6
    back = cloud.http.get(pages[1]["previous"]["href"], headers=cloud.headers).json()
    assert back["workloads"] == pages[0]["workloads"]
    assert "previous" not in back

    def ids(**query):
        return [item["id"] for item in cloud("GET", "/workloads", params={"limit": 50, **query}).json()["workloads"]]

    assert ids(mode="batch") == [session]
    assert ids(tags=["w3"]) == [made[3]]
    assert len(ids(mode="job", status=["pending"])) == 5
    assert ids(status="failed") == []
    assert ids(search="w1") == [made[1]]
    for query in ({"limit": 51}, {"next": "%%%"}, {"mode": "x"}, {"status": "x"}, {"sort": "x"}):
        assert code(cloud("GET", "/workloads", params=query)) == (400, 1208)


def test_workloads_of_sessions_tell_what_became_of_them(cloud, fast):
    body = {"mode": "dedicated", "backend": "sandbox_ideal"}
    session = cloud("POST", "/sessions", json=body).json()["id"]
    cloud.control.wait_job(cloud.job_id(session_id=session))

    def shown():
        return cloud("GET", "/workloads", params={"mode": "session"}).json()["workloads"][0]

    assert (shown()["status"], shown()["accepting_jobs"]) == ("in_progress", True)
    cloud("DELETE", f"/sessions/{session}/close")
    assert (shown()["status"], shown()["accepting_jobs"], "ended" in shown()) == ("completed", False, True)


def test_the_checks_of_answers_can_fail():
    for body in ({"devices": []}, {"devices": [{"name": "x"}]}, {}):
        with pytest.raises(ValidationError):
            DOCUMENT.check("GET", "/v1/backends", httpx.Response(200, json=body))
    with pytest.raises(AssertionError):
        DOCUMENT.check("GET", "/v1/backends", httpx.Response(201, json={}))
