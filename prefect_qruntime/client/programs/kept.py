"""Compare the quantum program that the service kept for a job with a submission.

A submission's key does not depend on its route, so a job found by the key may have taken either: PUBs that would go
to the server's primitive now may have gone to the executor before, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.inputs.spec import RECIPE_AUTHOR
from prefect_qruntime.client.programs.route import on_executor
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.printable import many

if TYPE_CHECKING:
    from prefect_qruntime.client.inputs.spec import JobSpec

__all__ = ["executor_difference", "may_be_job_of", "on_service"]


def may_be_job_of(spec: JobSpec, program_id: str | None) -> bool:
    """Whether a job of that program can be one of this submission, by either route."""
    return program_id in (None, spec.program_id, spec.wire_program) or (program_id == "executor" and bool(spec.pubs))


def on_service(spec: JobSpec) -> JobSpec:
    """The same submission on the server's primitive."""
    return replace(spec, prepared=None)


def executor_difference(spec: JobSpec, kept: Mapping[str, Any], *, exact: bool = True) -> str | None:
    """Compare a kept quantum program with that of a submission's PUBs.

    Args:
        spec: What was asked for, with PUBs.
        kept: The `params` that the service kept of a job of program `executor`.
        exact: Whether circuits, arguments and terms are compared too. Not if they depend on the backend, because
            they were transpiled for it.

    Returns:
        The difference, or None. Circuits that went as text once and as QPY now are not compared with each other.
    """
    try:
        sent = (spec if spec.prepared is not None else on_executor(spec)).prepared or {}
    except InvalidInput as error:
        return f"it is a quantum program, which this submission cannot be ({error})"
    ours, theirs = _program(sent), _program(kept)
    for name, what in (("shots", "shots"), ("meas_level", "measurement level")):
        if ours.get(name) != theirs.get(name):
            return f"it has {what} {theirs.get(name)!r}, not {ours.get(name)!r}"
    record, other = _record(ours), _record(theirs)
    if record.get("by") == RECIPE_AUTHOR:
        for name in ("by", "version", "program"):
            if record.get(name) != other.get(name):
                return f"its recipe has {name} {other.get(name)!r}, not {record.get(name)!r}"
        found, wanted = _length(other.get("pubs")), len(spec.pubs)
        if found != wanted:
            return f"it has {many(found, 'PUB')}, not {wanted}"
    if not exact:
        return None
    if _is_text(ours) != _is_text(theirs):
        ours, theirs = ({**program, "circuits": None} for program in (ours, theirs))
    for name in sorted(ours.keys() | theirs.keys()):
        if not _same(ours.get(name), theirs.get(name)):
            return f"its quantum_program.{name} is another"
    return None if _same(sent.get("options"), kept.get("options")) else "its options differ"


def _same(one: Any, other: Any) -> bool:
    # The service may add defaults; what was asked for must be there.
    mine, yours = meaning_of(one).canonical, meaning_of(other).canonical
    if isinstance(mine, dict) and isinstance(yours, dict):
        return all(yours.get(name) == value for name, value in mine.items())
    return bool((mine or None) == (yours or None))


def _program(params: Mapping[str, Any]) -> dict[str, Any]:
    found = params.get("quantum_program")
    return found if isinstance(found, dict) else {}


def _record(program: Mapping[str, Any]) -> dict[str, Any]:
    passed = program.get("passthrough_data")
    found = passed.get("post_processor") if isinstance(passed, dict) else None
    return found if isinstance(found, dict) else {}


def _is_text(program: Mapping[str, Any]) -> bool:
    circuits = program.get("circuits")
    return isinstance(circuits, dict) and "data" in circuits


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0
