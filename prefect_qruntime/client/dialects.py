"""The two dialects of one service: headers, bodies and `params`.

Callers use a `Dialect` and never ask which one it is.

- `Cloud` is the present IBM Quantum Compute Service. Sources: IBM's OpenAPI document 0.45.3, the Qiskit Runtime client
  0.51.
- `Legacy` is the service of 2022 to 2024, switched off in July 2025; kept for mirrors and tests. Sources: the Qiskit
  Runtime clients 0.1 to 0.20 and IBM's migration guides. Its `params` are the form before August 2024: one text, one
  flat list of values, one observable each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.inputs.pub_values import shape_of
from prefect_qruntime.client.inputs.pubs import encode_array, load_qpy, parameter_values
from prefect_qruntime.client.inputs.spec import JobSpec, Pub, check_scalar_bits
from prefect_qruntime.client.parsing import read_id, read_string
from prefect_qruntime.client.programs.expectation import in_one_register, in_standard_gates
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef, SessionRef

__all__ = [
    "Cloud",
    "Dialect",
    "Legacy",
    "dialect_of",
    "v1_params",
    "v2_params",
]

# Estimator keys that stand beside `options` on the wire, not in them.
_BESIDE = ("resilience_level", "precision")
_V1_RUN_OPTIONS = {"execution": {"init_qubits"}, "simulator": {"seed_simulator"}}


class Dialect:
    """What both dialects share; each one overrides what differs."""

    name = ""
    offers_stream = False
    """Whether hosts of this dialect are known to have the job websocket."""
    offers_batches = True
    """Whether the service tells a batch, which its jobs are charged for, from a session."""
    backends_query: Mapping[str, str] = {}
    """Fields that `GET /backends` returns only on request."""

    def headers(self, connection: Connection) -> dict[str, str]:
        """Headers of every request, authorization aside."""
        raise NotImplementedError

    def job_body(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> dict[str, Any]:
        """The body of `POST /jobs`."""
        body: dict[str, Any] = {
            "program_id": spec.wire_program,
            "backend": spec.backend,
            "params": self.params(spec),
            "tags": list(tags),
        }
        if spec.max_execution_time is not None:
            body["cost"] = spec.max_execution_time
        if spec.private:
            body["private"] = True
        self._put_session(body, session)
        return body

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """The program's own payload."""
        raise NotImplementedError

    def _put_session(self, body: dict[str, Any], session: SessionRef | None) -> None:
        if session is not None and session.id is not None:
            body["session_id"] = session.id

    def created(self, body: dict[str, Any], spec: JobSpec, session: SessionRef | None) -> JobRef:
        """Read the answer to `POST /jobs`."""
        job_id = read_id(body.get("id"), "accepted job")
        return JobRef(
            id=job_id,
            backend=read_string(body.get("backend")) or spec.backend,
            program_id=spec.program_id,
            session=self._bind(body, session),
            private=spec.private,
            widths=spec.widths,
        )

    def _bind(self, body: dict[str, Any], session: SessionRef | None) -> SessionRef | None:
        return session

    def session_body(self, backend: str, mode: str, max_ttl: int | None) -> dict[str, Any] | None:
        """The body of `POST /sessions`, or None if a session begins with its first job."""
        body: dict[str, Any] = {"mode": mode, "backend": backend}
        if max_ttl is not None:
            body["max_ttl"] = max_ttl
        return body

    def unbound_session(self, backend: str, mode: str, max_ttl: int | None) -> SessionRef:
        """A session that its first job will make."""
        return SessionRef(mode=self.session_mode(mode), backend=backend, max_ttl=max_ttl)

    def session_mode(self, mode: str) -> Literal["dedicated", "batch"]:
        """What is opened in a mode."""
        return "batch" if mode == "batch" and self.offers_batches else "dedicated"

    def stream_path(self, job_id: str) -> str:
        """Where the job's websocket is, if there is one."""
        return f"/stream/jobs/{job_id}"


class Cloud(Dialect):
    """The present IBM Quantum Compute Service."""

    name = "cloud"
    backends_query: Mapping[str, str] = {"fields": "wait_time_seconds"}

    def headers(self, connection: Connection) -> dict[str, str]:
        """Headers of every request, always with the API version: without it the service falls back to an old one."""
        return {
            "IBM-API-Version": connection.api_version,
            "X-Qx-Client-Application": connection.application,
        }

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """V2 PUBs, or the raw payload."""
        return v2_params(spec)


def v2_params(spec: JobSpec) -> dict[str, Any]:
    """The complete `params` of `POST /v1/jobs`, by the strict schema of IBM's OpenAPI document.

    The estimator has no `shots` beside its options: `shots=` becomes `options.default_shots` there,
    unless that is set.

    Raises:
        InvalidInput: A circuit measures into bits that this dialect's results do not have.
    """
    check_scalar_bits(spec)
    ready = spec.prepared if spec.params is None else spec.params
    if ready is not None:
        return dict(ready)
    options = dict(spec.options)
    params: dict[str, Any] = {
        "version": 2,
        "support_qiskit": spec.support_qiskit,
        "pubs": [_v2_pub(pub, spec) for pub in spec.pubs],
    }
    if spec.program_id == "estimator":
        for name in _BESIDE:
            if name in options:
                params[name] = options.pop(name)
        # An option that is None is one that is not set.
        if spec.shots is not None and options.get("default_shots") is None:
            options["default_shots"] = spec.shots
    elif spec.shots is not None:
        params["shots"] = spec.shots
    if options:
        params["options"] = options
    return params


def _v2_pub(pub: Pub, spec: JobSpec) -> list[Any]:
    parameters = pub.parameters
    if isinstance(parameters, list) and not isinstance(pub.circuit, str):
        parameters = encode_array(parameters)
    if spec.program_id == "estimator":
        parts = [pub.circuit, pub.observables, parameters, pub.precision]
        least = 2
    else:
        parts = [pub.circuit, parameters, pub.shots]
        least = 1
    while len(parts) > least and parts[-1] is None:
        parts.pop()
    return parts


class Legacy(Dialect):
    """The service of 2022 to 2024."""

    name = "legacy"
    offers_stream = True
    offers_batches = False  # `start_session` has no mode: what it opens is charged by the clock

    def headers(self, connection: Connection) -> dict[str, str]:
        """Headers of every request, with the prefix of the application's name that this service requires."""
        return {"x-qx-client-application": f"qiskit-version-2/0.39.2/{connection.application}"}

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """V1 `circuits`, or the raw payload."""
        return v1_params(spec)

    def _put_session(self, body: dict[str, Any], session: SessionRef | None) -> None:
        if session is None:
            return
        if session.id is not None:
            body["session_id"] = session.id
            return
        body["start_session"] = True
        if session.max_ttl is not None:
            body["session_time"] = session.max_ttl

    def _bind(self, body: dict[str, Any], session: SessionRef | None) -> SessionRef | None:
        if session is None or session.id is not None:
            return session
        return session.model_copy(update={"id": read_id(body.get("session_id") or body.get("id"), "session")})

    def session_body(self, backend: str, mode: str, max_ttl: int | None) -> dict[str, Any] | None:
        """None, because the first job opens the session."""
        return None


def v1_params(spec: JobSpec) -> dict[str, Any]:
    """The complete `params` of a legacy `POST /jobs`.

    Raises:
        InvalidInput: Something that this form cannot express: different shots per PUB, several parameter
            points or observables in one PUB, a precision, options it never had.
    """
    if spec.prepared is not None:
        raise InvalidInput("the legacy dialect has no executor; use route='service'", field="route")
    if spec.dry_run:
        raise InvalidInput("the legacy dialect has no mock backends; leave dry_run out", field="dry_run")
    if spec.params is not None:
        return dict(spec.params)
    places = list(range(len(spec.pubs)))
    params: dict[str, Any] = {
        "circuits": [_v1_circuit(pub, f"pubs[{place}]") for place, pub in enumerate(spec.pubs)],
        "circuit_indices": places,
        "parameter_values": [_v1_values(pub, f"pubs[{place}].parameters") for place, pub in enumerate(spec.pubs)],
    }
    if spec.program_id == "estimator":
        params["observables"] = [_v1_observable(pub, f"pubs[{place}]") for place, pub in enumerate(spec.pubs)]
        params["observable_indices"] = places
    run_options, resilience = _v1_options(spec)
    if run_options:
        params["run_options"] = run_options
    if resilience:
        params["resilience_settings"] = resilience
    return params


def _v1_circuit(pub: Pub, field: str) -> str:
    if isinstance(pub.circuit, str):
        return pub.circuit
    circuit = load_qpy(pub.circuit, field=f"{field}.circuit")
    from qiskit import qasm2, qasm3

    if circuit.num_parameters:
        # Bound here: the exporter may rename parameters, and the legacy programs sort by name. Of an encoded circuit
        # their names and order are known only now.
        found = parameter_values(pub.parameters, circuit, field=f"{field}.parameters")
        values = _v1_point(found, f"{field}.parameters")
        circuit = circuit.assign_parameters(dict(zip(circuit.parameters, values, strict=True)))
    circuit = _in_order(circuit, field=f"{field}.circuit")
    # OpenQASM 2 is what every legacy program read; it has no parameters and no control flow.
    for export in (qasm2.dumps, qasm3.dumps):
        try:
            return str(export(in_standard_gates(circuit)))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise InvalidInput(f"cannot be written as OpenQASM for the legacy dialect: {reason}", field=f"{field}.circuit")


def _in_order(circuit: Any, *, field: str) -> Any:
    """The same circuit with qubits and bits that a text declares in its order: a result is known by their places only.

    A text has registers one after the other, and bits of none before or behind them.
    """
    circuit = in_one_register(circuit)
    if [bit for register in circuit.cregs for bit in register] == circuit.clbits:
        return circuit
    from qiskit.circuit import ClassicalRegister, QuantumCircuit

    used = {register.name for register in circuit.qregs}
    name = next(name for number in range(len(used) + 1) if (name := f"c{number or ''}") not in used)
    target = QuantumCircuit(circuit.qubits, *circuit.qregs, ClassicalRegister(circuit.num_clbits, name))
    found = target.compose(circuit, target.qubits, target.clbits)
    if len(found.cregs) > 1:  # one that a condition names, with the same bits
        raise InvalidInput(
            "has a condition on a register, and bits that are in no register or in several, which OpenQASM cannot "
            "express. Declare registers that hold each bit once",
            field=field,
        )
    return found


def _v1_values(pub: Pub, field: str) -> list[float]:
    return _v1_point(pub.parameters, field) if isinstance(pub.circuit, str) else []


def _v1_point(values: Any, field: str) -> list[float]:
    if values is None:
        return []
    if isinstance(values, dict):
        # The legacy programs bind by position, in the order qiskit keeps: sorted by name.
        for name, item in values.items():
            if set(shape_of(item, field=field)) - {1}:
                raise InvalidInput(
                    "the legacy dialect takes one parameter point per PUB: give one PUB for each",
                    field=f"{field}.{name}",
                )
        return [_single(item) for _, item in sorted(values.items())]
    while values and isinstance(values[0], list):
        if len(values) > 1:
            raise InvalidInput(
                "the legacy dialect takes one parameter point per PUB: give one PUB for each", field=field
            )
        values = values[0]
    return list(values)


def _single(value: Any) -> float:
    while isinstance(value, list):
        value = value[0]
    return float(value)


def _v1_observable(pub: Pub, field: str) -> Any:
    if pub.precision is not None:
        raise InvalidInput("the legacy dialect has no precision; use shots=", field=f"{field}.precision")
    value = pub.observables
    while isinstance(value, list):
        if len(value) > 1:
            raise InvalidInput(
                "the legacy dialect takes one observable per PUB: give one PUB for each",
                field=f"{field}.observables",
            )
        value = value[0]
    return value


def _v1_options(spec: JobSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    run: dict[str, Any] = {}
    resilience: dict[str, Any] = {}
    for name, value in spec.options.items():
        if value is None:
            continue
        if name == "default_shots":
            run["shots"] = value
        elif name == "resilience_level":
            resilience["level"] = value
        elif name in _V1_RUN_OPTIONS and _set_in(value) <= _V1_RUN_OPTIONS[name]:
            run.update({part: value[part] for part in _set_in(value)})
        else:
            raise InvalidInput("the legacy dialect has no such option", field=f"options.{name}")
    per_pub = {pub.shots for pub in spec.pubs}
    if spec.shots is not None:
        run["shots"] = spec.shots
    if per_pub != {None}:
        # A PUB without shots of its own falls back to the common number.
        wanted = {shots if shots is not None else run.get("shots") for shots in per_pub}
        if len(wanted) > 1:
            place = next(place for place, pub in enumerate(spec.pubs) if pub.shots != spec.pubs[0].shots)
            raise InvalidInput(
                "the legacy dialect takes one number of shots for all PUBs", field=f"pubs[{place}].shots"
            )
        run["shots"] = wanted.pop()
    return run, resilience


def _set_in(group: Mapping[str, Any]) -> set[str]:
    return {name for name, value in group.items() if value is not None}


_DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Cloud(), Legacy())}


def dialect_of(connection: Connection) -> Dialect:
    """The dialect a connection speaks."""
    try:
        return _DIALECTS[connection.dialect]
    except KeyError:
        raise InvalidInput(f"must be one of {sorted(_DIALECTS)}, not {connection.dialect!r}", field="dialect") from None
