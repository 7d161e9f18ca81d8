"""The ground energy of H2 by a variational loop: one session, one job for each step of a classical optimiser.

Run it by hand (`python flows/vqe_session.py`) or deploy it. With no credentials block named it runs on the
embedded sandbox. The optimiser is deterministic and reads nothing but the jobs' results, so a flow run
that was killed and is run again asks for the same jobs in the same order: those it paid for are attached
to, and the loop continues where it stopped. A result is read from the job itself, not from a file of ours.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect_qruntime.flows.shared import CircuitForm, RequestedRoute, instance, shown_backend, single
from pydantic import Field

from prefect_qruntime import (
    CostEstimate,
    JobRef,
    QuantumRuntimeCredentials,
    SessionRef,
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
from prefect_qruntime.redact import many

H2 = {
    "II": -1.052373245772859,
    "IZ": 0.39793742484318045,
    "ZI": -0.39793742484318045,
    "ZZ": -0.01128010425623538,
    "XX": 0.18093119978423156,
}
"""H2 at 0.735 Å in hartree: STO-3G, parity mapping, two qubits tapered off; without nuclear repulsion."""

ANSATZ = """
OPENQASM 3.0;
include "stdgates.inc";
input float[64] a;
input float[64] b;
input float[64] c;
input float[64] d;
qubit[2] q;
ry(a) q[0];
ry(b) q[1];
cx q[0], q[1];
ry(c) q[0];
ry(d) q[1];
"""
ANGLES = ("a", "b", "c", "d")
# Not zero: there every single angle is at a saddle and the loop would not move.
START = 0.1
SHOTS_OF_SANDBOX, SHOTS_OF_QPU = 1_000_000, 4_000
# Coarser than the last bits in which the mathematics of two machines differ: a run that is resumed
# elsewhere must ask for exactly the same jobs.
DECIMALS = 9

Angles = dict[str, float]


def moved(angles: Angles, name: str, step: float) -> Angles:
    """The angles with one of them turned by `step` radians, rounded and kept within ±π."""
    return {**angles, name: round(math.remainder(angles[name] + step, 2 * math.pi), DECIMALS)}


def best_step(here: float, ahead: float, behind: float) -> tuple[float, float]:
    """The step in one angle to the lowest energy on its circle, and that energy.

    The energy is a sinusoid in each angle of a rotation, so three values fix it: at the angle itself and
    a quarter turn ahead and behind (Nakanishi, Fujii and Todo 2020, sequential minimal optimisation).

    Args:
        here: Energy at the angle.
        ahead: Energy at the angle + π/2.
        behind: Energy at the angle - π/2.

    Returns:
        The step in radians and the energy there.
    """
    middle = (ahead + behind) / 2
    cosine, sine = here - middle, (ahead - behind) / 2
    if cosine == sine == 0:
        return 0.0, here
    return math.atan2(-sine, -cosine), middle - math.hypot(cosine, sine)


class Energies:
    """Measure energies, one job per call, and count the jobs."""

    def __init__(
        self,
        credentials: QuantumRuntimeCredentials,
        hamiltonian: dict[str, float],
        *,
        backend: str,
        session: SessionRef | None,
        shots: int,
        max_execution_time: int | None,
        budget: str | None = None,
        require_online: bool = False,
        route: RequestedRoute | None = None,
        circuit_form: CircuitForm = "auto",
        dry_run: bool = False,
    ) -> None:
        self.jobs: list[JobRef] = []
        self._credentials = credentials
        self._hamiltonian = hamiltonian
        self._settings: dict[str, Any] = {
            "backend": backend,
            "session": session,
            "shots": shots,
            "max_execution_time": max_execution_time,
            "budget": budget,
            "require_online": require_online,
            "route": route,
            "circuit_form": circuit_form,
            "dry_run": dry_run,
        }

    def at(self, *points: Angles) -> list[tuple[float, float | None]]:
        """Energy and standard error at each point, in hartree. Creates at most one job."""
        # One PUB for each point, and shots in place of a precision, which both dialects support.
        pubs = [(ANSATZ, self._hamiltonian, point) for point in points]
        job = submit_job(self._credentials, pubs, program_id="estimator", **self._settings)
        self.jobs.append(job)
        wait_for_completion(self._credentials, job)
        result = fetch_results(self._credentials, job)
        return [(single(result.expectation_values(pub)), error_of(result, pub)) for pub in range(len(points))]


def error_of(result: Any, pub: int) -> float | None:
    """The standard error of a PUB's value, or None if the service gave none."""
    error = result.standard_errors(pub)
    return None if error is None else single(error)


@flow(name="vqe-session", **hooks.cancel)
def vqe_session(
    credentials_block: str | None = None,
    backend: str | None = None,
    shots: Annotated[int | None, Field(ge=1, le=10_000_000)] = None,
    max_iterations: Annotated[int, Field(ge=1, le=200)] = 24,
    tolerance: Annotated[float, Field(gt=0)] = 0.0005,
    mode: Literal["dedicated", "batch"] = "dedicated",
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
    """Minimise the energy of H2 over four angles, one angle and one job an iteration.

    Args:
        credentials_block: Name of a Quantum Runtime Credentials block; empty for the embedded sandbox.
        backend: Name of a backend; empty for the least busy one, or the ideal one of the sandbox.
        shots: Shots of each energy, three energies a job; empty for 1,000,000 on the embedded sandbox, which
            reaches chemical accuracy there, and 4,000 elsewhere, where they are paid.
        max_iterations: Most jobs of the optimiser; one more measures the energy at its end.
        tolerance: Hartree by which four iterations together must lower the energy for the loop to continue.
        mode: A dedicated session keeps the QPU between iterations; plans without sessions allow a batch. A dry run
            needs neither.
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
            empty if no approval is needed. How many iterations the loop takes is not known, so the upper end is that of
            `max_iterations` and the last measurement, or the session's life if that is longer.

    Returns:
        A row for each iteration with its job, its angles and its energy in hartree; the last one is the
        measurement at the angles found, with the kind `final`.
    """
    budget_block = budget_block or None  # an empty field of a form
    with ExitStack() as stack:
        credentials = stack.enter_context(instance(credentials_block, dialect, queue_time=0.05, run_time=0.05, seed=1))
        ideal = None if credentials_block else "sandbox_ideal"
        chosen = backend or ideal or select_backend(credentials, min_qubits=2).name
        wanted_shots = shots or (SHOTS_OF_QPU if credentials_block else SHOTS_OF_SANDBOX)
        if require_approval_above is not None:  # before a session is open
            given: dict[str, Any] = {
                "program_id": "estimator",
                "backend": chosen,
                "shots": wanted_shots,
                "max_execution_time": max_execution_time,
                "route": route,
                "circuit_form": circuit_form,
                "dry_run": dry_run,
            }
            start = (ANSATZ, H2, dict.fromkeys(ANGLES, START))
            step, final = (estimate_cost(credentials, [start] * points, **given) for points in (3, 1))
            life = max_ttl if credentials.get_client().session_mode(mode) == "dedicated" else None
            cost = CostEstimate.together([step.at_most(max_iterations), final], session_life=life)
            require_approval(cost, above=require_approval_above)
        session: SessionRef | None = None
        if not dry_run:
            opening = runtime_session(credentials, chosen, mode=mode, max_ttl=max_ttl, budget=budget_block)
            session = stack.enter_context(opening)
        energies = Energies(
            credentials,
            H2,
            backend=chosen,
            session=session,
            shots=wanted_shots,
            max_execution_time=max_execution_time,
            budget=budget_block,
            require_online=require_online,
            route=route,
            circuit_form=circuit_form,
            dry_run=dry_run,
        )
        rows = minimise(energies, max_iterations=max_iterations, tolerance=tolerance)
    tell(rows, shown_backend(chosen, dry_run), wanted_shots)
    return rows


def minimise(energies: Energies, *, max_iterations: int, tolerance: float) -> list[dict[str, Any]]:
    """Turn one angle after the other to its best value until a round of all of them gains too little."""
    logger = get_run_logger()
    angles: Angles = dict.fromkeys(ANGLES, START)
    rows: list[dict[str, Any]] = []
    before = math.inf
    for number in range(1, max_iterations + 1):
        name = ANGLES[(number - 1) % len(ANGLES)]
        measured = energies.at(angles, moved(angles, name, math.pi / 2), moved(angles, name, -math.pi / 2))
        (here, error), (ahead, _), (behind, _) = measured
        step, energy = best_step(here, ahead, behind)
        angles = moved(angles, name, step)
        rows.append(row(number, "step", energies, angles, energy, error))
        logger.info("iteration %d: energy %.6f Ha after turning %s", number, energy, name)
        if number % len(ANGLES) == 0:
            # A gain below its own error does not count.
            if before - energy < max(tolerance, error or 0.0):
                break
            before = energy
    ((energy, error),) = energies.at(angles)
    rows.append(row(len(rows) + 1, "final", energies, angles, energy, error))
    logger.info("energy at the angles found: %.6f Ha", energy)
    return rows


def row(
    number: int, kind: str, energies: Energies, angles: Angles, energy: float, error: float | None
) -> dict[str, Any]:
    """One row of the result, of plain values."""
    job = energies.jobs[-1]
    return {
        "iteration": number,
        "kind": kind,
        "job": job.id,
        "attached": job.attached,
        "angles": dict(angles),
        "energy": energy,
        "standard_error": error,
    }


def tell(rows: list[dict[str, Any]], backend: str, shots: int) -> None:
    """Show how the energy converged."""
    last = rows[-1]
    title = f"H2 on {backend}: energy by iteration"
    chart = line_chart(
        title,
        {"energy": [(row["iteration"], row["energy"], row["standard_error"]) for row in rows]},
        x_label="iteration",
        y_label="electronic energy / Ha",
    )
    attached = sum(row["attached"] for row in rows)
    told = f", {attached} of them submitted by an earlier attempt of this flow run" if attached else ""
    error = "" if last["standard_error"] is None else f" ± {last['standard_error']:.6f}"
    lines = [
        f"**{last['energy']:.6f}{error} Ha** after {many(len(rows), 'job')} of {shots:,} shots per energy{told}.",
        "",
        markdown_image(title, chart),
        "",
        "| iteration | job | energy / Ha |",
        "|---|---|---|",
        *(f"| {row['iteration']} ({row['kind']}) | {row['job']} | {row['energy']:.6f} |" for row in rows),
    ]
    create_markdown_artifact(key="qruntime-vqe", markdown="\n".join(lines), description=title)


if __name__ == "__main__":
    vqe_session()
