"""The service of 2022 to 2024, switched off in July 2025; kept for mirrors and tests.

Sources: the Qiskit Runtime clients 0.1 to 0.20 and IBM's migration guides. Its `params` are the form before
August 2024: one text, one flat list of values, one observable each.
"""

from __future__ import annotations

from typing import Any

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.dialects.base import Dialect
from prefect_qruntime.client.inputs.circuits import load_qpy
from prefect_qruntime.client.inputs.parameters import shape_of
from prefect_qruntime.client.inputs.spec import JobSpec, Pub
from prefect_qruntime.client.parsing import read_id
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import SessionRef

__all__ = ["Legacy", "v1_params"]

_V1_RUN_OPTIONS = {"execution": {"init_qubits"}, "simulator": {"seed_simulator"}}


class Legacy(Dialect):
    """The service of 2022 to 2024."""

    name = "legacy"
    offers_stream = True

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
        # Bound here: the exporter may rename parameters, and the legacy programs sort by name.
        values = _v1_point(pub, f"{field}.parameters")
        circuit = circuit.assign_parameters(dict(zip(circuit.parameters, values, strict=True)))
    # OpenQASM 2 is what every legacy program read; it has no parameters and no control flow.
    for export in (qasm2.dumps, qasm3.dumps):
        try:
            return str(export(circuit))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise InvalidInput(f"cannot be written as OpenQASM for the legacy dialect: {reason}", field=f"{field}.circuit")


def _v1_values(pub: Pub, field: str) -> list[float]:
    return _v1_point(pub, field) if isinstance(pub.circuit, str) else []


def _v1_point(pub: Pub, field: str) -> list[float]:
    values = pub.parameters
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
        if name == "default_shots" and value is not None:
            run["shots"] = value
        elif name == "resilience_level":
            resilience["level"] = value
        elif name in _V1_RUN_OPTIONS and set(value) <= _V1_RUN_OPTIONS[name]:
            run.update(value)
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
