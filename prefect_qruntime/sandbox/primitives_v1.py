"""Run the V1 programs of the legacy dialect: circuits and indices in, quasi-distributions or values out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefect_qruntime.sandbox import circuits as qc, encoding, primitives
from prefect_qruntime.sandbox.catalog import MAX_SHOTS
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.state import Run

DEFAULT_SHOTS = 4000


def sampler(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run a V1 sampler job; return `{"quasi_dists", "metadata"}` and the shots taken.

    Raises:
        InputError: If the params cannot be run.
    """
    circuits, indices, values = _evaluations(params)
    shots = _shots(params)
    dists: list[dict[str, float]] = []
    for number, (index, row) in enumerate(zip(indices, values, strict=True)):
        circuit = _load(circuits, index, run)
        if not circuit.num_clbits:
            raise InputError("The circuit has no classical bits: add measurements.")
        bound = _bind(circuit, row)
        taken = primitives.take_shots(bound, [[]], shots, run, run.seed + number)[0]
        counts = Counter(int(shot, 16) for shot in taken)
        # Bitstrings, as the service wrote them.
        dists.append({f"{key:0{circuit.num_clbits}b}": counts[key] / shots for key in sorted(counts)})
    metadata = [{"shots": shots, "circuit_metadata": {}} for _ in dists]
    return {"quasi_dists": dists, "metadata": metadata}, shots * len(dists)


def estimator(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run a V1 estimator job; return `{"values", "metadata"}` and the shots it stands for.

    Raises:
        InputError: If the params cannot be run.
    """
    from qiskit.primitives.containers.estimator_pub import EstimatorPub

    observables = _observables(params["observables"])
    chosen = params.get("observable_indices")
    chosen = list(range(len(observables))) if chosen is None else chosen
    circuits, indices, values = _evaluations(params, at_least=len(chosen))
    if len(chosen) == 1:
        chosen = chosen * len(indices)
    if len(chosen) != len(indices):
        raise InputError(f"There are {len(indices)} circuits for {len(chosen)} observables.")
    shots = _shots(params)
    precision = 1 / shots**0.5
    found, metadata = [], []
    mitigated = params.get("resilience_level", 0) >= 1
    for number, (index, place, row) in enumerate(zip(indices, chosen, values, strict=True)):
        circuit = _load(circuits, index, run)
        if place >= len(observables):
            raise InputError(f"There is no observable {place}.")
        try:
            pub = EstimatorPub.coerce((circuit, observables[place], row or None, precision))
        except Exception as error:
            raise InputError(f"The observable or the parameters do not fit: {error}") from error
        value, deviation = primitives.estimate(pub, shots, precision, run, run.seed + number, mitigated=mitigated)
        found.append(value[0])
        metadata.append({"variance": deviation[0] ** 2 * shots, "shots": shots})
    return {"values": found, "metadata": metadata}, shots * len(found)


def _evaluations(params: dict[str, Any], at_least: int = 1) -> tuple[list[Any], list[int], list[list[float]]]:
    circuits = params["circuits"]
    circuits = circuits if isinstance(circuits, list) else [circuits]
    sent = params.get("circuit_indices")
    indices = list(range(len(circuits))) if sent is None else list(sent)
    values = encoding.decode(params.get("parameter_values") or params.get("parameters")) or []
    if values and not isinstance(values[0], list) and not hasattr(values[0], "tolist"):
        values = [values]
    size = max(len(indices), at_least, len(values))
    if len(indices) == 1:
        indices *= size
    rows = [list(row) for row in values] or [[]]
    if len(rows) == 1:
        rows *= len(indices)
    if len(rows) != len(indices):
        raise InputError(f"There are {len(indices)} circuits for {len(rows)} sets of parameters.")
    return circuits, indices, rows


def _shots(params: dict[str, Any]) -> int:
    options = params.get("options") or {}
    places = (params.get("run_options") or {}, options.get("execution") or {}, options, params)
    for place in places:
        shots = place.get("shots") if isinstance(place, dict) else None
        if shots is not None:
            if isinstance(shots, bool) or not isinstance(shots, int) or not 1 <= shots <= MAX_SHOTS:
                raise InputError(f"The number of shots must be within 1..{MAX_SHOTS}, not {shots!r}.", 6000)
            return shots
    return DEFAULT_SHOTS


def _load(circuits: list[Any], index: int, run: Run) -> Any:
    if index >= len(circuits):
        raise InputError(f"There is no circuit {index}.")
    circuit = qc.load(circuits[index])
    qc.check_fits(circuit, run.backend, run.strict)
    return circuit


def _bind(circuit: Any, row: list[float]) -> Any:
    if len(row) != len(circuit.parameters):
        raise InputError(f"The circuit has {len(circuit.parameters)} parameters, {len(row)} values were sent.")
    return circuit.assign_parameters(row) if row else circuit


def _observables(sent: Any) -> list[Any]:
    items = sent if isinstance(sent, list) else [sent]
    found: list[Any] = []
    for item in items:
        if isinstance(item, str):
            found.append({item: 1.0})
        elif isinstance(item, dict) and "__type__" not in item:
            found.append(item)
        elif isinstance(item, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in item):
            summed: dict[str, float] = {}
            for label, coeff in item:
                summed[str(label)] = summed.get(str(label), 0.0) + float(coeff)
            found.append(summed)
        else:
            raise InputError("An observable must be a Pauli string, a dict or a list of [pauli, coeff].")
    return found
