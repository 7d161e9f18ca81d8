"""A table of the instance's backends: status, queue and errors. Deploy it on a schedule, for instance nightly.

Run it by hand (`python flows/backend_report.py`). With no credentials block named it reads the embedded
sandbox. It reads only and costs nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect_qruntime.flows.shared import instance
from pydantic import Field

from prefect_qruntime import Backend, get_usage, hooks, list_backends


def backend_row(backend: Backend) -> dict[str, Any]:
    """One row of the table; values that the service does not give are None."""
    return {
        "backend": backend.name,
        "status": backend.status,
        "reason": backend.status_reason,
        "queue": backend.queue_length,
        "wait_seconds": backend.wait_time_seconds,
        "qubits": backend.num_qubits,
        "two_qubit_error": backend.two_qubit_error,
        "readout_error": backend.readout_error,
        "clops": backend.clops,
        "simulator": backend.simulator,
    }


@flow(name="backend-report", **hooks.cancel)
def backend_report(
    credentials_block: str | None = None,
    min_qubits: Annotated[int | None, Field(ge=1, le=100_000)] = None,
    dialect: Literal["cloud", "legacy"] = "cloud",
) -> list[dict[str, Any]]:
    """Report the backends of an instance, those that take jobs first and the shortest queue on top.

    Args:
        credentials_block: Name of a Quantum Runtime Credentials block; empty for the embedded sandbox.
        min_qubits: Only backends of at least this size.
        dialect: Dialect of the embedded sandbox; a block has its own.

    Returns:
        A row for each backend. Errors are probabilities, waits are seconds.
    """
    logger = get_run_logger()
    with instance(credentials_block, dialect) as credentials:
        backends = list_backends(credentials, min_qubits=min_qubits)
        usage = get_usage(credentials)

    # A queue of unknown length goes last in its group.
    backends.sort(key=lambda item: (not item.is_online, item.queue_length is None, item.queue_length or 0, item.name))
    rows = [backend_row(backend) for backend in backends]
    away = [backend for backend in backends if not backend.is_online]
    for backend in away:
        logger.warning("%s is %s: %s", backend.name, backend.status, backend.status_reason or "no reason given")
    left = "no limit set" if usage.remaining_seconds is None else f"{usage.remaining_seconds:g} s left"
    create_table_artifact(
        key="qruntime-backends",
        table=rows,
        description=(
            f"{len(rows) - len(away)} of {len(rows)} backends online; "
            f"{usage.consumed_seconds:g} QPU seconds used, {left}"
        ),
    )
    return rows


if __name__ == "__main__":
    backend_report()
