"""Compare the job that carries a submission's key with the submission.

A tag is readable by every user of the instance and can be put on any job, so the key alone does not prove that a
job computes what was asked for. What the service kept of the job's input is compared with what would be sent now.
What cannot be compared, because the service hides it (private jobs), it is too large or it depends on the backend, is
named: the job attached to is not certain then.

A submission's key does not depend on its route, so a job found by the key may have taken either: PUBs that would go
to the server's primitive now may have gone to the executor before, and the other way round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from prefect_qruntime.client.encodings.arrays import weight
from prefect_qruntime.client.inputs.meaning import identity_of, meaning_of
from prefect_qruntime.client.inputs.pubs import is_encoded_circuit, load_qpy, qpy_bytes
from prefect_qruntime.client.inputs.spec import RECIPE_AUTHOR, JobSpec, Pub
from prefect_qruntime.client.programs.make import on_executor
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job
from prefect_qruntime.redact import many

__all__ = [
    "differs_at_sight",
    "executor_difference",
    "input_difference",
    "is_comparable",
    "is_small",
    "may_be_job_of",
    "on_service",
    "shape",
]

# Characters and numbers: of what is hashed or compared on the network loop, and of what is read back from the service.
_SMALL, _MOST_COMPARED = 64_000, 4_000_000
_QPY_BYTES = 1 << 26
_TRANSPILED = "the circuits, which were transpiled for a backend"
# Defaults that the service may fill in.
_FILLED_IN = frozenset({"version", "support_qiskit", "options", "run_options", "resilience_settings"})


def shape(spec: JobSpec) -> Hashable:
    """Program, PUB count and shots, which can be compared at no cost."""
    return (
        spec.program_id,
        spec.private,
        spec.dry_run,
        spec.shots,
        tuple((pub.shots, pub.precision) for pub in spec.pubs),
    )


def is_small(spec: JobSpec) -> bool:
    """Whether the payload may be hashed or compared without a thread."""
    return weight(_payload(spec), _SMALL) <= _SMALL


def is_comparable(spec: JobSpec) -> bool:
    """Whether the payload may be read back from the service to be compared, as a large Hamiltonian may."""
    return weight(_payload(spec), _MOST_COMPARED, keys=False) <= _MOST_COMPARED


def _payload(spec: JobSpec) -> list[Any]:
    return [spec.params, spec.options, [(pub.circuit, pub.observables, pub.parameters) for pub in spec.pubs]]


def differs_at_sight(spec: JobSpec, job: Job) -> str | None:
    """Compare the job's own fields with the submission: the difference, or None."""
    if not may_be_job_of(spec, job.program_id):
        return f"its program is {job.program_id!r}, not {spec.program_id!r}"
    if job.backend is not None and job.dry_run != spec.dry_run:
        return "it is a dry run" if job.dry_run else f"it is not a dry run, but ran on {job.backend}"
    if job.private and not spec.private:
        return "it is private, so that its input cannot be compared"
    return None


def input_difference(
    spec: JobSpec,
    sent: dict[str, Any],
    kept: dict[str, Any],
    *,
    exact: bool = True,
    unseen: list[str] | None = None,
) -> str | None:
    """Compare the input that the service kept with what would be sent.

    Args:
        spec: What was asked for.
        sent: The `params` that would be sent for it now.
        kept: The `params` that the service kept; empty if it shows none.
        exact: Whether circuits, parameters and observables are compared too; False if they were transpiled for a
            backend, on which they depend then.
        unseen: Gets what could not be compared, if nothing differs.

    Returns:
        The difference, or None.
    """
    unseen = [] if unseen is None else unseen
    if not kept:
        unseen.append("the input, which the service does not show")
        return None
    if spec.pubs and "quantum_program" in kept:
        return executor_difference(spec, kept, exact=exact, unseen=unseen)
    if spec.params is not None:
        # QPY differs each time it is written, so the meanings are compared.
        if sent == kept or replace(spec, params=kept, meaning=meaning_of(kept)).digest() == spec.digest():
            return None
        return _difference(sent, kept, "params") or "its params differ"
    if not exact:
        unseen.append(_TRANSPILED)
    for name in ("pubs", "circuits"):
        if name in sent:
            found: Any = kept.get(name)
            difference = _count_difference(spec, found) or _circuits_difference(
                spec, sent[name], found, name, exact=exact, unseen=unseen
            )
            if difference is not None:
                return difference
    of_backend = {"pubs", "circuits"} | (set() if exact else {"observables", "parameter_values"})
    rest = {name: value for name, value in sent.items() if name not in of_backend}
    return _difference(rest, {name: value for name, value in kept.items() if name not in of_backend}, "")


def _count_difference(spec: JobSpec, found: Any) -> str | None:
    count = len(found) if isinstance(found, list) else 0
    return None if count == len(spec.pubs) else f"it has {many(count, 'PUB')}, not {len(spec.pubs)}"


def _circuits_difference(
    spec: JobSpec, sent: list[Any], kept: list[Any], name: str, *, exact: bool, unseen: list[str]
) -> str | None:
    for place, pub in enumerate(spec.pubs):
        ours, theirs = _parts(sent[place]), _parts(kept[place])
        width = max(len(ours), len(theirs))
        ours, theirs = ours + [None] * (width - len(ours)), theirs + [None] * (width - len(theirs))
        if not exact:  # only the last part (shots or precision) is the same for every backend
            ours, theirs = ours[_own(spec) :], theirs[_own(spec) :]
        elif _same_circuit(pub, ours[0], theirs[0], unseen):
            ours, theirs = ours[1:], theirs[1:]
        else:
            return f"the circuit of {name}[{place}] is another"
        difference = _difference(ours, theirs, f"{name}[{place}]")
        if difference is not None:
            return difference
    return None


def _own(spec: JobSpec) -> int:
    return 3 if spec.program_id == "estimator" else 2


def _parts(pub: Any) -> list[Any]:
    return list(pub) if isinstance(pub, list | tuple) else [pub]


def _same_circuit(pub: Pub, ours: Any, theirs: Any, unseen: list[str]) -> bool:
    if ours == theirs:
        return True
    if pub.identity is None or not is_encoded_circuit(theirs):
        return False
    # QPY holds random parameter ids: a circuit built again has other bytes and is the same.
    try:
        plain = qpy_bytes(theirs, limit=_QPY_BYTES)
        return bool(identity_of(load_qpy(theirs, field="circuit"), plain) == pub.identity)
    except (InvalidInput, ValueError) as error:
        unseen.append(f"a circuit that cannot be read ({error})")
        return True


def _difference(sent: Any, kept: Any, path: str) -> str | None:
    """The first place at which something that was asked for is missing or differs."""
    if (ours := _unpacked(sent)) is not None and (theirs := _unpacked(kept)) is not None:
        # Circuits in options: the same ones have other bytes in each process.
        return None if ours == theirs or meaning_of(sent) == meaning_of(kept) else f"{path} is another"
    if isinstance(sent, dict) and isinstance(kept, dict):
        for name in sorted({*sent, *kept}):
            here = f"{path}.{name}" if path else name
            if name not in sent:
                if _is_said(kept[name]) and path == "" and name not in _FILLED_IN:
                    return f"{here} was not asked for"
                continue
            difference = _difference(sent[name], kept.get(name), here)
            if difference is not None:
                return difference
        return None
    if isinstance(sent, list | tuple) and isinstance(kept, list | tuple):
        if len(sent) != len(kept):
            return f"{path} has {len(kept)} parts, not {len(sent)}"
        for place, (ours, theirs) in enumerate(zip(sent, kept, strict=True)):
            difference = _difference(ours, theirs, f"{path}[{place}]")
            if difference is not None:
                return difference
        return None
    if sent == kept or (not _is_said(sent) and not _is_said(kept)):
        return None
    short = all(value is None or isinstance(value, bool | int | float) for value in (sent, kept))
    return f"{path} is {kept!r}, not {sent!r}" if short else f"{path} is another"


def _unpacked(value: Any) -> bytes | None:
    """The bytes of an encoded array or circuit; two builds of zlib pack them differently."""
    if isinstance(value, dict) and isinstance(value.get("__type__"), str) and isinstance(value.get("__value__"), str):
        with contextlib.suppress(ValueError):
            return qpy_bytes(value, limit=_QPY_BYTES)
    return None


def _is_said(value: Any) -> bool:
    return value is not None and value != {} and value != []


# ---- by the other route ----------------------------------------------------------------------------------------


def may_be_job_of(spec: JobSpec, program_id: str | None) -> bool:
    """Whether a job of that program can be one of this submission, by either route."""
    return program_id in (None, spec.program_id, spec.wire_program) or (program_id == "executor" and bool(spec.pubs))


def on_service(spec: JobSpec) -> JobSpec:
    """The same submission on the server's primitive."""
    return replace(spec, prepared=None)


def executor_difference(
    spec: JobSpec, kept: Mapping[str, Any], *, exact: bool = True, unseen: list[str] | None = None
) -> str | None:
    """Compare a kept quantum program with that of a submission's PUBs.

    Args:
        spec: What was asked for, with PUBs.
        kept: The `params` that the service kept of a job of program `executor`.
        exact: Whether circuits, arguments and terms are compared too. Not if they depend on the backend, because
            they were transpiled for it.
        unseen: Gets what could not be compared, if nothing differs.

    Returns:
        The difference, or None. Not compared are circuits that went as text once and as QPY now, and those in which
        IBM's preparation drew the gates that it folded.
    """
    unseen = [] if unseen is None else unseen
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
        if (difference := _count_difference(spec, other.get("pubs"))) is not None:
            return difference
    if not exact:
        unseen.append(_TRANSPILED)
        return None
    if _is_text(ours) != _is_text(theirs):
        unseen.append("the circuits, which went once as OpenQASM text and once as QPY")
        ours, theirs = ({**program, "circuits": None} for program in (ours, theirs))
    from prefect_qruntime.client.inputs.options import folds_at_random  # fourteen models

    drawn = ("circuits", "items") if folds_at_random(spec.options) else ()
    if drawn:
        unseen.append("the circuits, in which the gates to fold were drawn at random")
    for name in sorted((ours.keys() | theirs.keys()).difference(drawn)):
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
