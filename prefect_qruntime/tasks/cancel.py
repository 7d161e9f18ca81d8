"""Cancel a job: the tasks and their bodies."""

from __future__ import annotations

from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.tasks.arguments import JobLike, as_job
from prefect_qruntime.tasks.decorators import blocking, in_flow, repeats

__all__ = ["acancel_job", "cancel_job"]


@in_flow
@repeats("cancel job", "cancel {job}")
async def acancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Cancel a job. If it is over already it is left as it is, without an error.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The job as the service shows it afterwards.
    """
    client = credentials.get_client()
    done = await client.cancel(as_job(job).id)
    word = "was over already" if done.status in (JobStatus.COMPLETED, JobStatus.FAILED) else "is cancelled"
    notifications.log_to_run(f"job {done.id} {word} (state {done.raw_status!r})")
    await notifications.job_cancelled(done)
    notifications.follow_usage(client, done)
    return done


cancel_job = blocking(acancel_job)
"""As `acancel_job`, for sync flows."""
