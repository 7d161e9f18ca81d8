"""What the client learns about instance and backends."""

import pytest
from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

from .conftest import IDEAL, NOISY


def test_backends_by_name_status_and_size(service):
    assert {backend.name for backend in service.backends()} == {
        NOISY,
        IDEAL,
        "sandbox_paused",
        "sandbox_offline",
    }
    assert {backend.name for backend in service.backends(operational=True, simulator=False)} == {
        NOISY,
        "sandbox_paused",
    }
    assert [backend.name for backend in service.backends(min_num_qubits=30)] == [IDEAL]


def test_least_busy_goes_by_the_queue(service, control, connect):
    control.set_backend(NOISY, queue_length=9)
    control.set_backend(IDEAL, queue_length=3)
    assert connect().least_busy().name == IDEAL
    control.set_backend(NOISY, queue_length=1)
    assert connect().least_busy().name == NOISY
    assert connect().least_busy(min_num_qubits=30).name == IDEAL
    assert connect().least_busy(simulator=False).name == NOISY


def test_target_from_configuration_and_properties(noisy):
    target = noisy.target
    assert noisy.num_qubits == target.num_qubits == 27
    assert {"cz", "rz", "sx", "x", "measure", "reset", "if_else"} <= set(target.operation_names)
    assert (0, 1) in target["cz"]
    assert (0, 26) not in target["cz"]
    assert target["cz"][(0, 1)].error == pytest.approx(7e-3)
    assert target["cz"][(0, 1)].duration == pytest.approx(80e-9)
    assert target["measure"][(3,)].error == pytest.approx(0.01)
    assert noisy.properties().t1(0) == pytest.approx(250e-6)
    assert noisy.configuration().max_shots >= 100_000
    assert noisy.coupling_map.is_connected()


def test_all_pairs_of_the_ideal_backend_are_coupled(ideal):
    assert ideal.num_qubits == 32
    assert (0, 31) in ideal.target["cx"]
    assert ideal.configuration().simulator


def test_status_tells_queue_and_health(service, control, noisy):
    control.set_backend(NOISY, queue_length=7)
    status = noisy.status()
    assert status.operational
    assert (status.pending_jobs, status.status_msg) == (7, "active")
    assert service.backend("sandbox_paused").status().status_msg == "paused"
    assert not service.backend("sandbox_offline").status().operational


def test_usage_of_the_instance(service, control, qruntime_sandbox):
    control.set_usage(consumed=12.5, limit=600)
    usage = service.usage()
    assert usage["usage_consumed_seconds"] == 12.5
    assert usage["usage_limit_seconds"] == 600
    assert usage["usage_remaining_seconds"] == 587.5
    assert [instance["crn"] for instance in service.instances()] == [qruntime_sandbox.crn]
    assert service.active_instance() == qruntime_sandbox.crn


def test_a_wrong_key_is_refused(transport):
    # The client warns, then tries the key itself. Not by `connect`: IBM's token manager sleeps 60 s after a refusal.
    with (
        pytest.warns(UserWarning, match="Provided API key could not be found"),
        pytest.raises(IBMNotAuthorizedError, match="1200"),
    ):
        transport("no-such-key").cloud_usage()


def test_one_token_serves_a_client(service, control):
    before = control.iam_calls()
    service.usage()
    service.usage()
    assert control.iam_calls() - before <= 1
