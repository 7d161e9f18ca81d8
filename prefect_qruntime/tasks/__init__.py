"""The tasks: each as a pair, `x` for sync flows and `ax` for async flows.

Submit, wait and fetch are separate task runs. `submit_job` has no retries: run again, it attaches to the
job it bought. A retry of `wait_for_completion` or `fetch_results` never submits.

The async twin of each task takes the same parameters, returns and raises the same.
"""

from prefect_qruntime.tasks.instance import (
    aauthenticate,
    aget_usage,
    alist_backends,
    aselect_backend,
    authenticate,
    get_usage,
    list_backends,
    select_backend,
)
from prefect_qruntime.tasks.jobs import (
    acancel_job,
    afetch_results,
    asubmit_job,
    await_for_completion,
    cancel_job,
    fetch_results,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.tasks.sessions import aclose_session, aopen_session, close_session, open_session

__all__ = [
    "aauthenticate",
    "acancel_job",
    "aclose_session",
    "afetch_results",
    "aget_usage",
    "alist_backends",
    "aopen_session",
    "aselect_backend",
    "asubmit_job",
    "authenticate",
    "await_for_completion",
    "cancel_job",
    "close_session",
    "fetch_results",
    "get_usage",
    "list_backends",
    "open_session",
    "select_backend",
    "submit_job",
    "wait_for_completion",
]
