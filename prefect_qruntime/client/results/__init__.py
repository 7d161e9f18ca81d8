"""Results of every program, in one form."""

from prefect_qruntime.client.results.job_result import JobResult

__all__ = ["JobResult"]
