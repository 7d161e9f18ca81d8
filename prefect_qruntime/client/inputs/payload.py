"""A checked `JobSpec` as the `params` object of one dialect.

`v2_params` holds to the strict schema of IBM's OpenAPI document (unknown keys fail there);
`v1_params` is the form before August 2024: one text, one flat list of values, one observable each.
"""

from __future__ import annotations

from typing import Any

import orjson

from prefect_qruntime.client.inputs.circuits import encode_array, load_qpy
from prefect_qruntime.client.inputs.fields import MAX_PAYLOAD_BYTES
from prefect_qruntime.client.inputs.parameters import shape_of
from prefect_qruntime.client.inputs.spec import JobSpec, Pub, check_scalar_bits
from prefect_qruntime.errors import InvalidInput

__all__ = ["check_size", "v1_params", "v2_params"]

# Estimator keys that stand beside `options` on the wire, not in them.
_BESIDE = ("resilience_level", "precision")
_V1_RUN_OPTIONS = {"execution": {"init_qubits"}, "simulator": {"seed_simulator"}}


def v2_params(spec: JobSpec) -> dict[str, Any]:
    """The complete `params` of `POST /v1/jobs`.

    The estimator has no `shots` beside its options: `shots=` becomes `options.default_shots` there,
    unless that is set.

    Raises:
        InvalidInput: A circuit measures into bits that this dialect's results do not have.
    """
    check_scalar_bits(spec)
    return _v2_params(spec)


def _v2_params(spec: JobSpec) -> dict[str, Any]:
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
        if spec.shots is not None:
            options.setdefault("default_shots", spec.shots)
    elif spec.shots is not None:
        params["shots"] = spec.shots
    if options:
        params["options"] = options
    return params


def v1_params(spec: JobSpec) -> dict[str, Any]:
    """The complete `params` of a legacy `POST /jobs`.

    Raises:
        InvalidInput: Something this form cannot say: different shots per PUB, several parameter
            points or observables in one PUB, a precision, options it never had.
    """
    if spec.prepared is not None:
        raise InvalidInput("the legacy dialect has no executor; use route='service'", field="route")
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


def check_size(spec: JobSpec) -> None:
    """Refuse what is over the service's limit, before it travels.

    Raises:
        InvalidInput: The JSON text of the payload is larger than 50 MB.
    """
    # Upper bounds first (a character takes at most six bytes of JSON, a number 25), as they cost
    # nothing: nearly every payload is far below.
    bound = 25 * _leaves(spec.options)
    for pub in spec.pubs:
        circuit = pub.circuit if isinstance(pub.circuit, str) else pub.circuit["__value__"]
        bound += 6 * len(circuit) + 100
        bound += 25 * (_leaves(pub.parameters) + _leaves(pub.observables))
    if spec.params is None and spec.prepared is None and bound <= MAX_PAYLOAD_BYTES // 2:
        return
    size = len(orjson.dumps(_v2_params(spec)))
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidInput(
            f"{size / 1e6:.1f} MB of input; the service takes at most {MAX_PAYLOAD_BYTES // 10**6} MB a job",
            field="pubs" if spec.params is None else "params",
        )


def _leaves(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_leaves, value)) + 1
    if isinstance(value, dict):
        return sum(len(key) + _leaves(item) for key, item in value.items()) + 1
    return len(value) if isinstance(value, str) else 1


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
