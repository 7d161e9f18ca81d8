"""A step of a data pipeline: a CSV of angles in, a table of expectation values out.

Run it by hand (`python flows/angles_to_table.py`), deploy it, or call it from a flow of your own. With no
credentials block named it runs on the embedded sandbox. A run that is repeated, for the same file, attaches to
the jobs it submitted. The output replaces an older one only when it is complete.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect_qruntime.flows.shared import CircuitForm, RequestedRoute, instance, single
from pydantic import Field

from prefect_qruntime import (
    InvalidInput,
    JobRef,
    circuit_text,
    estimate_cost,
    fetch_results,
    hooks,
    require_approval,
    select_backend,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.client.inputs.qasm import scan
from prefect_qruntime.flow_parameters import allowed_path, read_file
from prefect_qruntime.redact import many

ANGLES = Path(__file__).resolve().parent / "data" / "angles.csv"
BLOCH = """
OPENQASM 3.0;
include "stdgates.inc";
input float[64] theta;
input float[64] phi;
qubit[1] q;
ry(theta) q[0];
rz(phi) q[0];
"""
SHOWN = 50  # rows of the artifact; the file has all of them

Angles = dict[str, float]


@task(name="read angles", cache_policy=NO_CACHE)
def read_angles(path: Path, inputs: Sequence[str] | None = None) -> list[Angles]:
    """Read the file; its first line names the circuit's inputs.

    No error shows the file's content: the path may name another file than the intended one.

    Args:
        path: A CSV file with a column for each input of the circuit, in radians.
        inputs: The inputs of the circuit; None accepts any names.

    Returns:
        The angles of each line by name.

    Raises:
        InvalidInput: The file is outside the allowed folders or cannot be read. Or it has no lines, its columns are
            not the inputs, a line has too few or too many fields, or a field is not a finite number; the line and the
            column are named.
    """
    reader = csv.reader(io.StringIO(read_file(path, field="angles"), newline=""), skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
            raise InvalidInput(f"{path}: the first line must name each column once", field="angles")
        if inputs is not None and set(names) != set(inputs):
            expected = f"the first line must name the circuit's inputs: {', '.join(inputs)}"
            raise InvalidInput(f"{path}: {expected if inputs else 'the circuit has no inputs for it'}", field="angles")
        rows = [_angles(f"{path}, line {reader.line_num}", names, found) for found in reader if found]
    except csv.Error:
        raise InvalidInput(f"{path}, line {reader.line_num}: not readable as CSV", field="angles") from None
    if not rows:
        raise InvalidInput(f"{path} has no line of angles", field="angles")
    return rows


def _angles(where: str, names: list[str], found: list[str]) -> Angles:
    if len(found) != len(names):
        raise InvalidInput(
            f"{where}: {many(len(found), 'field')}, but the first line names {many(len(names), 'column')}",
            field="angles",
        )
    angles = {}
    for column, (name, text) in enumerate(zip(names, found, strict=True), start=1):
        try:
            angles[name] = float(text)
        except ValueError:
            raise InvalidInput(f"{where}, column {column}: not a number", field="angles") from None
        if not math.isfinite(angles[name]):
            raise InvalidInput(f"{where}, column {column}: not a finite number", field="angles")
    return angles


def input_names(circuit: str) -> list[str] | None:
    """The inputs that an OpenQASM 3 text declares, in the order of declaration; None if one is not a number."""
    inputs = scan(circuit, field="circuit").inputs
    return None if inputs is None else list(inputs)


@task(name="write table", cache_policy=NO_CACHE)
def write_table(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write the rows as CSV, or as Parquet if the name ends in .parquet; a reader never sees half a file.

    Args:
        rows: At least one row; all with the same columns.
        path: The file to write; its folder is created.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            table = importlib.import_module("pyarrow").Table.from_pylist(rows)
            importlib.import_module("pyarrow.parquet").write_table(table, unfinished)
        else:
            with unfinished.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def check_target(path: Path) -> Path:
    """Refuse a target that cannot or must not be written, before anything is submitted.

    Returns:
        The real path of the target.

    Raises:
        InvalidInput: It is outside the folders in which flow parameters may name files, it is neither CSV nor Parquet,
            or Parquet without pyarrow, or it exists and is not a file.
    """
    path = allowed_path(path, field="table", access="write")
    if path.suffix not in (".csv", ".parquet"):
        raise InvalidInput(f"{path}: the name must end in .csv or .parquet", field="table")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InvalidInput(
            f"{path}: Parquet needs pyarrow, which is not installed; use a name that ends in .csv", field="table"
        )
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path}: not a regular file", field="table")
    return path


def check_columns(inputs: list[str], observables: list[str]) -> None:
    """Refuse columns that would overwrite each other, before anything is submitted.

    Raises:
        InvalidInput: Two columns of the table would have the same name.
    """
    names = [*inputs, "job", *(name for letter in observables for name in (letter, f"{letter}_error"))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"the table would have several columns {', '.join(twice)}", field="observables")


@flow(name="angles-to-table", **hooks.cancel)
def angles_to_table(
    angles: Path = ANGLES,
    table: Path = Path("expectation_values.csv"),
    circuit: str = BLOCH,
    observables: Annotated[list[str], Field(min_length=1)] = ["X", "Y", "Z"],  # noqa: B006 - shown in the form
    credentials_block: str | None = None,
    backend: str | None = None,
    shots: Annotated[int, Field(ge=1, le=10_000_000)] = 4000,
    rows_per_job: Annotated[int, Field(ge=1, le=1000)] = 100,
    dialect: Literal["cloud", "legacy"] = "cloud",
    max_execution_time: Annotated[int | None, Field(ge=1, le=10_800)] = None,
    route: RequestedRoute | None = None,
    circuit_form: CircuitForm = "auto",
    dry_run: bool = False,
    budget_block: str | None = None,
    require_approval_above: Annotated[float | None, Field(ge=0)] = None,
) -> list[dict[str, Any]]:
    """Measure observables for each line of a CSV file of angles and write them as a table.

    Args:
        angles: CSV file with a column for each input of the circuit, in radians.
        table: File to write, in an allowed folder: CSV, or Parquet if pyarrow is installed.
        circuit: OpenQASM 3 with `input`s, nothing measured, as text or as the path of a file.
        observables: Pauli strings, the last letter for qubit 0.
        credentials_block: Name of a Quantum Runtime Credentials block; empty for the embedded sandbox.
        backend: Name of a backend; empty for the least busy one.
        shots: Shots of each expectation value.
        rows_per_job: Lines of the file that share a job.
        dialect: Dialect of the embedded sandbox; a block has its own.
        max_execution_time: Limit of QPU seconds for each job; empty for the service's own.
        route: How PUBs run: service, executor or auto; empty for the setting `primitive_route`.
        circuit_form: How circuits travel to the executor.
        dry_run: Run on the mock backend that stands for the backend: no QPU, no charge, random results.
        budget_block: Name of a Quantum Runtime Budget block that must have room for each job; empty for none.
        require_approval_above: QPU seconds that the whole may cost without a person's approval on the run's page;
            empty if no approval is needed.

    Returns:
        The rows as written: the angles, a value and a standard error for each observable, and the job.

    Raises:
        InvalidInput: The file of angles, the observables or the name of the table is wrong, or a file is outside the
            folders in which flow parameters may name files; nothing was submitted.
    """
    logger = get_run_logger()
    table = check_target(table)
    text = circuit_text(circuit)
    wanted = read_angles(angles, input_names(text))
    check_columns(list(wanted[0]), observables)
    parts = [wanted[start : start + rows_per_job] for start in range(0, len(wanted), rows_per_job)]
    with instance(credentials_block, dialect) as credentials:
        chosen = backend or select_backend(credentials).name
        # One PUB for each line and observable, which both dialects support.
        pubs = [(text, observable, point) for point in wanted for observable in observables]
        size = rows_per_job * len(observables)
        given: dict[str, Any] = {
            "program_id": "estimator",
            "backend": chosen,
            "shots": shots,
            "max_execution_time": max_execution_time,
            "route": route,
            "circuit_form": circuit_form,
            "dry_run": dry_run,
        }
        if require_approval_above is not None:
            cost = estimate_cost(credentials, pubs, pubs_per_job=size, **given)
            require_approval(cost, above=require_approval_above)
        # All jobs queue at once.
        jobs: list[JobRef] = [
            submit_job(credentials, pubs[start : start + size], budget=budget_block or None, **given)
            for start in range(0, len(pubs), size)
        ]
        rows: list[dict[str, Any]] = []
        for job, part in zip(jobs, parts, strict=True):
            wait_for_completion(credentials, job)
            result = fetch_results(credentials, job)
            pub = 0
            for point in part:
                row: dict[str, Any] = dict(point)
                for observable in observables:
                    error = result.standard_errors(pub)
                    row[observable] = single(result.expectation_values(pub))
                    row[f"{observable}_error"] = None if error is None else single(error)
                    pub += 1
                rows.append({**row, "job": job.id})
    written = write_table(rows, table)
    logger.info("Wrote %s of %s to %s.", many(len(rows), "row"), many(len(jobs), "job"), written)
    create_table_artifact(
        key="qruntime-angles",
        table=rows[:SHOWN],
        description=f"{', '.join(observables)} for {many(len(rows), 'line')} of {angles.name}, first {SHOWN} at most",
    )
    return rows


if __name__ == "__main__":
    angles_to_table()
