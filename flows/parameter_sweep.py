"""A sweep of one angle as mapped tasks: estimator and sampler side by side, as a table and a picture.

Run it by hand (`python flows/parameter_sweep.py`) or deploy it. With no credentials block named it runs on the
embedded sandbox. Each angle is a job of its own for each program, so all of them queue at once; a run that is
repeated attaches to the jobs it submitted and submits those that are missing.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from prefect import flow, unmapped
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect_qruntime.flows.shared import CircuitForm, RequestedRoute, instance, shown_backend, single
from pydantic import Field

from prefect_qruntime import (
    CostEstimate,
    InvalidInput,
    JobResult,
    SessionRef,
    circuit_text,
    estimate_cost,
    fetch_results,
    hooks,
    require_approval,
    runtime_session,
    select_backend,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.observability.charts import line_chart, markdown_image

ROTATION = """
OPENQASM 3.0;
include "stdgates.inc";
input float[64] theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
"""
Program = Literal["estimator", "sampler"]


def angles_between(first: float, last: float, points: int) -> list[float]:
    """Equally spaced angles in radians, both ends included."""
    if points == 1:
        return [first]
    return [first + (last - first) * place / (points - 1) for place in range(points)]


def measured(circuit: str, qubits: int) -> str:
    """The circuit with all qubits of its register `q` measured at the end."""
    return f"{circuit.rstrip()}\nbit[{qubits}] c;\nc = measure q;\n"


def pub_for(program: Program, circuit: str, observable: str, angle: float) -> tuple[Any, ...]:
    """The PUB of one angle."""
    if program == "estimator":
        return (circuit, observable, [angle])
    return (measured(circuit, len(observable)), [angle])


def parity(counts: dict[str, int], observable: str) -> float:
    """The expectation value of a product of Z from counted bitstrings."""
    total = sum(counts.values())
    signed = 0
    for bits, count in counts.items():
        ones = sum(bit == "1" for bit, letter in zip(bits, observable, strict=True) if letter == "Z")
        signed += -count if ones % 2 else count
    return signed / total


def values_of(program: Program, result: JobResult, observable: str) -> dict[str, Any]:
    """The columns that one job fills."""
    if program == "sampler":
        # One point in an array of one, or no array at all: the dialects differ.
        counts = result.counts(index=0) if result.shape() else result.counts()
        value = parity(counts, observable)
        error = math.sqrt(max(0.0, 1 - value**2) / sum(counts.values()))  # of a mean of values that are 1 or -1
        return {"sampler_value": value, "sampler_error": error, "counts": counts}
    error = result.standard_errors()
    return {
        "estimator_value": single(result.expectation_values()),
        "estimator_error": None if error is None else single(error),
    }


@flow(name="parameter-sweep", **hooks.cancel)
def parameter_sweep(
    circuit: str = ROTATION,
    observable: Annotated[str, Field(pattern=r"^[IZ]+$")] = "IZ",
    first: float = 0.0,
    last: float = 2 * math.pi,
    points: Annotated[int, Field(ge=1, le=200)] = 9,
    programs: Annotated[list[Program], Field(min_length=1)] = ["estimator", "sampler"],  # noqa: B006 - in the form
    credentials_block: str | None = None,
    backend: str | None = None,
    shots: Annotated[int, Field(ge=1, le=10_000_000)] = 2000,
    mode: Literal["job", "session", "batch"] = "batch",
    dialect: Literal["cloud", "legacy"] = "cloud",
    max_ttl: Annotated[int, Field(ge=1)] = 1800,
    max_execution_time: Annotated[int | None, Field(ge=1, le=10_800)] = None,
    route: RequestedRoute | None = None,
    circuit_form: CircuitForm = "auto",
    dry_run: bool = False,
    budget_block: str | None = None,
    require_online: bool = False,
    require_approval_above: Annotated[float | None, Field(ge=0)] = None,
) -> list[dict[str, Any]]:
    """Measure an observable at each angle, by the estimator, by the sampler, or both.

    Args:
        circuit: OpenQASM 3 with one `input` and one register `q` as wide as the observable, nothing measured; as
            text or as the path of a file.
        observable: A product of I and Z, the last letter for qubit 0; the sampler's counts give its value too.
        first: First angle, in radians.
        last: Last angle, in radians.
        points: Number of angles; each is one job for each program.
        programs: Which programs to run.
        credentials_block: Name of a Quantum Runtime Credentials block; empty for the embedded sandbox.
        backend: Name of a backend; empty for the least busy one.
        shots: Shots of each job.
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
        require_approval_above: QPU seconds that the whole may cost without a person's approval on the run's page;
            empty if no approval is needed.

    Returns:
        A row for each angle, with the values, the counts and the jobs.
    """
    budget_block = budget_block or None  # an empty field of a form
    text = circuit_text(circuit)
    for name, angle in (("first", first), ("last", last)):
        if not math.isfinite(angle):
            raise InvalidInput(f"must be a finite angle in radians, not {angle}", field=name)
    angles = angles_between(first, last, points)
    chosen_programs: list[Program] = list(dict.fromkeys(programs))
    rows: list[dict[str, Any]] = [{"angle": angle} for angle in angles]
    with ExitStack() as stack:
        credentials = stack.enter_context(instance(credentials_block, dialect, queue_time=0.1, run_time=0.1))
        chosen = backend or select_backend(credentials, min_qubits=len(observable)).name
        given: Any = {
            "backend": chosen,
            "shots": shots,
            "max_execution_time": max_execution_time,
            "route": route,
            "circuit_form": circuit_form,
            "dry_run": dry_run,
        }
        pubs = {program: [pub_for(program, text, observable, angle) for angle in angles] for program in chosen_programs}
        if require_approval_above is not None:  # before a session is open
            costs = [
                estimate_cost(credentials, found, pubs_per_job=1, program_id=program, **given)
                for program, found in pubs.items()
            ]
            clocked = mode != "job" and credentials.get_client().session_mode(mode) == "dedicated"
            cost = CostEstimate.together(costs, session_life=max_ttl if clocked else None)
            require_approval(cost, above=require_approval_above)
        session: SessionRef | None = None
        if mode != "job" and not dry_run:
            kind = "batch" if mode == "batch" else "dedicated"
            opening = runtime_session(credentials, chosen, mode=kind, max_ttl=max_ttl, budget=budget_block)
            session = stack.enter_context(opening)
        unmapped_each: Any = {name: unmapped(value) for name, value in given.items()}
        jobs = {
            program: submit_job.map(
                # A block, a session and a text are one value each, although `map` might iterate over them.
                unmapped(credentials),
                [[pub] for pub in found],
                program_id=unmapped(program),
                session=unmapped(session),
                **unmapped_each,
                budget=unmapped(budget_block),
                require_online=unmapped(require_online),
            )
            for program, found in pubs.items()
        }
        done = {program: wait_for_completion.map(unmapped(credentials), refs) for program, refs in jobs.items()}
        for program, refs in jobs.items():
            refs.result()  # raises what the first failed submit raised: its wait never begins
            done[program].result()
            # Fetched by the submits' handles: they know the circuits' widths, which a legacy result does not say.
            results = fetch_results.map(unmapped(credentials), refs)
            for row, ref, result in zip(rows, refs.result(), results.result(), strict=True):
                row |= values_of(program, result, observable)
                row[f"{program}_job"] = ref.id
    tell(rows, observable, shown_backend(chosen, dry_run))
    return rows


def tell(rows: list[dict[str, Any]], observable: str, backend: str) -> None:
    """Show the sweep as a table and as a picture."""
    title = f"⟨{observable}⟩ on {backend} by angle"
    shown = [{name: value for name, value in row.items() if name != "counts"} for row in rows]
    create_table_artifact(key="qruntime-parameter-sweep", table=shown, description=title)
    series = {
        program: [(row["angle"], row[f"{program}_value"], row.get(f"{program}_error")) for row in rows]
        for program in ("estimator", "sampler")
        if f"{program}_value" in rows[0]
    }
    if not any(math.isfinite(value) for line in series.values() for _, value, _ in line):
        return  # the service knows none of the values
    chart = line_chart(f"{title}, ± standard error", series, x_label="angle / rad", y_label=f"⟨{observable}⟩")
    create_markdown_artifact(
        key="qruntime-parameter-sweep-picture", markdown=markdown_image(title, chart), description=title
    )


if __name__ == "__main__":
    parameter_sweep()
