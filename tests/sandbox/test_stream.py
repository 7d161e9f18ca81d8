"""The websocket of the legacy dialect."""

import asyncio
import json
import threading

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from tests.support.sandbox_api import Api

BELL2 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; h q[0]; cx q[0],q[1]; measure q -> c;'


def opened(api: Api, job_id: str, **options):
    url = api.sandbox.base_url(api.dialect).replace("http://", "ws://")
    headers = {"max_size": 2**24, "open_timeout": 5, "additional_headers": api.headers, **options}
    return connect(f"{url}/stream/jobs/{job_id}", proxy=None, **headers)


def submit(api: Api) -> str:
    return api.job_id(params={"circuits": [BELL2], "shots": 100})


def refused(api: Api, job_id: str, **headers) -> int:
    with pytest.raises(InvalidStatus) as caught:
        opened(api, job_id, additional_headers={**api.headers, **headers})
    return caught.value.response.status_code


def test_acknowledgement_result_and_close(legacy):
    legacy.control.hold()
    job_id = submit(legacy)
    with opened(legacy, job_id) as socket:
        assert socket.recv(timeout=5) == f"Listening to results for job: {job_id}\n"
        legacy.control.release()
        result = json.loads(socket.recv(timeout=10))
        with pytest.raises(ConnectionClosedOK):
            socket.recv(timeout=5)
        assert socket.close_code == 1000
    assert legacy.status(job_id) == "Completed"
    assert result == legacy("GET", f"/jobs/{job_id}/results").json()
    entry = legacy.control.journal("WS", "/stream/jobs/*")[-1]
    assert (entry["status"], entry["path"]) == (101, f"/stream/jobs/{job_id}")


def test_finished_job_gets_one_message(legacy, fast):
    job_id = submit(legacy)
    legacy.control.wait_job(job_id)
    with opened(legacy, job_id) as socket:
        assert socket.recv(timeout=5) == (
            f"Job is not running. Job status is 'Completed', reason is ''.  Check '/jobs/{job_id}/results' for results"
        )
        with pytest.raises(ConnectionClosedOK):
            socket.recv(timeout=5)


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_job_without_a_result_closes_without_one(legacy, end):
    if end == "fail":
        legacy.control.script_job(reason="no")
    legacy.control.hold()
    job_id = submit(legacy)
    with opened(legacy, job_id) as socket:
        socket.recv(timeout=5)
        if end == "fail":
            legacy.control.release()
        else:
            legacy("POST", f"/jobs/{job_id}/cancel")
        with pytest.raises(ConnectionClosedOK):
            socket.recv(timeout=5)


def test_handshake_checks_headers_and_job(make, legacy):
    job_id = submit(legacy)
    assert refused(legacy, job_id, Authorization="Bearer old") == 401
    assert refused(legacy, job_id, **{"Service-CRN": "crn:v1:a:b:c:d:e:f::"}) == 404
    assert refused(legacy, job_id, **{"x-qx-client-application": "other"}) == 400
    assert refused(legacy, "unknown") == 404
    assert refused(make("legacy", user=1), job_id) == 403
    legacy.control.revoke_tokens()
    assert refused(legacy, job_id) == 401
    assert [one["status"] for one in legacy.control.journal("WS")] == [401, 404, 400, 404, 403, 401]


def test_socket_can_be_switched_off_and_offered_on_cloud(cloud, legacy):
    cloud.control.hold()
    job_id = cloud.job_id()
    assert refused(cloud, job_id) == 404
    cloud.control.set_option("websocket", "both")
    with opened(cloud, job_id) as socket:
        assert job_id in socket.recv(timeout=5)
        cloud.control.release()
        assert "results" in json.loads(socket.recv(timeout=10))
    cloud.control.set_option("websocket", False)
    assert refused(legacy, job_id) == 404


def test_private_result_is_left_for_rest(legacy):
    legacy.control.hold()
    job_id = legacy.job_id(params={"circuits": [BELL2]}, private=True)
    with opened(legacy, job_id) as socket:
        socket.recv(timeout=5)
        legacy.control.release()
        with pytest.raises(ConnectionClosedOK):
            socket.recv(timeout=10)
    assert "quasi_dists" in legacy("GET", f"/jobs/{job_id}/results").json()


def test_socket_may_end_before_the_status_does(legacy, fast):
    legacy.control.set_option("ws_lead", 1000)
    legacy.control.hold()
    job_id = submit(legacy)
    with opened(legacy, job_id) as socket:
        socket.recv(timeout=5)
        legacy.control.release()
        assert "quasi_dists" in json.loads(socket.recv(timeout=10))
        with pytest.raises(ConnectionClosedOK):
            socket.recv(timeout=5)
    assert legacy.status(job_id) == "Running"
    legacy.control.set_clock_scale(10_000)
    assert legacy.control.wait_job(job_id)["status"] == "Completed"


def test_fault_closes_with_a_code(legacy):
    legacy.control.hold()
    job_id = submit(legacy)
    legacy.control.add_fault("WS", "/stream/jobs/*", ws_close=1011)
    with opened(legacy, job_id) as socket:
        assert socket.recv(timeout=5).startswith("Listening")
        with pytest.raises(ConnectionClosedError) as caught:
            socket.recv(timeout=5)
    assert caught.value.rcvd.code == 1011


def test_fault_breaks_the_connection(legacy):
    legacy.control.hold()
    job_id = submit(legacy)
    legacy.control.add_fault("WS", drop="after")
    with opened(legacy, job_id) as socket:
        with pytest.raises(ConnectionClosed) as caught:
            list(socket)
        assert caught.value.rcvd is None
    legacy.control.add_fault("WS", drop="before")
    with pytest.raises(Exception, match=r"did not receive|connection|EOF|reset") as dropped:
        opened(legacy, job_id)
    assert not isinstance(dropped.value, InvalidStatus)


def test_fault_refuses_the_handshake(legacy):
    job_id = submit(legacy)
    legacy.control.add_fault("WS", status=426)
    assert refused(legacy, job_id) == 426


def test_silent_socket_answers_no_ping(legacy):
    legacy.control.hold()
    job_id = submit(legacy)
    with opened(legacy, job_id, ping_interval=None) as socket:
        socket.recv(timeout=5)
        assert socket.ping().wait(20), "an ordinary socket answers pings"
    legacy.control.add_fault("WS", ws_silence=True)
    with opened(legacy, job_id, ping_interval=None, close_timeout=0.1) as socket:
        assert socket.recv(timeout=5).startswith("Listening")
        pong = socket.ping()
        legacy.control.finish(job_id)
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.5)
        assert not pong.is_set()


def test_many_sockets_are_told_at_once(legacy, fast):
    legacy.control.hold()
    ids = [submit(legacy) for _ in range(20)]
    sockets = [opened(legacy, job_id) for job_id in ids]
    for socket in sockets:
        socket.recv(timeout=5)
    legacy.control.release()
    for socket in sockets:
        assert "quasi_dists" in json.loads(socket.recv(timeout=20))
        socket.close()


def test_client_that_leaves_is_forgotten(legacy):
    legacy.control.hold()
    job_id = submit(legacy)
    opened(legacy, job_id).close()
    service = legacy.sandbox._service
    gone = threading.Event()

    def look() -> None:
        if not service.jobs[job_id].stream_waiters:
            gone.set()
        else:
            asyncio.get_running_loop().call_later(0.01, look)

    legacy.sandbox._loop.call_soon_threadsafe(look)
    assert gone.wait(60)
