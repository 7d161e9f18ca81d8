"""IAM tokens, headers, and users who cannot see each other."""

import base64
import json
import time

import httpx
import pytest

from tests.support.sandbox_api import GRANT, code


def test_token_is_a_jwt_and_says_when_it_ends(cloud):
    before = int(time.time())
    token = cloud.login()
    assert token["expires_in"] == 3600
    assert before + 3600 <= token["expiration"] <= time.time() + 3600
    assert (token["token_type"], token["refresh_token"]) == ("Bearer", "not_supported")
    claims = json.loads(base64.urlsafe_b64decode(token["access_token"].split(".")[1] + "=="))
    assert claims["exp"] == token["expiration"]
    assert cloud.key not in token["access_token"]


def test_unknown_key_is_iam_400(qruntime_sandbox):
    form = {"grant_type": GRANT, "apikey": "nobody's"}
    answer = httpx.post(f"{qruntime_sandbox.iam_url}/identity/token", data=form, trust_env=False)
    assert answer.status_code == 400
    body = answer.json()
    assert body["errorCode"] == "BXNIM0415E"
    assert body["errorMessage"] == "Provided API key could not be found."
    assert body["context"]["requestId"]
    form = {"grant_type": "password", "apikey": qruntime_sandbox.api_key}
    answer = httpx.post(f"{qruntime_sandbox.iam_url}/identity/token", data=form, trust_env=False)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "BXNIM0137E")


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_headers_are_needed(make, dialect):
    api = make(dialect)
    assert code(api("GET", "/jobs", headers={"Authorization": None})) == (401, 1200)
    assert code(api("GET", "/jobs", headers={"Authorization": "Bearer x.y.z"})) == (401, 1201)
    assert code(api("GET", "/jobs", headers={"Service-CRN": None})) == (400, 1208)
    assert code(api("GET", "/jobs", headers={"Service-CRN": "crn:v1:a:b:c:d:e:f::"})) == (404, "not_found")
    other = api.sandbox.instances[2][1]
    assert code(api("GET", "/jobs", headers={"Service-CRN": other})) == (403, 1200)
    assert api("GET", "/jobs", headers={"Authorization": f"apikey {api.key}"}).status_code == 200


def test_legacy_wants_its_client_header(legacy):
    for value in (None, "qiskit/1.0"):
        assert code(legacy("GET", "/backends", headers={"x-qx-client-application": value})) == (400, 1208)


def test_api_version_is_checked(cloud):
    assert code(cloud("GET", "/jobs", headers={"IBM-API-Version": "1999-01-01"})) == (400, 1208)
    assert cloud("GET", "/jobs", headers={"IBM-API-Version": None}).status_code == 200


def test_token_expires_by_the_service_clock(cloud):
    cloud.control.set_option("token_lifetime", 100)
    cloud.login()
    assert cloud("GET", "/jobs").status_code == 200
    cloud.control.set_clock_scale(100_000)
    cloud.control.hold()
    job = cloud.control.now()
    while cloud.control.now() < job + 101:
        pass
    cloud.control.set_clock_scale(1)
    assert code(cloud("GET", "/jobs")) == (401, 1201)
    cloud.login()
    assert cloud("GET", "/jobs").status_code == 200


def test_a_reset_sets_the_clock_right(cloud):
    cloud.control.set_clock_scale(1_000_000)
    ahead = time.time() + 3600
    while cloud.control.now() < ahead:
        pass
    cloud.control.reset()
    before = time.time()
    assert cloud.control.now() < before + 1800, "an hour of the fast clock was over"
    assert cloud.control.now() >= before - 1


def test_revoked_tokens_answer_401(cloud):
    cloud.control.revoke_tokens()
    assert code(cloud("GET", "/backends")) == (401, 1201)
    assert cloud.control.iam_calls() == 1


def test_users_and_instances_do_not_see_each_other(make, fast):
    mine, colleague, stranger = make(user=0), make(user=1), make(user=2)
    job_id = mine.job_id(tags=["secret-tag"])
    assert mine.crn == colleague.crn != stranger.crn
    assert code(colleague("GET", f"/jobs/{job_id}")) == (403, 1200)
    assert code(stranger("GET", f"/jobs/{job_id}")) == (404, 1291)
    assert code(stranger("POST", f"/jobs/{job_id}/cancel")) == (404, 1291)
    for other in (colleague, stranger):
        assert other("GET", "/jobs").json()["count"] == 0
        assert other("GET", "/workloads").json()["total_count"] == 0
        assert other("GET", "/tags", params={"type": "job", "search": "secret"}).json() == {"tags": []}
    session = mine("POST", "/sessions", json={"mode": "batch", "backend": "sandbox_ideal"}).json()["id"]
    assert code(colleague("GET", f"/sessions/{session}")) == (404, "not_found")
    assert code(colleague.submit(session_id=session)) == (404, "not_found")
