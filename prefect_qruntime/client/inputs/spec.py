"""A checked submission, before any dialect turns it into a request body.

Built and checked by `client.inputs.make_spec`; a `JobSpec` in hand means that every field was found
acceptable and nothing needs checking again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_qruntime.client.encodings.json_pieces import json_pieces
from prefect_qruntime.client.inputs.fields import MAX_PAYLOAD_BYTES
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import is_mock

__all__ = [
    "CIRCUIT_FORMS",
    "DIGEST_VERSION",
    "RECIPE_AUTHOR",
    "RECIPE_VERSION",
    "RESTRICTED_NAMES",
    "CircuitForm",
    "JobSpec",
    "Pub",
    "check_scalar_bits",
    "check_size",
    "input_notices",
]

CircuitForm = Literal["auto", "openqasm3", "qpy"]
"""How circuits travel to the executor. `auto`: as OpenQASM 3 if all PUBs are text that can go so, else as QPY."""
CIRCUIT_FORMS: tuple[CircuitForm, ...] = ("auto", "openqasm3", "qpy")
RECIPE_AUTHOR = "prefect_qruntime"
RECIPE_VERSION = "p1"
"""Our own post-processing record in a quantum program: who wrote it, and its version (IBM\'s start with a `v`)."""
DIGEST_VERSION = "d2"
"""Changes whenever the canonical form below changes, so that old and new keys never mix."""
RESTRICTED_NAMES = frozenset({"keys", "values", "items", "ndim", "shape", "size"})
"""Names that qiskit's `DataBin` uses itself, so that a result's register cannot have them there."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pub:
    """One primitive unified bloc.

    Attributes:
        circuit: OpenQASM 2/3 text, or a RuntimeEncoder object (`{"__type__": "QuantumCircuit", …}`).
        observables: Estimator only: a Pauli string, `{pauli: coefficient}`, or nested lists of them.
        parameters: List, nested lists, `{name: value(s)}`, an encoded array, or None.
        shots: Sampler only.
        precision: Estimator only.
        width: Number of classical bits, if the text shows it.
        registers: Names of the classical registers, if known.
        scalars: Classical bits outside all registers, by name or number.
        identity: What the digest sees in place of `circuit`, if the wire form is not
            reproducible (QPY holds random parameter ids).
    """

    circuit: str | dict[str, Any]
    observables: Any = None
    parameters: Any = None
    shots: int | None = None
    precision: float | None = None
    width: int | None = None
    identity: Any = None
    registers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()

    def canonical(self) -> list[Any]:
        """The part of the payload that decides what is computed."""
        circuit = self.circuit if self.identity is None else self.identity
        return [circuit, self.observables, self.parameters, self.shots, self.precision]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to submit: program, payload, limits. Without session and key.

    Attributes:
        meaning: The `Meaning` of `params`, see `client.inputs.meaning`.
        doubts: Why the same work, written again in another process, may get another digest; empty if it cannot.
        prepared: The PUBs as the params of program `executor`, if they take that route. Not part of the digest: the
            same work submitted on one route is found again on the other.
        may_turn: Whether the PUBs take the executor if the service says that their program is gone.
        circuit_form: How circuits travel on that route; not part of the digest, just as the route.
    """

    program_id: str
    backend: str
    pubs: tuple[Pub, ...] = ()
    params: dict[str, Any] | None = None
    shots: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    max_execution_time: int | None = None
    private: bool = False
    support_qiskit: bool = False
    meaning: Any = field(default=None, repr=False)
    doubts: tuple[str, ...] = ()
    prepared: dict[str, Any] | None = field(default=None, repr=False)
    may_turn: bool = False
    circuit_form: CircuitForm = "auto"

    @property
    def dry_run(self) -> bool:
        """Whether the job is for a mock backend, which needs no QPU."""
        return is_mock(self.backend)

    def digest(self) -> str:
        """Hex SHA-256 over the canonical payload: equal work, equal digest, in every process.

        The backend, the session and the tags are left out on purpose: a repeated flow run may
        meet another least busy backend or a new session, and must still find its job. But a dry run is never
        taken for the real job, nor the real job for a dry run.
        """
        payload: dict[str, Any] = {
            "v": DIGEST_VERSION,
            "program": self.program_id,
            "pubs": [pub.canonical() for pub in self.pubs],
            "params": self.canonical_params,
            "shots": self.shots,
            "options": self.options,
            "max_execution_time": self.max_execution_time,
            "private": self.private,
        }
        if self.dry_run:
            payload["dry_run"] = True
        found = hashlib.sha256()
        for piece in json_pieces(payload, sort_keys=True):
            found.update(piece)
        return found.hexdigest()

    @property
    def canonical_params(self) -> Any:
        """The raw payload as the digest sees it.

        A meaning that was read from other params does not count: of params that replaced them it says nothing.
        """
        return (
            self.meaning.canonical if self.meaning is not None and self.meaning.source is self.params else self.params
        )

    @property
    def wire_program(self) -> str:
        """The program that is sent: the executor for PUBs that take that route."""
        return self.program_id if self.prepared is None else "executor"

    @property
    def route(self) -> str:
        """`executor` or `service`."""
        return "service" if self.prepared is None else "executor"

    @property
    def widths(self) -> tuple[int | None, ...]:
        """Classical bits of each PUB, if known."""
        return tuple(pub.width for pub in self.pubs)


def check_size(spec: JobSpec) -> None:
    """Refuse what is over the service's limit, before it travels.

    Raises:
        InvalidInput: The JSON text of the payload is larger than 300 MB.
    """
    # Upper bounds first (a character takes at most six bytes of JSON, a number 25), as they cost
    # nothing: nearly every payload is far below.
    raw = spec.prepared if spec.params is None else spec.params
    if raw is None:
        bound = 25 * _leaves(spec.options)
        for pub in spec.pubs:
            circuit = pub.circuit if isinstance(pub.circuit, str) else pub.circuit["__value__"]
            bound += 6 * len(circuit) + 100
            bound += 25 * (_leaves(pub.parameters) + _leaves(pub.observables))
        if bound <= MAX_PAYLOAD_BYTES // 2:
            return
    pubs = [[pub.circuit, pub.observables, pub.parameters, pub.shots, pub.precision] for pub in spec.pubs]
    size = sum(map(len, json_pieces([pubs, spec.options] if raw is None else raw)))
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidInput(
            f"{size / 1e6:.1f} MB of input; the service takes at most {MAX_PAYLOAD_BYTES // 10**6} MB per job",
            field="pubs" if spec.params is None else "params",
        )


def _leaves(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_leaves, value)) + 1
    if isinstance(value, dict):
        return sum(len(key) + _leaves(item) for key, item in value.items()) + 1
    return len(value) if isinstance(value, str) else 1


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
    """Sentences about valid inputs that may cause trouble later, to be logged when the job is submitted."""
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
