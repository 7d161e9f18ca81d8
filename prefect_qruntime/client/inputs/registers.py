"""Check what a submission's classical registers can return, and which names of registers cause trouble later."""

from __future__ import annotations

from prefect_qruntime.client.inputs.spec import JobSpec, Pub
from prefect_qruntime.errors import InvalidInput

__all__ = ["check_scalar_bits", "input_notices"]

RESTRICTED_NAMES = frozenset({"keys", "values", "items", "ndim", "shape", "size"})
"""Names that qiskit's `DataBin` uses itself, so that no register of a result can have them there."""

_SHOWN = 5


def check_scalar_bits(spec: JobSpec) -> None:
    """Refuse classical bits outside all registers, for a dialect whose results are registers.

    The sampler of the cloud dialect returns registers by name. Qiskit's primitives drop bits that belong to none,
    so what is measured into one would be paid for and lost. Legacy results join all bits and lose none.

    Raises:
        InvalidInput: The bits are named, with the declaration to write instead.
    """
    if spec.program_id != "sampler":
        return
    for place, pub in enumerate(spec.pubs):
        if pub.scalars:
            raise InvalidInput(_refusal(pub), field=f"pubs[{place}].circuit")


def _refusal(pub: Pub) -> str:
    shown, more = pub.scalars[:_SHOWN], len(pub.scalars) - _SHOWN
    listed = ", ".join(repr(name) if isinstance(pub.circuit, str) else name for name in shown)
    if more > 0:
        listed += f" and {more} more"
    one = len(pub.scalars) == 1
    if not isinstance(pub.circuit, str):
        return (
            f"classical bit{'' if one else 's'} {listed} belong{'s' if one else ''} to no register, and the service "
            "returns registers only. Measure into a ClassicalRegister instead"
        )
    return (
        f"{listed} {'is a scalar bit' if one else 'are scalar bits'}, and the service returns registers only. "
        f"Declare {'a register' if one else 'registers'} instead: bit[1] {pub.scalars[0]};"
    )


def input_notices(spec: JobSpec) -> tuple[str, ...]:
    """Sentences about inputs that are valid and may surprise later: to be logged when the job is submitted."""
    found: list[str] = []
    for place, pub in enumerate(spec.pubs if spec.program_id == "sampler" else ()):
        names = [name for name in pub.registers if name in RESTRICTED_NAMES]
        if names:
            listed = ", ".join(repr(name) for name in names)
            found.append(
                f"pubs[{place}].circuit has {'a register' if len(names) == 1 else 'registers'} named {listed}. "
                f"Qiskit's result objects use {'that name' if len(names) == 1 else 'those names'} themselves, so "
                "to_primitive_result() will fail; counts() and to_table() work. Rename it to avoid that."
            )
    return tuple(found)
