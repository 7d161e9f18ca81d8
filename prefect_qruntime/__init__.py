"""Prefect 3 integration for IBM's Qiskit Runtime REST API (IBM Quantum Compute Service).

Run quantum jobs from flows so that no job is bought twice automatically, nothing is lost, and Cancel cancels.

The imports under `TYPE_CHECKING` are the one list of public names: type checkers read them there, and at run time
each name is imported by that same list on first use. This module is also loaded by pytest (for the sandbox's
fixtures) and by Prefect's collection loader, which need none of them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prefect_qruntime import hooks as hooks
    from prefect_qruntime.admission.budget import Budget as Budget
    from prefect_qruntime.admission.policy import QuantumRuntimePolicy as QuantumRuntimePolicy
    from prefect_qruntime.client import QuantumRuntimeClient as QuantumRuntimeClient
    from prefect_qruntime.client.cost_core import CostEstimate as CostEstimate
    from prefect_qruntime.client.programs.agreement import RouteComparison as RouteComparison
    from prefect_qruntime.client.results.job_result import JobResult as JobResult
    from prefect_qruntime.credentials import (
        QuantumRuntimeCredentials as QuantumRuntimeCredentials,
        aload_credentials as aload_credentials,
        load_credentials as load_credentials,
    )
    from prefect_qruntime.errors import (
        ApprovalDenied as ApprovalDenied,
        AuthenticationError as AuthenticationError,
        BackendOffline as BackendOffline,
        BudgetExhausted as BudgetExhausted,
        InvalidInput as InvalidInput,
        JobCancelled as JobCancelled,
        JobFailed as JobFailed,
        JobRanTooLong as JobRanTooLong,
        JobTimeout as JobTimeout,
        NotFound as NotFound,
        PermissionDenied as PermissionDenied,
        PolicyRefused as PolicyRefused,
        QuantumRuntimeError as QuantumRuntimeError,
        RateLimited as RateLimited,
        ResultNotReady as ResultNotReady,
        ServiceUnavailable as ServiceUnavailable,
        SessionClosed as SessionClosed,
        SubmissionUncertain as SubmissionUncertain,
        UsageLimitReached as UsageLimitReached,
    )
    from prefect_qruntime.flow_parameters import (
        check_flow_parameters as check_flow_parameters,
        circuit_text as circuit_text,
    )
    from prefect_qruntime.jobs import (
        QuantumRuntimeJob as QuantumRuntimeJob,
        QuantumRuntimeJobRun as QuantumRuntimeJobRun,
        arun_job as arun_job,
        run_job as run_job,
    )
    from prefect_qruntime.models import (
        Backend as Backend,
        InstanceReport as InstanceReport,
        Job as Job,
        JobRef as JobRef,
        JobStatus as JobStatus,
        Provenance as Provenance,
        Session as Session,
        SessionRef as SessionRef,
        Usage as Usage,
    )
    from prefect_qruntime.sessions import (
        aruntime_session as aruntime_session,
        runtime_session as runtime_session,
    )
    from prefect_qruntime.settings import QuantumRuntimeSettings as QuantumRuntimeSettings
    from prefect_qruntime.suspend.suspend import (
        aleave_to_watcher as aleave_to_watcher,
        asuspend_until_done as asuspend_until_done,
        leave_to_watcher as leave_to_watcher,
        suspend_until_done as suspend_until_done,
    )
    from prefect_qruntime.tasks.backends import (
        aauthenticate as aauthenticate,
        aget_usage as aget_usage,
        alist_backends as alist_backends,
        aselect_backend as aselect_backend,
        authenticate as authenticate,
        get_usage as get_usage,
        list_backends as list_backends,
        select_backend as select_backend,
    )
    from prefect_qruntime.tasks.compare import (
        acompare_routes as acompare_routes,
        compare_routes as compare_routes,
    )
    from prefect_qruntime.tasks.estimate import (
        aestimate_cost as aestimate_cost,
        arequire_approval as arequire_approval,
        estimate_cost as estimate_cost,
        require_approval as require_approval,
    )
    from prefect_qruntime.tasks.jobs import (
        acancel_job as acancel_job,
        afetch_results as afetch_results,
        await_for_completion as await_for_completion,
        cancel_job as cancel_job,
        fetch_results as fetch_results,
        wait_for_completion as wait_for_completion,
    )
    from prefect_qruntime.tasks.sessions import (
        aclose_session as aclose_session,
        aopen_session as aopen_session,
        close_session as close_session,
        open_session as open_session,
    )
    from prefect_qruntime.tasks.submit import (
        asubmit_job as asubmit_job,
        submit_job as submit_job,
    )


@cache
def _public_names() -> dict[str, tuple[str, str | None]]:
    """Each public name with its module, and its name there (None for a module itself)."""
    tree = ast.parse(inspect.getsource(sys.modules[__name__]))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found: dict[str, tuple[str, str | None]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None  # noqa: S101, PT018
        for alias in node.names:
            is_module = node.module == __name__
            found[alias.name] = (f"{node.module}.{alias.name}", None) if is_module else (node.module, alias.name)
    return found


if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            return sorted([*_public_names(), "__version__"])
        if name.startswith("__") or name not in _public_names():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _public_names()[name]
        value = importlib.import_module(module)
        if attribute is not None:
            value = getattr(value, attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_public_names()})
