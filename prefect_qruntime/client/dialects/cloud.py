"""The present IBM Quantum Compute Service. Sources: IBM's OpenAPI document 0.45.3, the Qiskit Runtime client 0.51."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.dialects.base import Dialect
from prefect_qruntime.client.inputs.circuits import encode_array
from prefect_qruntime.client.inputs.spec import JobSpec, Pub, check_scalar_bits

__all__ = ["Cloud", "v2_params"]

# Estimator keys that stand beside `options` on the wire, not in them.
_BESIDE = ("resilience_level", "precision")


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
        if spec.shots is not None:
            options.setdefault("default_shots", spec.shots)
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
