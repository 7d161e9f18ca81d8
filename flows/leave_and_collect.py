"""Two flows instead of a wait: one leaves a job to the watcher, the other collects its result.

Nothing waits and nothing is run twice: `leave` ends at once, `prefect-qruntime watch` reports the job's end by an
event, and the automation in `automations/collect_on_finished.yaml` starts `collect`. Deploy both.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect_qruntime.flows.shared import CircuitForm, RequestedRoute, own_fields
from pydantic import Field

from prefect_qruntime import (
    circuit_text,
    estimate_cost,
    fetch_results,
    hooks,
    leave_to_watcher,
    load_credentials,
    require_approval,
    submit_job,
    wait_for_completion,
)

__all__ = ["collect", "leave"]


@flow(name="leave", **hooks.detach)
def leave(
    credentials_block: str,
    circuit: str,
    backend: str,
    shots: Annotated[int, Field(ge=1, le=10_000_000)] = 1000,
    route: RequestedRoute | None = None,
    circuit_form: CircuitForm = "auto",
    dry_run: bool = False,
    require_approval_above: Annotated[float | None, Field(ge=0)] = None,
    max_execution_time: Annotated[int | None, Field(ge=1, le=10_800)] = None,
    budget_block: str | None = None,
) -> str:
    """Submit a job and leave it to the watcher.

    Args:
        credentials_block: Name of a Quantum Runtime Credentials block.
        circuit: OpenQASM 2 or 3, as text or as the path of a file.
        backend: Name of the backend.
        shots: Shots of the circuit.
        route: How PUBs run: service, executor or auto; empty for the setting `primitive_route`.
        circuit_form: How circuits travel to the executor.
        dry_run: Run on the mock backend that stands for the backend: no QPU, no charge, random results.
        require_approval_above: QPU seconds that the job may cost without a person's approval on the run's page;
            empty if no approval is needed.
        max_execution_time: Limit of QPU seconds for the job; empty for the service's own.
        budget_block: Name of a Quantum Runtime Budget block that must have room for the job; empty for none.

    Returns:
        The job's id.
    """
    text = circuit_text(circuit)
    with own_fields():
        credentials = load_credentials(credentials_block)
        given: dict[str, Any] = {
            "backend": backend,
            "shots": shots,
            "max_execution_time": max_execution_time,
            "route": route,
            "circuit_form": circuit_form,
            "dry_run": dry_run,
        }
        if require_approval_above is not None:
            require_approval(estimate_cost(credentials, [text], **given), above=require_approval_above)
        job = submit_job(credentials, [text], budget=budget_block or None, **given)
        return leave_to_watcher(credentials, job).id


@flow(name="collect")
def collect(credentials_block: str, job_id: str) -> dict[str, int]:
    """Collect the result of a job that is over; started by an event, or by hand. Submits nothing.

    Args:
        credentials_block: Name of the credentials block that the job was submitted with.
        job_id: The job.

    Returns:
        Its counts.
    """
    with own_fields():
        credentials = load_credentials(credentials_block)
        job = wait_for_completion(credentials, job_id)  # raises the error of a failed job
        counts = fetch_results(credentials, job).counts()
    get_run_logger().info("job %s: %s", job_id, counts)
    return counts
