"""Prefect 3 integration for IBM's Qiskit Runtime REST API (IBM Quantum Compute Service).

Run quantum jobs from flows so that no job is bought twice, nothing is lost, and Cancel cancels.

Names are imported on first use: this module is also loaded by pytest (for the sandbox's fixtures) and by
Prefect's collection loader, where importing everything would cost time for nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefect_qruntime._version import __version__

if TYPE_CHECKING:
    from prefect_qruntime import (
        hooks,
    )
    from prefect_qruntime.budget import (
        Budget,
    )
    from prefect_qruntime.client import (
        QuantumRuntimeClient,
    )
    from prefect_qruntime.client.results import (
        JobResult,
    )
    from prefect_qruntime.credentials import (
        QuantumRuntimeCredentials,
        aload_credentials,
        load_credentials,
    )
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
    from prefect_qruntime.flow_parameters import (
        check_flow_parameters,
    )
    from prefect_qruntime.jobs import (
        arun_job,
        run_job,
    )
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
    from prefect_qruntime.sessions import (
        aruntime_session,
        runtime_session,
    )
    from prefect_qruntime.settings import (
        QuantumRuntimeSettings,
    )
    from prefect_qruntime.suspend import (
        aleave_to_watcher,
        asuspend_until_done,
        leave_to_watcher,
        suspend_until_done,
    )
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

__all__ = [
    "AuthenticationError",
    "Backend",
    "Budget",
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
    "QuantumRuntimeJob",
    "QuantumRuntimeJobRun",
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
    "aleave_to_watcher",
    "alist_backends",
    "aload_credentials",
    "aopen_session",
    "arun_job",
    "aruntime_session",
    "aselect_backend",
    "asubmit_job",
    "asuspend_until_done",
    "authenticate",
    "await_for_completion",
    "cancel_job",
    "check_flow_parameters",
    "close_session",
    "fetch_results",
    "get_usage",
    "hooks",
    "leave_to_watcher",
    "list_backends",
    "load_credentials",
    "open_session",
    "run_job",
    "runtime_session",
    "select_backend",
    "submit_job",
    "suspend_until_done",
    "wait_for_completion",
]

_HOMES = {
    ".budget": ("Budget",),
    ".client": ("QuantumRuntimeClient",),
    ".client.results": ("JobResult",),
    ".credentials": (
        "QuantumRuntimeCredentials",
        "aload_credentials",
        "load_credentials",
    ),
    ".errors": (
        "AuthenticationError",
        "BudgetExhausted",
        "InvalidInput",
        "JobCancelled",
        "JobFailed",
        "JobRanTooLong",
        "JobTimeout",
        "NotFound",
        "PermissionDenied",
        "QuantumRuntimeError",
        "RateLimited",
        "ResultNotReady",
        "ServiceUnavailable",
        "SessionClosed",
        "SubmissionUncertain",
        "UsageLimitReached",
    ),
    ".flow_parameters": ("check_flow_parameters",),
    ".jobs": (
        "QuantumRuntimeJob",
        "QuantumRuntimeJobRun",
        "arun_job",
        "run_job",
    ),
    ".models": (
        "Backend",
        "InstanceReport",
        "Job",
        "JobRef",
        "JobStatus",
        "Session",
        "SessionRef",
        "Usage",
    ),
    ".sessions": (
        "aruntime_session",
        "runtime_session",
    ),
    ".settings": ("QuantumRuntimeSettings",),
    ".suspend": (
        "aleave_to_watcher",
        "asuspend_until_done",
        "leave_to_watcher",
        "suspend_until_done",
    ),
    ".tasks": (
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
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "hooks":
        return importlib.import_module(".hooks", __name__)
    try:
        module = importlib.import_module(_HOME_OF[name], __name__)
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
