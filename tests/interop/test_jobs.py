"""A job's life as the official client tells it."""

from datetime import datetime, timedelta

import pytest
from qiskit_ibm_runtime import (
    RuntimeInvalidStateError,
    RuntimeJobMaxTimeoutError,
    RuntimeJobNotFound,
    SamplerV2,
)
from qiskit_ibm_runtime.exceptions import IBMRuntimeError

from .circuits import bell, isa


@pytest.fixture
def submit(ideal):
    circuit = isa(bell(), ideal)

    def run(*tags, **environment):
        sampler = SamplerV2(mode=ideal)
        sampler.options.environment.job_tags = list(tags) or None
        for name, value in environment.items():
            setattr(sampler.options if name == "max_execution_time" else sampler.options.environment, name, value)
        return sampler.run([circuit], shots=10)

    return run


def test_status_from_queued_to_done(submit, control):
    control.hold()
    job = submit()
    assert job.status() == "QUEUED"
    assert not job.in_final_state()
    control.release()
    job.wait_for_final_state(timeout=20)
    assert job.status() == "DONE"
    assert job.done()
    assert job.logs().endswith("Completed\n")


def test_usage_and_metrics(submit, control):
    control.set_times(queue_time=0, run_time=0.2)
    job = submit()
    job.result()
    assert job.usage() == pytest.approx(0.2)
    metrics = job.metrics()
    assert set(metrics["timestamps"]) == {"created", "running", "finished"}
    assert metrics["usage"] == {"qpu_charge_time_seconds": pytest.approx(0.2), "status": "complete"}
    assert "qiskit_ibm_runtime" in metrics["caller"]


def test_usage_counts_only_when_it_is_final(submit, control):
    control.set_option("usage_lag", 600)
    control.set_times(queue_time=0, run_time=0.2)
    job = submit()
    job.result()
    assert job.usage() == 0
    assert job.usage(partial=True) >= 0


def test_cancel(submit, control):
    control.hold()
    job = submit()
    job.cancel()
    assert job.cancelled()
    assert control.job(job.job_id())["status"] == "Cancelled"
    with pytest.raises(RuntimeInvalidStateError, match="cancelled"):
        job.result()
    with pytest.raises(RuntimeInvalidStateError, match="cannot be cancelled"):
        job.cancel()


def test_ran_too_long(submit, control):
    control.set_times(queue_time=0, run_time=30)
    control.set_clock_scale(100)
    with pytest.raises(RuntimeJobMaxTimeoutError, match="1305"):
        submit(max_execution_time=2).result()


def test_tags(submit, service):
    job = submit("blue", "green")
    assert sorted(job.tags) == ["blue", "green"]
    assert job.update_tags(["red"]) == ["red"]
    assert service.job(job.job_id()).tags == ["red"]
    assert service.jobs(job_tags=["red"]) != []
    assert service.jobs(job_tags=["blue"]) == []


def test_lists_and_their_filters(submit, service, control):
    start = datetime.now().astimezone()
    ids = [submit("even" if n % 2 == 0 else "odd", "all").job_id() for n in range(5)]
    control.wait_job(ids[-1])
    assert [job.job_id() for job in service.jobs()] == ids[::-1]
    assert [job.job_id() for job in service.jobs(limit=2, skip=1)] == ids[3:1:-1]
    assert [job.job_id() for job in service.jobs(job_tags=["even", "all"], descending=False)] == ids[::2]
    assert len(service.jobs(limit=None, program_id="sampler", backend_name="sandbox_ideal")) == 5
    assert service.jobs(program_id="estimator") == []
    assert service.jobs(pending=True) == []
    assert len(service.jobs(created_after=start - timedelta(seconds=5))) == 5
    assert service.jobs(created_before=start - timedelta(seconds=5)) == []


def test_a_job_found_again(submit, service):
    made = submit()
    counts = made.result()[0].data.meas.get_counts()
    job = service.job(made.job_id())
    assert job.primitive_id == "sampler"
    assert job.backend().name == "sandbox_ideal"
    assert job.creation_date.tzinfo is not None
    assert job.result()[0].data.meas.get_counts() == counts
    assert job.inputs["pubs"][0][0].num_qubits == made.inputs["pubs"][0][0].num_qubits
    assert job.inputs["version"] == 2


def test_delete(submit, service):
    job = submit()
    job.result()
    service.delete_job(job.job_id())
    with pytest.raises(RuntimeJobNotFound, match="Job not found"):
        service.job(job.job_id())


def test_private_results_are_read_once(submit, service):
    job = submit(private=True)
    assert job.result()[0].data.meas.num_shots == 10
    again = service.job(job.job_id())
    assert again.private
    # As in IBM's own integration test: there is nothing any more, and no error.
    assert not again.result()


def test_the_usage_limit_refuses_jobs(submit, control):
    control.set_usage(consumed=600, limit=600)
    with pytest.warns(UserWarning, match="usage limit"), pytest.raises(IBMRuntimeError, match="409"):
        submit()
