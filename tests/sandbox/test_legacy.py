"""The legacy dialect: V1 params, sessions by the first job, old shapes."""

import pytest

from tests.support.sandbox_api import BELL, code

BELL2 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; h q[0]; cx q[0],q[1]; measure q -> c;'
STATE2 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; h q[0]; cx q[0],q[1];'
X1 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; x q[0]; measure q -> c;'
THETA = (
    'OPENQASM 3.0; include "stdgates.inc"; input float[64] theta; qubit[1] q; bit[1] c;'
    "rx(theta) q[0]; c[0] = measure q[0];"
)


def test_v1_sampler(legacy):
    params = {"circuits": [BELL2], "circuit_indices": [0], "parameter_values": [[]], "run_options": {"shots": 1000}}
    result = legacy.run(params=params)
    (dist,) = result["quasi_dists"]
    assert set(dist) == {"00", "11"}
    assert sum(dist.values()) == pytest.approx(1)
    assert abs(dist["00"] - 0.5) < 0.1
    assert result["metadata"][0]["shots"] == 1000


def test_v1_sampler_takes_one_string_and_indices(legacy):
    assert legacy.run(params={"circuits": X1})["quasi_dists"] == [{"1": 1.0}]
    result = legacy.run(params={"circuits": [X1, BELL2], "circuit_indices": [0, 0, 1], "options": {"shots": 10}})
    assert result["quasi_dists"][:2] == [{"1": 1.0}] * 2
    assert len(result["quasi_dists"]) == 3
    assert [one["shots"] for one in result["metadata"]] == [10] * 3


def test_v1_parameters(legacy):
    for name in ("parameters", "parameter_values"):
        result = legacy.run(params={"circuits": [THETA], name: [[0.0], [3.141592653589793]]})
        assert result["quasi_dists"] == [{"0": 1.0}, {"1": 1.0}]


@pytest.mark.parametrize(
    ("observables", "expected"),
    [
        ("ZZ", [1.0]),
        (["ZZ", "XX", "YY"], [1.0, 1.0, -1.0]),
        ({"ZZ": 2.0, "XX": 0.5}, [2.5]),
        ([{"ZZ": 2.0}], [2.0]),
        ([[["ZZ", 1.0], ["YY", 0.5]]], [0.5]),
    ],
)
def test_v1_estimator(legacy, observables, expected):
    result = legacy.run(program="estimator", params={"circuits": [STATE2], "observables": observables})
    assert result["values"] == pytest.approx(expected, abs=1e-9)
    assert result["metadata"][0]["variance"] == pytest.approx(0, abs=1e-9)
    assert result["metadata"][0]["shots"] == 4000


def test_v1_estimator_indices(legacy):
    params = {
        "circuits": [STATE2],
        "circuit_indices": [0, 0],
        "observables": ["ZZ", "YY"],
        "observable_indices": [1, 0],
    }
    assert legacy.run(program="estimator", params=params)["values"] == pytest.approx([-1, 1])


def test_v2_on_legacy(legacy):
    result = legacy.run(params={"version": 2, "pubs": [[BELL, None, 10]]})
    assert len(result["results"][0]["data"]["c"]["samples"]) == 10


@pytest.mark.parametrize(
    ("program", "params"),
    [
        ("sampler", {"circuits": [X1], "colour": 1}),
        ("sampler", {}),
        ("sampler", {"circuits": []}),
        ("estimator", {"circuits": [STATE2]}),
        ("sampler", {"version": 2, "circuits": [X1]}),
        ("sampler", {"circuits": [X1], "version": 3}),
    ],
)
def test_params_are_checked(legacy, program, params):
    assert code(legacy.submit(program=program, params=params)) == (400, 1208)


@pytest.mark.parametrize(
    "params",
    [
        {"circuits": ["not a circuit"]},
        {"circuits": [X1], "circuit_indices": [5]},
        {"circuits": [THETA]},
        {"circuits": [THETA], "parameter_values": [[1, 2]]},
        {"circuits": [X1], "run_options": {"shots": 0}},
        {"circuits": [STATE2]},
        {"circuits": [X1, X1], "parameter_values": [[], [], []]},
        {"circuits": [5]},
        {"circuits": [THETA], "parameter_values": ["a", {"b": 1}]},
    ],
)
def test_params_that_cannot_be_run_fail_the_job(legacy, fast, params):
    job = legacy.control.wait_job(legacy.job_id(params=params))
    assert job["status"] == "Failed"
    assert job["reason"]
    assert legacy("GET", f"/jobs/{job['id']}/results").text


@pytest.mark.parametrize("flag", [True, "True"])
def test_first_job_starts_the_session(legacy, flag):
    answer = legacy.submit(params={"circuits": X1}, start_session=flag, session_time=900).json()
    assert answer["session_id"] == answer["id"]
    session = legacy("GET", f"/sessions/{answer['id']}").json()
    assert (session["max_ttl"], session["mode"], session["backend_name"]) == (900, "dedicated", "sandbox_ideal")
    second = legacy.job_id(params={"circuits": X1}, session_id=answer["id"])
    legacy.control.wait_job(second)
    assert legacy.control.session(answer["id"])["jobs"] == [answer["id"], second]
    assert legacy("DELETE", f"/sessions/{answer['id']}/close").status_code == 204
    assert code(legacy.submit(params={"circuits": X1}, session_id=answer["id"])) == (400, 1217)


def test_close_fails_queued_jobs_and_patch_does_not(legacy):
    legacy.control.hold()
    for close, expected in (("DELETE", "Failed"), ("PATCH", "Completed")):
        session = legacy.job_id(params={"circuits": X1}, start_session=True)
        queued = legacy.job_id(params={"circuits": X1}, session_id=session)
        if close == "DELETE":
            assert legacy("DELETE", f"/sessions/{session}/close").status_code == 204
        else:
            answer = legacy("PATCH", f"/sessions/{session}", json={"accepting_jobs": False})
            assert answer.status_code == 204
            legacy.control.release()
        assert legacy.control.wait_job(queued)["status"] == expected


def test_false_flag_starts_nothing(legacy):
    answer = legacy.submit(params={"circuits": X1}, start_session="False").json()
    assert set(answer) == {"id", "backend"}


def test_ran_too_long_has_its_old_shape(legacy, fast):
    legacy.control.script_job(status="Ran too long")
    job_id = legacy.job_id(params={"circuits": X1})
    legacy.control.wait_job(job_id)
    seen = legacy("GET", f"/jobs/{job_id}").json()
    assert seen["status"] == "Cancelled - Ran too long"
    assert seen["state"] == {"status": "Cancelled", "reason": "Ran too long", "reasonCode": None}


def test_old_usage_and_metrics(legacy, fast):
    legacy.control.set_times(run_time=3)
    legacy.control.set_clock_scale(100)
    job_id = legacy.job_id(params={"circuits": X1})
    legacy.control.wait_job(job_id)
    seen = legacy("GET", f"/jobs/{job_id}").json()
    assert seen["usage"] == {"quantum_seconds": 3, "seconds": 3}
    metrics = legacy("GET", f"/jobs/{job_id}/metrics").json()
    assert metrics["bss"] == {"seconds": 3}
    assert metrics["caller"].startswith("qiskit-version-2/")


def test_both_dialects_show_the_same_jobs(cloud, legacy, fast):
    job_id = legacy.job_id(params={"circuits": X1}, tags=["old"])
    legacy.control.wait_job(job_id)
    assert cloud.status(job_id) == "Completed"
    assert cloud("GET", "/jobs", params={"tags": "old"}).json()["count"] == 1
