"""Sessions and batches."""

import itertools
import time

import pytest

from tests.support.sandbox_api import code


def opened(api, **fields):
    answer = api("POST", "/sessions", json={"mode": "dedicated", "backend": "sandbox_ideal", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(what, timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if what():
            return
    raise AssertionError("it did not come to pass")


def state(api, session_id):
    return api("GET", f"/sessions/{session_id}").json()["state"]


@pytest.mark.parametrize("mode", ["dedicated", "batch"])
def test_jobs_of_a_session_run_in_order_one_at_a_time(cloud, mode):
    session = opened(cloud, mode=mode, max_ttl=600)
    assert (session["mode"], session["state"], session["accepting_jobs"]) == (mode, "open", True)
    assert (session["max_ttl"], session["interactive_ttl"], session["elapsed_time"]) == (600, 60, None)
    ids = [cloud.job_id(session_id=session["id"]) for _ in range(4)]
    jobs = [cloud.control.wait_job(job_id) for job_id in ids]
    for before, after in itertools.pairwise(jobs):
        assert before["ended"] <= after["started"]
    seen = cloud("GET", f"/sessions/{session['id']}").json()
    assert seen["state"] == "active"
    assert seen["elapsed_time"] > 0
    assert {"activated_at", "last_job_started", "last_job_completed"} <= set(seen)
    listed = cloud("GET", "/jobs", params={"session_id": session["id"], "sort": "ASC"}).json()["jobs"]
    assert [job["id"] for job in listed] == ids


def test_active_session_has_no_queue(cloud):
    session = opened(cloud)["id"]
    cloud.control.wait_job(cloud.job_id(session_id=session))
    cloud.control.set_times(queue_time=1000)
    job = cloud.control.wait_job(cloud.job_id(session_id=session))
    assert job["started"] - job["created"] < 5


def test_patch_takes_no_more_jobs_but_runs_those_queued(cloud):
    session = opened(cloud)["id"]
    cloud.control.hold()
    ids = [cloud.job_id(session_id=session) for _ in range(2)]
    path = f"/sessions/{session}"
    assert cloud("PATCH", path, json={"accepting_jobs": False}).status_code == 204
    assert code(cloud.submit(session_id=session)) == (400, 1217)
    seen = cloud("GET", path).json()
    assert (seen["state"], seen["accepting_jobs"]) == ("open", False)
    assert [one["id"] for one in cloud.control.open_sessions()] == [session]
    cloud.control.release()
    assert [cloud.control.wait_job(job_id)["status"] for job_id in ids] == ["Completed"] * 2
    seen = cloud("GET", path).json()
    assert seen["state"] == "closed"
    assert "closed_at" in seen
    assert cloud.control.open_sessions() == []
    assert code(cloud("PATCH", path, json={"accepting_jobs": True})) == (400, 1217)


def test_patch_can_be_taken_back(cloud, fast):
    session = opened(cloud)["id"]
    cloud.control.hold()
    cloud.job_id(session_id=session)
    for accepting in (False, True):
        answer = cloud("PATCH", f"/sessions/{session}", json={"accepting_jobs": accepting})
        assert answer.status_code == 204
    assert cloud.submit(session_id=session).status_code == 200


def test_delete_drops_queued_jobs_and_lets_the_running_one_finish(cloud):
    cloud.control.set_times(queue_time=0, run_time=0.3)
    session = opened(cloud)["id"]
    running, *queued = [cloud.job_id(session_id=session) for _ in range(3)]
    wait_for(lambda: cloud.status(running) == "Running")
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    assert state(cloud, session) == "closed"
    for job_id in queued:
        seen = cloud("GET", f"/jobs/{job_id}").json()["state"]
        assert (seen["status"], seen["reason_code"]) == ("Cancelled", 4001)
    assert cloud.status(running) == "Running"
    assert cloud.control.wait_job(running)["status"] == "Completed"
    assert code(cloud.submit(session_id=session)) == (400, 1217)
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    assert cloud("PATCH", f"/sessions/{session}", json={"accepting_jobs": False}).status_code == 204


def test_max_ttl_starts_with_the_first_job_and_fails_queued_ones(cloud):
    cloud.run()  # warm, so that the simulation is short in scaled time
    cloud.control.set_times(queue_time=0, run_time=60)
    session = opened(cloud, max_ttl=100)["id"]
    ids = [cloud.job_id(session_id=session) for _ in range(4)]  # all in time, before the clock runs
    cloud.control.set_clock_scale(500)
    jobs = [cloud.control.wait_job(job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["Completed", "Completed", "Failed", "Failed"]
    assert {job["reason_code"] for job in jobs[2:]} == {4001}
    seen = cloud.control.session(session)
    assert seen["state"] == "closed"
    assert 100 <= seen["closed"] - seen["activated"] < 160
    # The running job went on after the session was over.
    assert jobs[1]["ended"] > seen["closed"]


def test_idle_session_becomes_inactive_and_active_again_and_is_closed_in_the_end(cloud, fast):
    session = opened(cloud, interactive_ttl=60)["id"]
    cloud.control.wait_job(cloud.job_id(session_id=session))
    assert state(cloud, session) == "active"
    cloud.control.set_clock_scale(600)
    wait_for(lambda: state(cloud, session) == "inactive")
    cloud.control.set_clock_scale(1)
    cloud.control.wait_job(cloud.job_id(session_id=session))
    assert state(cloud, session) == "active"
    cloud.control.set_clock_scale(20_000)
    wait_for(lambda: state(cloud, session) == "closed")
    history = [step["state"] for step in cloud.control.session(session)["history"]]
    assert history == ["open", "active", "inactive", "active", "inactive", "closed"]


def test_plan_without_dedicated_sessions_allows_batches(cloud, legacy):
    cloud.control.set_option("allow_dedicated", False)
    body = {"mode": "dedicated", "backend": "sandbox_ideal"}
    assert code(cloud("POST", "/sessions", json=body)) == (400, 1352)
    assert code(legacy.submit(start_session=True, params={"circuits": ["x"]})) == (400, 1352)
    assert opened(cloud, mode="batch")["mode"] == "batch"
    assert len(cloud.control.sessions()) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, 1208)),
        ({"mode": "forever"}, (400, 1208)),
        ({"mode": "batch", "max_ttl": 0}, (400, 1208)),
        ({"mode": "batch", "max_ttl": "8h"}, (400, 1208)),
        ({"mode": "batch", "backend": "ibm_nowhere"}, (400, "not_found")),
        ({"mode": "batch", "backend": "sandbox_offline"}, (400, 1004)),
    ],
)
def test_session_bodies_are_checked(cloud, body, expected):
    assert code(cloud("POST", "/sessions", json=body)) == expected


def test_unknown_session_and_wrong_backend(cloud):
    for method, path in (("GET", "/sessions/x"), ("PATCH", "/sessions/x"), ("DELETE", "/sessions/x/close")):
        assert code(cloud(method, path, json={"accepting_jobs": False})) == (404, "not_found")
    session = opened(cloud)["id"]
    assert code(cloud.submit(session_id=session, backend="sandbox_noisy")) == (400, 1208)
    assert code(cloud("PATCH", f"/sessions/{session}", json={"accepting_jobs": "no"})) == (400, 1208)


def test_session_without_backend_takes_that_of_its_first_job(cloud):
    answer = cloud("POST", "/sessions", json={"mode": "batch"}).json()
    assert answer["backend_name"] is None
    cloud.job_id(session_id=answer["id"], backend="sandbox_noisy")
    assert cloud("GET", f"/sessions/{answer['id']}").json()["backend_name"] == "sandbox_noisy"


def test_cancelled_job_lets_the_next_one_go(cloud):
    session = opened(cloud)["id"]
    cloud.control.hold()
    first, second = (cloud.job_id(session_id=session) for _ in range(2))
    cloud("POST", f"/jobs/{first}/cancel")
    cloud.control.release()
    assert cloud.control.wait_job(second)["status"] == "Completed"


def workload(api, session_id):
    return next(item for item in api("GET", "/workloads").json()["workloads"] if item["id"] == session_id)


def test_a_dedicated_session_is_charged_by_the_clock_and_its_jobs_are_not_charged_on_top(cloud):
    cloud.control.set_option("usage_lag", 50.0)
    session = opened(cloud)["id"]
    ids = [cloud.job_id(session_id=session) for _ in range(2)]
    for job_id in ids:
        cloud.control.wait_job(job_id)
    # Idle but active: the QPU is reserved, and the clock runs.
    charged = workload(cloud, session)["usage"]
    assert charged["status"] == "pending"
    wait_for(lambda: workload(cloud, session)["usage"]["qpu_charge_time_seconds"] > charged["qpu_charge_time_seconds"])
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    assert workload(cloud, session)["usage"]["status"] == "pending"
    assert cloud.control.usage()["usage_consumed_seconds"] == 0
    cloud.control.set_clock_scale(1000)
    wait_for(lambda: workload(cloud, session)["usage"]["status"] == "complete")
    seen = cloud.control.session(session)
    assert workload(cloud, session)["usage"]["qpu_charge_time_seconds"] == seen["usage_seconds"]
    assert seen["usage_seconds"] == pytest.approx(seen["closed"] - seen["activated"], abs=0.05)
    assert cloud.control.usage()["usage_consumed_seconds"] == seen["usage_seconds"]
    assert seen["usage_seconds"] > sum(cloud.control.job(job_id)["usage_seconds"] for job_id in ids)


def test_an_inactive_session_is_charged_nothing_until_its_next_job(cloud):
    cloud.control.set_clock_scale(1e-6)  # time passes by `advance` only
    session = opened(cloud, interactive_ttl=1)["id"]
    job_id = cloud.job_id(session_id=session)
    cloud.control.advance(60)
    assert state(cloud, session) == "inactive"
    job, charged = cloud.control.job(job_id), workload(cloud, session)["usage"]["qpu_charge_time_seconds"]
    assert charged == pytest.approx(job["ended"] - job["started"] + 1, abs=0.01)
    cloud.control.advance(20)
    assert workload(cloud, session)["usage"]["qpu_charge_time_seconds"] == charged


def test_a_closed_session_is_charged_until_its_running_job_ends(cloud):
    cloud.control.set_times(run_time=1)
    session = opened(cloud)["id"]
    job_id = cloud.job_id(session_id=session)
    wait_for(lambda: cloud.control.job(job_id)["status"] == "Running")
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    assert workload(cloud, session)["usage"]["status"] == "pending"
    job, seen = cloud.control.wait_job(job_id), cloud.control.session(session)
    assert seen["usage_seconds"] == pytest.approx(job["ended"] - job["started"], abs=0.05)
    assert seen["usage_final"]
    assert cloud.control.usage()["usage_consumed_seconds"] == seen["usage_seconds"]


def test_a_batch_is_charged_by_its_jobs(cloud):
    session = opened(cloud, mode="batch")["id"]
    ids = [cloud.job_id(session_id=session) for _ in range(3)]
    used = sum(cloud.control.wait_job(job_id)["usage_seconds"] for job_id in ids)
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    assert workload(cloud, session)["usage"] == {"qpu_charge_time_seconds": pytest.approx(used), "status": "complete"}
    assert cloud.control.usage()["usage_consumed_seconds"] == pytest.approx(used)


def test_resource_units_stand_beside_the_seconds(cloud):
    cloud.control.set_option("resource_unit_rate", 4.0)
    cloud.control.set_usage(limit=100)
    session = opened(cloud)["id"]
    cloud.control.wait_job(cloud.job_id(session_id=session))
    alone = cloud.control.wait_job(cloud.job_id())["id"]
    assert cloud("DELETE", f"/sessions/{session}/close").status_code == 204
    usage = cloud("GET", f"/jobs/{alone}").json()["usage"]
    assert usage["qpu_charge_ru"] == 4 * usage["qpu_charge_time_seconds"]
    for item in cloud("GET", "/workloads").json()["workloads"]:
        assert item["usage"]["qpu_charge_ru"] == pytest.approx(4 * item["usage"]["qpu_charge_time_seconds"])
    whole = cloud("GET", "/instances/usage").json()
    assert whole["usage_consumed_ru"] == pytest.approx(4 * whole["usage_consumed_seconds"], abs=1e-5)
    assert (whole["instance_limit_ru"], whole["usage_allocation_ru"]) == (400, 400)
