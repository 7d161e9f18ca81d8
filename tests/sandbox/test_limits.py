"""Create limit, usage limit, consistency lags, paused backends."""

import time

import pytest

from tests.support.sandbox_api import code


def service_time(api, seconds):
    """Let service time pass."""
    end = api.control.now() + seconds
    api.control.set_clock_scale(10_000)
    while api.control.now() < end:
        pass
    api.control.set_clock_scale(1)


def test_creates_per_minute_and_user(make, fast):
    fast.control.set_option("create_limit", 2)
    mine, colleague = make(user=0), make(user=1)
    assert [mine.submit().status_code for _ in range(2)] == [200, 200]
    refused = mine.submit()
    assert code(refused) == (429, 1202)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert colleague.submit().status_code == 200
    assert len(fast.control.jobs()) == 3
    service_time(mine, 61)
    assert mine.submit().status_code == 200
    fast.control.set_option("retry_after", False)
    mine.submit()
    assert "retry-after" not in mine.submit().headers


def test_refused_bodies_do_not_count(cloud, fast):
    cloud.control.set_option("create_limit", 1)
    assert code(cloud.submit(colour="red")) == (400, 1208)
    assert cloud.submit().status_code == 200


def test_usage_limit_refuses_with_409(cloud, fast):
    cloud.control.set_times(run_time=6)
    cloud.control.set_option("usage_limit_seconds", 10)
    cloud.control.set_clock_scale(200)
    for _ in range(2):
        cloud.control.wait_job(cloud.job_id())
    usage = cloud("GET", "/instances/usage").json()
    assert usage["usage_consumed_seconds"] == 12
    assert usage["usage_limit_seconds"] == 10
    assert usage["usage_limit_reached"] is True
    assert usage["instance_id"] == cloud.crn
    assert code(cloud.submit()) == (409, 4317)
    cloud.control.set_usage(limit=20)
    assert cloud.submit().status_code == 200


def test_usage_limit_may_leave_jobs_queued(cloud, fast):
    cloud.control.set_option("usage_limit_queues", True)
    cloud.control.set_usage(consumed=5, limit=5)
    job_id = cloud.job_id()
    with pytest.raises(Exception, match="still Queued"):
        cloud.control.wait_job(job_id, timeout=0.2)
    cloud.control.set_usage(limit=50)
    assert cloud.control.wait_job(job_id)["status"] == "Completed"


def test_instance_limit_is_set_by_the_administrator(make):
    admin, user, other = make(user=0), make(user=1), make(user=2)
    path = "/instances/configuration"
    assert admin("GET", path).json() == {}
    assert code(user("PUT", path, json={"instance_limit": 5})) == (403, 1200)
    assert admin("PUT", path, json={"instance_limit": 50}).status_code == 204
    assert admin("GET", path).json() == {"instance_limit": 50}
    assert other("GET", path).json() == {}
    instance = admin("GET", "/instance").json()
    assert instance["instance_limit_seconds"] == "50"
    assert "sandbox_noisy" in instance["backends"]
    for body in ({"instance_limit": 0}, {"instance_limit": "5"}, []):
        assert code(admin("PUT", path, json=body)) == (400, 1208)
    admin.control.set_usage(consumed=40)
    assert code(admin("PUT", path, json={"instance_limit": 30})) == (409, "conflict")
    assert admin("PUT", path, json={"instance_limit": None}).status_code == 204
    assert "usage_limit_seconds" not in admin("GET", "/instances/usage").json()


def test_lists_lag_behind(cloud, fast):
    cloud.control.set_option("list_lag", 5)
    job_id = cloud.job_id(tags=["late"])
    cloud("POST", "/sessions", json={"mode": "batch"})
    assert cloud("GET", f"/jobs/{job_id}").status_code == 200
    assert cloud("GET", "/jobs", params={"tags": "late"}).json()["count"] == 0
    assert cloud("GET", "/workloads").json()["total_count"] == 0
    service_time(cloud, 5)
    assert cloud("GET", "/jobs", params={"tags": "late"}).json()["count"] == 1
    assert cloud("GET", "/workloads").json()["total_count"] == 2


def test_new_jobs_may_not_be_found_at_once(cloud, fast):
    cloud.control.set_option("get_lag", 5)
    job_id = cloud.job_id()
    for path in ("", "/results"):
        assert code(cloud("GET", f"/jobs/{job_id}{path}")) == (404, 1291)
    assert cloud("GET", "/jobs").json()["count"] == 1
    service_time(cloud, 5)
    assert cloud("GET", f"/jobs/{job_id}").status_code == 200


def test_results_come_after_the_status(cloud, fast):
    cloud.control.set_option("results_lag", 5)
    job_id = cloud.job_id()
    cloud.control.wait_job(job_id)
    assert cloud.status(job_id) == "Completed"
    assert cloud("GET", f"/jobs/{job_id}/results").status_code == 204
    service_time(cloud, 5)
    assert cloud("GET", f"/jobs/{job_id}/results").status_code == 200


def test_paused_backend_keeps_jobs_queued(cloud, fast):
    job_id = cloud.job_id(backend="sandbox_paused")
    assert cloud.run()
    assert cloud.status(job_id) == "Queued"
    cloud.control.set_backend("sandbox_paused", status="online")
    assert cloud.control.wait_job(job_id)["status"] == "Completed"


def test_thousands_of_jobs_wake_nobody_while_they_wait(cloud):
    """Pending jobs cost nothing: the server's thread sleeps."""
    cloud.run()  # the simulator is warm, so it is not that which is measured
    cloud.control.set_times(queue_time=1000)
    for _ in range(300):
        cloud.job_id()
    before = time.process_time()
    time.sleep(0.5)  # the time in which nothing shall happen is the test
    assert time.process_time() - before < 0.1


def test_whole_seconds_are_charged_on_request(cloud):
    cloud.control.set_option("whole_seconds", True)
    cloud.control.set_usage(limit=100)
    cloud.control.set_times(queue_time=0, run_time=0.01)
    cloud.run()
    usage = cloud("GET", "/instances/usage").json()
    assert (usage["usage_consumed_seconds"], usage["usage_limit_seconds"]) == (1, 100)
    assert {type(usage[name]) for name in ("usage_consumed_seconds", "usage_limit_seconds")} == {int}
