"""Sessions and batches of the official client."""

import pytest
from qiskit_ibm_runtime import Batch, EstimatorV2, RuntimeInvalidStateError, SamplerV2, Session
from qiskit_ibm_runtime.exceptions import IBMRuntimeError

from .circuits import bell, isa, observables


@pytest.fixture
def circuit(noisy):
    return isa(bell(), noisy)


@pytest.mark.parametrize(("kind", "mode"), [(Session, "dedicated"), (Batch, "batch")])
def test_open_run_close(noisy, control, circuit, kind, mode):
    state = isa(bell(measured=False), noisy)
    with kind(backend=noisy, max_time="10m") as session:
        details = session.details()
        assert (details["mode"], details["state"], details["max_time"]) == (mode, "open", 600)
        assert session.status() == "Pending"
        jobs = [
            SamplerV2(mode=session).run([circuit], shots=10),
            EstimatorV2(mode=session).run([(state, observables(state, "ZZ"))]),
        ]
        assert 0.9 < jobs[1].result()[0].data.evs[0] < 1.1
        assert jobs[0].result()[0].data.meas.num_shots == 10
        assert {job.session_id for job in jobs} == {session.session_id}
        assert session.status() == "In progress, accepting new jobs"
    assert session.status() == "Closed"
    assert session.usage() > 0
    assert control.open_sessions() == []
    assert len(control.jobs(session_id=session.session_id)) == 2


def test_close_lets_queued_jobs_run(noisy, control, circuit):
    control.hold()
    with Session(backend=noisy) as session:
        jobs = [SamplerV2(mode=session).run([circuit], shots=10) for _ in range(2)]
    assert session.details()["accepting_jobs"] is False
    control.release()
    assert [job.result()[0].data.meas.num_shots for job in jobs] == [10, 10]
    assert session.status() == "Closed"


def test_cancel_drops_queued_jobs(noisy, control, circuit):
    control.hold()
    session = Session(backend=noisy)
    job = SamplerV2(mode=session).run([circuit], shots=10)
    session.cancel()
    with pytest.raises(RuntimeInvalidStateError, match="cancelled"):
        job.result()
    assert session.status() == "Closed"
    with pytest.raises(IBMRuntimeError, match="closed"):
        SamplerV2(mode=session).run([circuit])


def test_a_session_found_again(noisy, service, control, circuit):
    session = Session(backend=noisy)
    again = Session.from_id(session.session_id, service)
    assert SamplerV2(mode=again).run([circuit], shots=3).result()[0].data.meas.num_shots == 3
    assert len(service.jobs(session_id=session.session_id)) == 1
    again.close()
    assert session.status() == "Closed"
    with pytest.raises(IBMRuntimeError, match="1217"):
        SamplerV2(mode=session).run([circuit])


def test_a_plan_without_sessions(noisy, control):
    control.set_option("allow_dedicated", False)
    with pytest.raises(Exception, match="1352"):
        Session(backend=noisy)
    with Batch(backend=noisy) as batch:
        assert batch.details()["mode"] == "batch"
