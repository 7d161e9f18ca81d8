"""A checked submission, before any dialect makes a request body of it, and the checks of its fields and `params`.

Built and checked by `client.programs.make_spec`; a `JobSpec` in hand means that every field was found acceptable and
nothing needs checking again.

The small fields are ids, tags, limits and plain JSON. Each check returns the value in the form that is sent, or raises
`InvalidInput` naming the field. Limits come from the service's OpenAPI document: 8 tags of at most 86 characters (two
of the eight are ours), 1 to 10,800 seconds of QPU time. IBM's `QuantumProgram` objects become the `params` of program
`executor` by IBM's own converter (extra `[ibm]`).
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import takewhile
from typing import Any, Literal

from pydantic import ValidationError

from prefect_qruntime.client.encodings.arrays import json_pieces, whole_number
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, is_mock
from prefect_qruntime.redact import shown

__all__ = [
    "CIRCUIT_FORMS",
    "DEFAULT_PRECISION",
    "DEFAULT_SHOTS",
    "DIGEST_VERSION",
    "IBM_CLIENT",
    "IBM_EXTRA",
    "MAX_PAYLOAD_BYTES",
    "RECIPE_AUTHOR",
    "RECIPE_VERSION",
    "RESTRICTED_NAMES",
    "CircuitForm",
    "JobSpec",
    "Pub",
    "check_flag",
    "check_id",
    "check_integer",
    "check_max_execution_time",
    "check_precision",
    "check_scalar_bits",
    "check_shots",
    "check_size",
    "check_tags",
    "check_texts",
    "first_line",
    "has_ibm",
    "ibm_module",
    "input_notices",
    "is_quantum_program",
    "params_of_program",
    "plain_json",
    "refused_by_ibm",
    "write_program",
]


MAX_PAYLOAD_BYTES = 300_000_000
"""The service's limit on a job's input since July 2026 (300 MB, decimal: the stricter reading)."""

MAX_USER_TAGS = 6
MAX_TAG_LENGTH = 86
MAX_SHOTS = 2**31 - 1
MAX_EXECUTION_SECONDS = 10_800
DEFAULT_SHOTS, DEFAULT_PRECISION = 4096, 0.015625
"""The service's own, of the sampler and the estimator."""

# A value in a URL path or a header must not contain characters with a meaning there.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_TAGS = (KEY_TAG, FLOW_TAG)
_MAX_DEPTH = 64

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
IBM_CLIENT = "qiskit_ibm_runtime"
IBM_EXTRA = "pip install 'prefect-qruntime[ibm]'"


def check_id(value: object, *, field: str) -> str:
    """A backend name or program id: 1 to 64 letters, digits, `.`, `_` or `-`."""
    if not isinstance(value, str):
        raise InvalidInput(f"must be a string, not {type(value).__name__}", field=field)
    if not _ID.fullmatch(value):
        raise InvalidInput(
            f"{value[:80]!r} must be 1 to 64 letters, digits, dots, underscores or hyphens, "
            "starting with a letter or digit",
            field=field,
        )
    return value


def check_shots(value: object, *, field: str) -> int | None:
    """None, or an int of at least 1."""
    if value is None:
        return None
    number = check_integer(value, field=field)
    if not 1 <= number <= MAX_SHOTS:
        raise InvalidInput(f"must be between 1 and {MAX_SHOTS}, not {number}", field=field)
    return number


def check_precision(number: float, *, field: str) -> None:
    """Refuse a precision that no number of shots reaches: the shots of a value are about 1/precision²."""
    if number < MAX_SHOTS**-0.5:
        raise InvalidInput(
            f"{number:g} is too small: it would take about {number**-2 if number > 1e-150 else math.inf:.1g} shots, "
            f"and at most {MAX_SHOTS} are possible. Use at least {math.ceil(MAX_SHOTS**-0.5 * 1e7) / 1e7:g}",
            field=field,
        )


def check_max_execution_time(value: object) -> int | None:
    """None, or QPU seconds between 1 and 10,800."""
    field = "max_execution_time"
    if value is None:
        return None
    number = check_integer(value, field=field)
    if not 1 <= number <= MAX_EXECUTION_SECONDS:
        raise InvalidInput(f"must be between 1 and {MAX_EXECUTION_SECONDS} seconds, not {number}", field=field)
    return number


def check_flag(value: object, *, field: str) -> bool:
    """A real bool, or numpy's: the text "false", which a form may give, would count as true."""
    kind = type(value)
    if not isinstance(value, bool) and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise InvalidInput(f"must be True or False, not {shown(value)}", field=field)
    return bool(value)


def check_texts(value: object, *, field: str) -> list[str]:
    """The texts in a list, set or the like; a single text is none, as it would count as its letters."""
    found = None if isinstance(value, str | bytes) or not isinstance(value, Iterable) else list(value)
    if found is None or not all(isinstance(item, str) for item in found):
        raise InvalidInput(f"must be a list of strings, not {shown(value)}", field=field)
    return found


def check_tags(tags: object) -> tuple[str, ...]:
    """The user's tags, without repetitions, in their order."""
    if isinstance(tags, str | bytes) or not isinstance(tags, list | tuple):
        raise InvalidInput("must be a list of strings", field="tags")
    unique: list[str] = []
    for position, tag in enumerate(tags):
        field = f"tags[{position}]"
        if not isinstance(tag, str):
            raise InvalidInput(f"must be a string, not {type(tag).__name__}", field=field)
        if not 1 <= len(tag) <= MAX_TAG_LENGTH:
            raise InvalidInput(f"must have 1 to {MAX_TAG_LENGTH} characters, not {len(tag)}", field=field)
        if not tag.isprintable():
            raise InvalidInput("must not hold control or unprintable characters", field=field)
        if tag.startswith(_OWN_TAGS):
            raise InvalidInput(f"tags starting with {KEY_TAG!r} or {FLOW_TAG!r} are set by this package", field=field)
        if tag in unique:
            continue
        if len(unique) == MAX_USER_TAGS:
            raise InvalidInput(
                f"at most {MAX_USER_TAGS} tags are allowed: the service takes 8, and this package needs two",
                field=field,
            )
        unique.append(tag)
    return tuple(unique)


def plain_json(value: Any, *, field: str, depth: int = 0) -> Any:
    """A copy made of dict, list, str, int, float, bool and None only; NaN and infinity refused."""
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"nested deeper than {_MAX_DEPTH} levels", field=field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, field=field)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise InvalidInput("integer does not fit into 64 bits", field=field)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{value} cannot be sent", field=field)
        return float(value)
    if isinstance(value, Mapping):
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"key {shown(key)} must be a string", field=field)
            copy[_text(key, field=field)] = plain_json(item, field=f"{field}.{key}", depth=depth + 1)
        return copy
    if isinstance(value, list | tuple):
        return [plain_json(item, field=f"{field}[{position}]", depth=depth + 1) for position, item in enumerate(value)]
    if callable(getattr(value, "tolist", None)):  # numpy arrays and scalars
        return plain_json(value.tolist(), field=field, depth=depth + 1)
    raise InvalidInput(f"{type(value).__name__} cannot be sent as JSON", field=field)


def _text(value: str, *, field: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput("text holds a lone surrogate, which is not valid UTF-8", field=field) from None
    return str(value)


def check_integer(value: object, *, field: str) -> int:
    """A whole number, also one of numpy's."""
    number = whole_number(value)
    if number is None:
        raise InvalidInput(f"must be an integer, not {shown(value)}", field=field)
    return number


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
        meaning: The `Meaning` of `params`, or of the options of PUBs, see `client.inputs.meaning`.
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
            "params": self.canonical(self.params),
            "shots": self.shots,
            "options": self.canonical(self.options),
            "max_execution_time": self.max_execution_time,
            "private": self.private,
        }
        if self.dry_run:
            payload["dry_run"] = True
        found = hashlib.sha256()
        for piece in json_pieces(payload, sort_keys=True):
            found.update(piece)
        return found.hexdigest()

    def canonical(self, value: Any) -> Any:
        """The params or the options as the digest sees them.

        A meaning that was read from others does not count: of what replaced them it says nothing.
        """
        return self.meaning.canonical if self.meaning is not None and self.meaning.source is value else value

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


def has_ibm() -> bool:
    """Whether IBM's client with its client-side primitives is installed."""
    try:
        import_module(f"{IBM_CLIENT}.executor_sampler")
    except ImportError:
        return False
    return True


def is_quantum_program(value: Any) -> bool:
    """Whether a value is IBM's `QuantumProgram`, without importing IBM's client."""
    kinds = [
        getattr(sys.modules.get(module), "QuantumProgram", None)
        for module in (f"{IBM_CLIENT}.quantum_program", "samplomatic.quantum_program")
    ]
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def params_of_program(program: Any, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `params` of program `executor` for IBM's `QuantumProgram`.

    Args:
        program: The quantum program.
        options: `init_qubits`, `rep_delay`, `scheduler_timing`, `stretch_values` and `experimental`.

    Raises:
        InvalidInput: IBM's client is not installed, or refuses the program or the options.
    """
    models = ibm_module("options_models.executor", "QuantumProgram objects")
    if not isinstance(options, Mapping | None):
        raise InvalidInput(f"must be a dict, not {type(options).__name__}", field="options")
    given = dict(options or {})
    experimental = given.pop("experimental", None) or {}
    try:
        chosen = models.ExecutorOptions(execution=given, experimental=experimental)
    except ValidationError as error:
        raise refused_by_ibm(error, inside="execution") from None
    return write_program(program, chosen)


def write_program(program: Any, options: Any) -> dict[str, Any]:
    """The `params` of an IBM quantum program with its options.

    Raises:
        InvalidInput: IBM's client is not installed, or cannot write the program.
    """
    converters = ibm_module("quantum_program.converters.converters_2_0", "QuantumProgram objects")
    kind = ibm_module("quantum_program", "QuantumProgram objects").QuantumProgram
    try:
        if not isinstance(program, kind):  # samplomatic's own, of which it is a subclass
            parts = ("shots", "items", "meas_level", "passthrough_data")
            program = kind(**{name: getattr(program, name) for name in parts})
        found: dict[str, Any] = converters.quantum_program_to_2_0(program, options).model_dump(mode="json")
    except ValueError as error:
        raise InvalidInput(f"IBM's client cannot write the program: {first_line(error)}", field="pubs") from None
    # The role is reserved for IBM's own clients; the recipe in `passthrough_data` says all that is needed.
    found["quantum_program"].pop("semantic_role", None)
    return found


def ibm_module(name: str, what: str) -> Any:
    """A module of IBM's client.

    Raises:
        InvalidInput: IBM's client is not installed; the extra that brings it is named.
    """
    try:
        return import_module(f"{IBM_CLIENT}.{name}")
    except ImportError:
        raise InvalidInput(f"{what} need IBM's own client: {IBM_EXTRA}", field="options") from None


def _first_of(error: ValidationError) -> Any:
    return error.errors(include_url=False, include_context=False, include_input=False)[0]


def refused_by_ibm(error: ValidationError, *, inside: str = "") -> InvalidInput:
    """The error about the first option that a model of IBM's client refuses.

    Args:
        error: The model's error.
        inside: The group in which the model has options that stand by themselves here.
    """
    first = _first_of(error)
    # Of a union the path goes on into the branch that refused it.
    path = list(takewhile(str.isidentifier, map(str, first["loc"])))
    if path[:1] == [inside]:
        del path[0]
    return InvalidInput(f"IBM's client refuses it: {first['msg']}", field=".".join(["options", *path]))


def first_line(error: Exception) -> str:
    """The first line of an error of IBM's client, cut to 300 characters."""
    if isinstance(error, ValidationError):  # whose first line only counts
        first = _first_of(error)
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
