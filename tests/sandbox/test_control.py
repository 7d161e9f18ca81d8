"""Scripts, hold and finish, and the control over HTTP."""

import tempfile
from urllib.parse import unquote_plus

import httpx
import pytest

from prefect_qruntime.sandbox import Control, ControlError, Sandbox
from tests.support.sandbox_api import code


def test_scripted_failure(cloud, fast):
    cloud.control.script_job(reason="It broke.", reason_code=9701, results_text="Traceback: it broke")
    failed, fine = cloud.job_id(), cloud.job_id()
    assert cloud.control.wait_job(failed)["status"] == "Failed"
    seen = cloud("GET", f"/jobs/{failed}").json()
    assert seen["state"] == {"status": "Failed", "reason": "It broke.", "reason_code": 9701}
    answer = cloud("GET", f"/jobs/{failed}/results")
    assert (answer.status_code, answer.text) == (200, "Traceback: it broke")
    assert answer.headers["content-type"].startswith("text/plain")
    assert cloud.control.wait_job(fine)["status"] == "Completed"


def test_scripted_cancellation_and_time_limit(cloud, fast):
    cloud.control.script_job(status="Cancelled", reason="By an operator.")
    cloud.control.script_job(status="Ran too long")
    jobs = [cloud.control.wait_job(cloud.job_id()) for _ in range(2)]
    assert [job["status"] for job in jobs] == ["Cancelled", "Cancelled"]
    assert [job["reason_code"] for job in jobs] == [None, 1305]
    assert cloud("GET", f"/jobs/{jobs[1]['id']}").json()["status"] == "Cancelled - Ran too long"


def test_unknown_status_stays_until_finished_or_cancelled(cloud, fast):
    cloud.control.script_job(status="Paused-By-Magic", times=2)
    ids = [cloud.job_id() for _ in range(2)]
    base = cloud.sandbox.base_url()

    def status(job_id):
        # Not through `cloud`, which would rightly call this status against the schema.
        return cloud.http.get(f"{base}/jobs/{job_id}", headers=cloud.headers).json()["state"]["status"]

    for job_id in ids:
        while status(job_id) != "Paused-By-Magic":
            pass
    assert cloud.control.finish(ids[0])["status"] == "Completed"
    assert len(cloud("GET", f"/jobs/{ids[0]}/results").json()["results"]) == 1
    assert cloud("POST", f"/jobs/{ids[1]}/cancel").status_code == 204
    assert status(ids[1]) == "Cancelled"


def test_hold_release_and_finish(cloud, fast):
    cloud.control.hold()
    first, second = cloud.job_id(), cloud.job_id()
    assert cloud.control.finish(first)["status"] == "Completed"
    assert cloud.control.job(second)["status"] == "Queued"
    assert [job["id"] for job in cloud.control.jobs(status="Queued")] == [second]
    cloud.control.release()
    assert cloud.control.wait_job(second)["status"] == "Completed"


def test_hold_also_stops_running_jobs(cloud):
    cloud.run()
    cloud.control.set_times(queue_time=0, run_time=0.2)
    job_id = cloud.job_id()
    while cloud.control.job(job_id)["status"] != "Running":
        pass
    cloud.control.hold()
    with pytest.raises(ControlError, match="still Running"):
        cloud.control.wait_job(job_id, timeout=0.5)
    cloud.control.release()
    assert cloud.control.wait_job(job_id)["status"] == "Completed"


def test_time_passes_at_once_and_each_thing_happens_at_its_own_moment(cloud):
    cloud.run()
    cloud.control.set_clock_scale(1e-9)
    cloud.control.set_times(queue_time=100, run_time=50)
    begun, first = cloud.control.now(), cloud.job_id()
    cloud.control.advance(120)
    assert cloud.control.job(first)["status"] == "Running"
    second = cloud.job_id()
    cloud.control.advance(86_400)
    assert cloud.control.now() == pytest.approx(begun + 86_520, abs=0.01)
    for job_id, created in ((first, begun), (second, begun + 120)):
        job = cloud.control.job(job_id)
        times = [job[name] - created for name in ("created", "started", "ended")]
        assert (job["status"], times) == ("Completed", pytest.approx([0, 100, 150], abs=0.01))
    with pytest.raises(ControlError, match="seconds must be a number"):
        cloud.control.advance(-1)
    cloud.control.set_clock_scale(1)


def test_finish_does_not_wait_for_the_queue(cloud):
    cloud.control.set_times(queue_time=1000, run_time=1000)
    job = cloud.control.finish(cloud.job_id())
    assert job["status"] == "Completed"
    assert job["usage_seconds"] < 10


def test_control_over_http_does_the_same(cloud, fast):
    control = Control.connect(fast.url)
    counted = control.tcp_connections()
    control.hold()
    job_id = cloud.job_id(tags=["far"])
    assert control.jobs(tag="far") == cloud.control.jobs(tag="far")
    assert control.job(job_id)["status"] == "Queued"
    fault = control.add_fault("GET", "/backends", status=500, times=2)
    assert cloud("GET", "/backends").status_code == 500
    assert [one["id"] for one in control.faults()] == [fault]
    control.clear_faults()
    assert control.journal("GET", "/backends")[0]["fault"] == fault
    assert control.finish(job_id)["status"] == "Completed"
    control.set_option("list_lag", 10)
    assert cloud("GET", "/jobs").json()["count"] == 0
    control.set_usage(consumed=3, limit=9)
    assert control.usage()["usage_consumed_seconds"] == cloud.control.usage()["usage_consumed_seconds"]
    assert control.iam_calls() == 1
    # Its own connections and calls are left out.
    assert control.tcp_connections() == counted
    assert control.journal(path="/_control*") == []
    for wrong in (lambda: control.job("x"), lambda: control.set_option("seed", 1), lambda: control.jobs(x=1)):
        with pytest.raises(ControlError):
            wrong()


def test_control_over_http_refuses_pages_of_a_browser(qruntime_sandbox):
    url = f"{qruntime_sandbox.url}/_control/jobs"
    token = {"x-sandbox-token": qruntime_sandbox.control_token}
    # What a page can send without asking first, and what only a program sends.
    for kind, status in (
        ("text/plain", 403),
        ("text/plain; application/json", 403),
        ("multipart/form-data", 403),
        ("Application/JSON ; charset=utf-8", 200),
    ):
        sent = httpx.post(url, content=b"{}", headers={**token, "content-type": kind}, trust_env=False)
        assert sent.status_code == status, kind
    headers = {**token, "content-type": "application/json", "host": "evil.example"}
    assert httpx.post(url, content=b"{}", headers=headers, trust_env=False).status_code == 403
    headers = {**token, "content-type": "application/json"}
    for name in ("_known", "__init__", "nothing"):
        answer = httpx.post(f"{qruntime_sandbox.url}/_control/{name}", headers=headers, trust_env=False)
        assert answer.status_code == 404
    for content in (b"[]", b"{", b'{"x": 1}'):
        answer = httpx.post(url, content=content, headers=headers, trust_env=False)
        assert answer.status_code in (200, 400)
        assert answer.status_code == 400 or answer.json() == {"result": []}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 3),
        ("nothing", 1),
        ("queue_time", -1),
        ("clock_scale", 0),
        ("websocket", "maybe"),
        ("queue_time", "long"),
    ],
)
def test_options_are_checked(qruntime_sandbox, name, value):
    with pytest.raises(ControlError):
        qruntime_sandbox.control.set_option(name, value)


def test_set_backend_is_checked(cloud):
    with pytest.raises(ControlError):
        cloud.control.set_backend("sandbox_ideal", status="broken")
    with pytest.raises(ControlError):
        cloud.control.set_backend("nothing", status="online")
    cloud.control.set_backend("sandbox_ideal", status="offline")
    assert code(cloud.submit()) == (400, 1004)


def test_backends_of_your_own(cloud, fast):
    cloud.control.add_backend("ibm_example", qubits=5, basis_gates=["ecr", "rz", "sx", "x"])
    shown = {one["name"]: one for one in cloud("GET", "/backends?include_mocks=true").json()["devices"]}
    assert shown["ibm_example"]["qubits"] == 5
    assert shown["mock_example"]["class"] == "mock"
    configuration = cloud("GET", "/backends/ibm_example/configuration").json()
    assert configuration["basis_gates"] == ["ecr", "rz", "sx", "x"]
    assert [1, 0] in next(gate for gate in configuration["gates"] if gate["name"] == "ecr")["coupling_map"]
    properties = cloud("GET", "/backends/ibm_example/properties").json()
    assert {gate["gate"] for gate in properties["gates"]} == {"ecr", "rz", "sx", "x"}
    assert cloud.control.wait_job(cloud.job_id(backend="ibm_example"))["status"] == "Completed"
    fast.reset()
    with pytest.raises(ControlError, match="no backend"):
        fast.control.set_backend("mock_example", status="online")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "sandbox_ideal"},
        {"name": "other_ideal"},
        {"name": "mock_example"},
        {"name": "example"},
        {"name": "ibm_example", "qubits": 28},
        {"name": "ibm_example", "qubits": 0},
        {"name": "ibm_example", "qubits": True},
        {"name": "ibm_example", "basis_gates": ["nothing"]},
    ],
)
def test_backends_of_your_own_are_checked(qruntime_sandbox, fields):
    with pytest.raises(ControlError):
        qruntime_sandbox.control.add_backend(**fields)


def test_reset_leaves_nothing(cloud, fast):
    cloud.job_id()
    cloud("POST", "/sessions", json={"mode": "batch"})
    control = fast.control
    control.add_fault(status=500, times=None)
    control.set_option("websocket", False)
    control.set_usage(consumed=5, limit=6)
    control.hold()
    url, crn, key = fast.url, fast.crn, fast.api_key
    fast.reset()
    assert (fast.url, fast.crn) == (url, crn)
    assert fast.api_key != key
    assert (control.jobs(), control.sessions(), control.journal(), control.faults()) == ([], [], [], [])
    assert control.usage()["usage_consumed_seconds"] == 0
    assert code(cloud("GET", "/jobs")) == (401, 1201)


def test_control_over_http_needs_the_token(qruntime_sandbox, monkeypatch):
    url = f"{qruntime_sandbox.url}/_control/jobs"
    for token in ({}, {"x-sandbox-token": ""}, {"x-sandbox-token": "guessed"}):
        headers = {"content-type": "application/json", **token}
        assert httpx.post(url, content=b"{}", headers=headers, trust_env=False).status_code == 403
    with pytest.raises(ControlError, match="token"):
        Control.connect(qruntime_sandbox.url, token="guessed").jobs()
    assert Control.connect(qruntime_sandbox.url, token=qruntime_sandbox.control_token).jobs() == []
    monkeypatch.setenv("QRUNTIME_SANDBOX_TOKEN", "other")
    with pytest.raises(ControlError, match="token"):
        Control.connect(qruntime_sandbox.url).jobs()


def test_the_token_is_for_the_user_alone_and_goes_with_the_server(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(physics=False) as sandbox:
        (folder,) = tmp_path.iterdir()
        (file,) = folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() == sandbox.control_token
        token = sandbox.control_token
        sandbox.reset()
        assert sandbox.control_token == token
        assert Control.connect(sandbox.url).jobs() == []
        # A folder that others may look into is not trusted.
        folder.chmod(0o755)
        with pytest.raises(ControlError, match="token"):
            Control.connect(sandbox.url).jobs()
        folder.chmod(0o700)
    assert list(folder.iterdir()) == []


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("QRUNTIME_SANDBOX_TOKEN", "shared")
    with Sandbox(physics=False) as sandbox:
        assert sandbox.control_token == "shared"
        monkeypatch.delenv("QRUNTIME_SANDBOX_TOKEN")
        assert Control.connect(sandbox.url, token="shared").jobs() == []


@pytest.mark.parametrize(("path", "limit"), [("/_control/jobs", 16 << 20), ("/identity/token", 1 << 16)])
def test_bodies_are_limited(qruntime_sandbox, path, limit):
    headers = {"content-type": "application/json", "x-sandbox-token": qruntime_sandbox.control_token}
    answer = httpx.post(f"{qruntime_sandbox.url}{path}", content=b" " * (limit + 1), headers=headers, trust_env=False)
    assert answer.status_code == 413


def test_the_journal_holds_no_secrets(cloud):
    key, token = cloud.key, cloud.headers["Authorization"].removeprefix("Bearer ")
    for secret in (key, token, "an unknown secret"):
        for name in ("apikey", "access_token", "api%5Fkey", "Authorization"):
            cloud("GET", "/jobs", loose=True, params={name: secret})
    for secret in (key, token):
        escaped = "".join(f"%{byte:02X}" for byte in secret.encode())
        cloud("GET", "/jobs", loose=True, params={"search": secret})
        for text in (secret, escaped):
            cloud.http.get(f"{cloud.sandbox.base_url()}/jobs/{text}", headers=cloud.headers)
            cloud.http.get(f"{cloud.sandbox.base_url()}/jobs?x={text}&limit=5", headers=cloud.headers)
    shown = repr([(one["path"], unquote_plus(one["path"])) for one in cloud.control.journal()])
    for secret in (key, token, "an unknown secret"):
        assert secret not in shown
    assert "limit=5" in shown
