"""The tasks, one file per verb: each as a pair, `x` for sync flows and `ax` for async flows.

Submit, wait and fetch are separate task runs. `submit_job` has no retries: run again, it attaches to the
job it submitted. A retry of `wait_for_completion` or `fetch_results` never submits.
"""

from prefect_qruntime.tasks.backends import (
    aauthenticate,
    aget_usage,
    alist_backends,
    aselect_backend,
    authenticate,
    get_usage,
    list_backends,
    select_backend,
)
from prefect_qruntime.tasks.cancel import acancel_job, cancel_job
from prefect_qruntime.tasks.compare import acompare_routes, compare_routes
from prefect_qruntime.tasks.estimate import aestimate_cost, arequire_approval, estimate_cost, require_approval
from prefect_qruntime.tasks.fetch import afetch_results, fetch_results
from prefect_qruntime.tasks.sessions import aclose_session, aopen_session, close_session, open_session
from prefect_qruntime.tasks.submit import asubmit_job, submit_job
from prefect_qruntime.tasks.wait import await_for_completion, wait_for_completion

__all__ = [
    "aauthenticate",
    "acancel_job",
    "aclose_session",
    "acompare_routes",
    "aestimate_cost",
    "afetch_results",
    "aget_usage",
    "alist_backends",
    "aopen_session",
    "arequire_approval",
    "aselect_backend",
    "asubmit_job",
    "authenticate",
    "await_for_completion",
    "cancel_job",
    "close_session",
    "compare_routes",
    "estimate_cost",
    "fetch_results",
    "get_usage",
    "list_backends",
    "open_session",
    "require_approval",
    "select_backend",
    "submit_job",
    "wait_for_completion",
]
