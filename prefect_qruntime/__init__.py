"""Prefect 3 integration for IBM's Qiskit Runtime REST API (IBM Quantum Compute Service).

Run quantum jobs from flows so that no job is bought twice, nothing is lost, and Cancel cancels.
"""

from prefect_qruntime import hooks
from prefect_qruntime._version import __version__
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials, aload_credentials, load_credentials
from prefect_qruntime.errors import (
    AuthenticationError,
    BudgetExhausted,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    JobTimeout,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ResultNotReady,
    ServiceUnavailable,
    SessionClosed,
    SubmissionUncertain,
    UsageLimitReached,
)
from prefect_qruntime.jobs import arun_job, run_job
from prefect_qruntime.models import (
    Backend,
    InstanceReport,
    Job,
    JobRef,
    JobStatus,
    Session,
    SessionRef,
    Usage,
)
from prefect_qruntime.redact import install as _install_redaction
from prefect_qruntime.sessions import aruntime_session, runtime_session
from prefect_qruntime.settings import QuantumRuntimeSettings
from prefect_qruntime.tasks import (
    aauthenticate,
    acancel_job,
    aclose_session,
    afetch_results,
    aget_usage,
    alist_backends,
    aopen_session,
    aselect_backend,
    asubmit_job,
    authenticate,
    await_for_completion,
    cancel_job,
    close_session,
    fetch_results,
    get_usage,
    list_backends,
    open_session,
    select_backend,
    submit_job,
    wait_for_completion,
)

_install_redaction()

__all__ = [
    "AuthenticationError",
    "Backend",
    "BudgetExhausted",
    "InstanceReport",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobRanTooLong",
    "JobRef",
    "JobResult",
    "JobStatus",
    "JobTimeout",
    "NotFound",
    "PermissionDenied",
    "QuantumRuntimeClient",
    "QuantumRuntimeCredentials",
    "QuantumRuntimeError",
    "QuantumRuntimeSettings",
    "RateLimited",
    "ResultNotReady",
    "ServiceUnavailable",
    "Session",
    "SessionClosed",
    "SessionRef",
    "SubmissionUncertain",
    "Usage",
    "UsageLimitReached",
    "__version__",
    "aauthenticate",
    "acancel_job",
    "aclose_session",
    "afetch_results",
    "aget_usage",
    "alist_backends",
    "aload_credentials",
    "aopen_session",
    "arun_job",
    "aruntime_session",
    "aselect_backend",
    "asubmit_job",
    "authenticate",
    "await_for_completion",
    "cancel_job",
    "close_session",
    "fetch_results",
    "get_usage",
    "hooks",
    "list_backends",
    "load_credentials",
    "open_session",
    "run_job",
    "runtime_session",
    "select_backend",
    "submit_job",
    "wait_for_completion",
]
