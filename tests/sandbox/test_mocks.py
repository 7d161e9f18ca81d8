"""Mock backends: jobs run without a QPU, give results of the right form, cost nothing, and are listed on request."""

import pytest

from tests.support.sandbox_api import BELL, BELL_STATE, code

MOCKS = ["mock_noisy", "mock_ideal", "mock_paused", "mock_offline"]


def test_mock_backends_are_listed_on_request(cloud, legacy):
    shown = cloud("GET", "/backends", params={"include_mocks": "true"}).json()["devices"]
    assert [device["name"] for device in shown if device.get("class") == "mock"] == MOCKS
    assert len(shown) == 8
    bare = cloud.http.get(f"{cloud.sandbox.base_url()}/backends?include_mocks", headers=cloud.headers)
    assert len(bare.json()["devices"]) == 8
    assert code(cloud("GET", "/backends", loose=True, params={"include_mocks": "perhaps"})) == (400, 1208)
    assert not [device for device in cloud("GET", "/backends").json()["devices"] if "class" in device]
    assert not set(MOCKS) & set(cloud("GET", "/instance").json()["backends"])
    assert not set(MOCKS) & set(legacy("GET", "/backends").json()["devices"])


def test_their_documents_are_those_of_the_backends_they_stand_for(cloud):
    for name in ("noisy", "ideal"):
        mock, real = (cloud("GET", f"/backends/{kind}_{name}/configuration").json() for kind in ("mock", "sandbox"))
        assert mock.pop("backend_name") == f"mock_{name}"
        assert real.pop("backend_name") == f"sandbox_{name}"
        assert mock == real


def test_a_job_gives_random_results_of_the_right_form_and_is_not_charged(cloud, fast):
    fast.control.set_times(queue_time=0, run_time=3)
    fast.control.set_clock_scale(20)
    result = cloud.run([[BELL, None, 400]], backend="mock_ideal")
    samples = result["results"][0]["data"]["c"]["samples"]
    assert len(samples) == 400
    # A Bell pair would give two of these only.
    assert set(samples) == {"0x0", "0x1", "0x2", "0x3"}
    params = {"pubs": [[BELL_STATE, ["ZZ", "XX"], None, 0.1]]}
    data = cloud.run(program="estimator", params=params, backend="mock_noisy")["results"][0]["data"]
    assert all(-1 <= value <= 1 for value in data["evs"])
    assert len(set(data["evs"])) == 2
    jobs = cloud.control.jobs()
    assert [job["usage_seconds"] for job in jobs] == [3, 3]
    assert cloud("GET", "/instances/usage").json()["usage_consumed_seconds"] == 0


def test_what_could_not_run_fails_on_a_mock_backend_too(cloud, fast):
    wide = 'OPENQASM 3.0; include "stdgates.inc"; qubit[40] q; bit[1] c; c[0] = measure q[39];'
    job = cloud.control.wait_job(cloud.job_id([[wide]], backend="mock_ideal"))
    assert job["status"] == "Failed"
    assert code(cloud.submit(backend="mock_offline")) == (400, 1004)


@pytest.mark.parametrize("path", ["/jobs", "/workloads"])
def test_their_jobs_are_listed_on_request(cloud, fast, path):
    real, mock = cloud.job_id(tags=["both"]), cloud.job_id(tags=["both"], backend="mock_ideal")
    name = path[1:]

    def listed(**query):
        return {item["id"] for item in cloud("GET", path, loose=True, params=query).json()[name]}

    assert listed() == listed(tags="both") == {real}
    assert listed(include_mocks="true") == listed(include_mocks="true", tags="both") == {real, mock}
    assert cloud("GET", f"/jobs/{mock}").json()["backend"] == "mock_ideal"
