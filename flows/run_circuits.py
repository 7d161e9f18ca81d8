"""The main example, with every step of the service: authenticate, list, open a session, submit, wait, close, fetch.

Run it by hand (`python flows/run_circuits.py`), deploy it, or call it from a flow of your own. With no
credentials block named it runs on the embedded sandbox, so it needs no account.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import deployment, flow_run
from prefect_qruntime.flows.shared import CircuitForm, RequestedRoute, instance, shown_backend
from pydantic import AwareDatetime, Field
from rich.console import Console
from rich.table import Table

from prefect_qruntime import (
    CostEstimate,
    JobRef,
    RouteComparison,
    authenticate,
    circuit_text,
    compare_routes as run_on_both_routes,
    estimate_cost,
    fetch_results,
    hooks,
    list_backends,
    require_approval,
    runtime_session,
    select_backend,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.redact import many

CIRCUITS = Path(__file__).resolve().parent / "circuits"
BELL = (CIRCUITS / "bell.qasm").read_text()


def counts_row(number: int, job: JobRef, counts: dict[str, int]) -> dict[str, Any]:
    """One row of the table: the circuit's most frequent outcomes first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = "  ".join(f"{bits}: {count}" for bits, count in ranked[:6])
    more = f"  … {len(ranked) - 6} more" if len(ranked) > 6 else ""
    return {
        # The page shows the first columns, so the most wanted ones come first.
        "circuit": number,
        "shots": sum(counts.values()),
        "counts": shown + more,
        "job": job.id,
        "backend": job.backend,
        "session": job.session.id if job.session else None,
    }


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """Print the same table that the artifact shows."""
    table = Table(title=title, title_justify="left")
    for name in ("circuit", "job", "shots", "counts"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("circuit", "job", "shots", "counts")))
    Console().print(table)


def slot_key(slot: datetime | None) -> str:
    """The key of a slot of this deployment: the same in all runs for that slot, and different in other deployments.

    Args:
        slot: The slot's time; None for the time at which this run was scheduled.
    """
    when = (slot or flow_run.scheduled_start_time).astimezone(UTC)
    return f"{deployment.id or 'no deployment'}/{when:%Y-%m-%dT%H:%M:%S}"


@flow(name="run-circuits", **hooks.cancel)
def run_circuits(
    # Prefect shows the default in its form and never changes it.
    circuits: Annotated[list[str], Field(min_length=1)] = [BELL],  # noqa: B006
    credentials_block: str | None = None,
    backend: str | None = None,
    shots: Annotated[int, Field(ge=1, le=10_000_000)] = 1000,
    mode: Literal["job", "session", "batch"] = "session",
    dialect: Literal["cloud", "legacy"] = "cloud",
    max_ttl: Annotated[int, Field(ge=1)] = 900,
    max_execution_time: Annotated[int | None, Field(ge=1, le=10_800)] = None,
    route: RequestedRoute | None = None,
    circuit_form: CircuitForm = "auto",
    dry_run: bool = False,
    budget_block: str | None = None,
    require_online: bool = False,
    once_per_slot: bool = False,
    compare_routes: bool = False,
    require_approval_above: Annotated[float | None, Field(ge=0)] = None,
    slot: AwareDatetime | None = None,
) -> list[dict[str, Any]]:
    """Run circuits, one job each, and tabulate their counts.

    Args:
        circuits: OpenQASM 2 or 3, as text or as paths of files.
        credentials_block: Name of a Quantum Runtime Credentials block; empty for the embedded sandbox.
        backend: Name of a backend; empty for the least busy one.
        shots: Shots of each circuit.
        mode: Single jobs, all in one session, or all in one batch. A dry run needs neither.
        dialect: Dialect of the embedded sandbox; a block has its own.
        max_ttl: Longest life of the session or batch, in seconds.
        max_execution_time: Limit of QPU seconds for each job; empty for the service's own.
        route: How PUBs run: service, executor or auto; empty for the setting `primitive_route`.
        circuit_form: How circuits travel to the executor.
        dry_run: Run on the mock backend that stands for the backend: no QPU, no charge, random results.
        budget_block: Name of a Quantum Runtime Budget block that must have room for the session and its jobs; empty
            for none.
        require_online: Refuse to submit while the backend is paused or offline, instead of queueing there.
        once_per_slot: For schedules: runs of this deployment for the same slot, which is the scheduled time, share
            their jobs. A run that is started by hand gets a new time; name the failed run's time in `slot`.
        compare_routes: Run each circuit both by the server's sampler and by the executor, which buys two jobs for
            each, and test whether the counts agree. The counts shown are those of the sampler.
        require_approval_above: QPU seconds that all jobs together may cost without a person's approval on the run's
            page; empty if no approval is needed.
        slot: With a time zone: the scheduled time of the run to stand in for, so that this one attaches to its jobs
            and submits only those that are missing. Empty for the time of this run.

    Returns:
        A row for each circuit, with its job, its shots, its counts and its bitstrings' frequencies.
    """
    budget_block = budget_block or None  # an empty field of a form
    texts = [circuit_text(circuit, field=f"circuits[{place}]") for place, circuit in enumerate(circuits)]
    with ExitStack() as stack:
        credentials = stack.enter_context(instance(credentials_block, dialect, queue_time=0.3, run_time=0.3))

        authenticate(credentials)
        list_backends(credentials)
        chosen = backend or select_backend(credentials).name
        costs = [
            estimate_cost(
                credentials,
                texts,
                pubs_per_job=1,
                backend=chosen,
                shots=shots,
                max_execution_time=max_execution_time,
                route=one,
                circuit_form=circuit_form,
                dry_run=dry_run,
            )
            for one in (("service", "executor") if compare_routes else (route,))
        ]
        clocked = mode != "job" and credentials.get_client().session_mode(mode) == "dedicated"
        cost = CostEstimate.together(costs, session_life=max_ttl if clocked else None)
        if require_approval_above is not None:
            require_approval(cost, above=require_approval_above)  # before a session is open
        jobs: list[JobRef] = []
        session = None
        if mode != "job" and not dry_run:
            kind = "batch" if mode == "batch" else "dedicated"
            opening = runtime_session(credentials, chosen, mode=kind, max_ttl=max_ttl, budget=budget_block)
            session = stack.enter_context(opening)
        compared: list[RouteComparison] = []
        for number, text in enumerate(texts):
            given: Any = {
                "backend": chosen,
                "session": session,
                "shots": shots,
                "max_execution_time": max_execution_time,
                "circuit_form": circuit_form,
                "dry_run": dry_run,
                "budget": budget_block,
                "require_online": require_online,
                "submission_key": f"{slot_key(slot)}/{number}" if once_per_slot or slot is not None else None,
            }
            if compare_routes:
                compared.append(run_on_both_routes(credentials, [text], **given))
                jobs.append(compared[-1].service)
            else:
                jobs.append(submit_job(credentials, [text], route=route, **given))
        if not compare_routes:
            # The last one first: jobs of a session run in order, so the others are over by then.
            for job in reversed(jobs):
                wait_for_completion(credentials, job)
        results = [fetch_results(credentials, job) for job in jobs]
        rows = [
            counts_row(number, job, result.counts())
            for number, (job, result) in enumerate(zip(jobs, results, strict=True), start=1)
        ]
        where = shown_backend(chosen, dry_run)
        for row, comparison in zip(rows, compared, strict=False):
            row |= {"executor job": comparison.executor.id, "routes": comparison.agreement.verdict}
        ran = f"{many(len(rows), 'circuit')} on {where}"
        # Two short lines: the cards of the list of artifacts cut longer ones. The log has all of the estimate.
        described = (
            f"Counts of {ran}\n\nEstimated: {round(cost.low_seconds, 1):g} to {round(cost.high_seconds, 1):g} QPU s"
        )
        create_table_artifact(key="qruntime-counts", table=rows, description=described)
        for comparison in compared:
            print(comparison)
        print_table(rows, f"{ran}, {shots} shots each ({credentials.dialect} dialect)")
        return [{**row, "frequencies": result.counts()} for row, result in zip(rows, results, strict=True)]


if __name__ == "__main__":
    run_circuits(compare_routes="--compare-routes" in sys.argv[1:])
