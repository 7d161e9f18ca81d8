"""Run the programs `noise-learner` and `calibrate`, which report the sandbox's own noise.

The learned models are those of the simulation: depolarising gates and readout that flips bits, each rate with the
scatter that the number of shots leaves. Nothing is simulated, so a noise learner job takes no time.
"""

from __future__ import annotations

import base64
import io
import math
import operator
import zlib
from itertools import accumulate, product
from typing import Any

from prefect_qruntime.sandbox import circuits as qc, encoding, tensors
from prefect_qruntime.sandbox.catalog import ERROR_1Q, ERROR_2Q, ERROR_READOUT
from prefect_qruntime.sandbox.clock import iso
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.state import Run

_DEFAULTS = {"shots_per_randomization": 128, "num_randomizations": 32, "layer_pair_depths": [0, 1, 2, 4, 16, 32]}
_DEFAULTS_V2 = {**_DEFAULTS, "max_layers_to_learn": 4, "twirling_strategy": "active-accum"}
_TWO_QUBIT_PAULIS = tuple(first + second for first, second in product("IXYZ", repeat=2))[1:]
# Twirling turns each qubit by two physical gates around a layer.
_DRESSING = 2 * ERROR_1Q / 4


def noise_learner(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run a noise learner job, V3 if its params have a schema version; return its result and the shots it stands for.

    Raises:
        InputError: If a circuit or an instruction cannot be learned.
    """
    return _learn_boxes(params, run) if "schema_version" in params else _learn_layers(params, run)


def calibrate(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Calibrate the backend, which changes nothing here."""
    span = {"start": iso(run.started), "stop": iso(run.started + run.duration)}
    return {"schema_version": params.get("schema_version", "v0.1"), **span}, 0


def _learn_boxes(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    import numpy as np

    options = {**_DEFAULTS, **params["options"]}
    circuit = encoding.decode_circuit(encoding.unbase64(params["instructions"]["circuit_b64"]))
    qc.check_fits(circuit, run.backend, strict=False)
    random = np.random.default_rng(run.seed)
    shots = options["shots_per_randomization"] * options["num_randomizations"]
    data = []
    for number, instruction in enumerate(circuit.data):
        if instruction.operation.name != "box":
            raise InputError(f"Instruction {number} must be a box, not {instruction.operation.name}.")
        order = sorted(range(len(instruction.qubits)), key=lambda n: circuit.find_bit(instruction.qubits[n]).index)
        body = instruction.operation.blocks[0]
        measured = any(item.operation.name == "measure" for item in body.data)
        terms = _readout(len(order), run) if measured else _layer(body, order, run)
        data.append(_learned(terms, len(order), measured, options, random))
    depths = 1 if not data else len(options["layer_pair_depths"])
    return {"schema_version": params["schema_version"], "data": data}, shots * depths * len(data)


def _readout(width: int, run: Run) -> dict[tuple[str, tuple[int, ...]], float]:
    error = ERROR_READOUT if run.backend.noisy else 0.0
    return {("X", (qubit,)): -math.log(1 - 2 * error) / 2 for qubit in range(width)}


def _layer(body: Any, order: list[int], run: Run) -> dict[tuple[str, tuple[int, ...]], float]:
    """Return the rates of all Paulis on each qubit and on each pair with a gate, by Pauli and qubits."""
    dressing, gate = (_DRESSING, ERROR_2Q / 16) if run.backend.noisy else (0.0, 0.0)
    rates: dict[tuple[str, tuple[int, ...]], float] = {
        (letter, (qubit,)): dressing for qubit in range(len(order)) for letter in "XYZ"
    }
    for item in body.data:
        if len(item.qubits) != 2 or item.operation.name == "barrier":
            continue
        pair = sorted(order.index(body.find_bit(qubit).index) for qubit in item.qubits)
        for letters in _TWO_QUBIT_PAULIS:
            there = tuple(qubit for qubit, letter in zip(pair, letters, strict=True) if letter != "I")
            key = (letters.replace("I", ""), there)
            rates[key] = rates.get(key, 0.0) + gate
    return rates


def _learned(
    terms: dict[tuple[str, tuple[int, ...]], float], width: int, measured: bool, options: dict[str, Any], random: Any
) -> dict[str, Any]:
    import numpy as np

    shots = max(1, options["shots_per_randomization"] * options["num_randomizations"])
    true = np.array(list(terms.values()), dtype=float)
    deviations = np.sqrt(true / shots) / max([1, *options["layer_pair_depths"]])
    rates = np.clip(true + deviations * random.standard_normal(len(true)), 0.0, None)
    kept: dict[str, Any]
    if measured:
        kept = {"fraction_kept": 1.0, "success_rates": {}}
    else:
        depths = [str(depth) for depth in options["layer_pair_depths"]]
        kept = {"fraction_kept": dict.fromkeys(depths, 1.0), "success_rates": {depth: {} for depth in depths}}
    return {
        "generators_sparse": [[[letters, list(qubits)]] for letters, qubits in terms],
        "num_qubits": width,
        "rates": tensors.write(rates, packed=False),
        "rates_std": tensors.write(deviations, packed=False),
        "metadata": {"learning_protocol": "trex" if measured else "lindblad", "post_selection": kept},
    }


# --- the first noise learner


def _learn_layers(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    import numpy as np

    options = {**_DEFAULTS_V2, **(params.get("options") or {})}
    layers: dict[tuple[Any, ...], int] = {}
    for sent in params["circuits"]:
        circuit = qc.load(sent)
        qc.check_fits(circuit, run.backend, run.strict)
        for layer in _two_qubit_layers(circuit, options["twirling_strategy"]):
            layers[layer] = layers.get(layer, 0) + 1
    most = sorted(layers, key=lambda layer: -layers[layer])[: options["max_layers_to_learn"]]
    random = np.random.default_rng(run.seed)
    data = [_layer_error(layer, options, run, random) for layer in most]
    names = ("max_layers_to_learn", "shots_per_randomization", "num_randomizations", "layer_pair_depths")
    used = {name: options[name] for name in (*names, "twirling_strategy")}
    shots = options["shots_per_randomization"] * options["num_randomizations"] * len(options["layer_pair_depths"])
    return {"data": data, "metadata": {"backend": run.backend.name, "input_options": used}}, shots * len(data)


def _two_qubit_layers(circuit: Any, strategy: str) -> list[tuple[Any, ...]]:
    """Return the layers of two-qubit gates; parameters play no role.

    Args:
        circuit: The circuit.
        strategy: Which qubits are learned with a layer: those of its own gates (`active`), of all gates until then
            (`active-accum`), of all gates of the circuit (`active-circuit`), or all that there are (`all`).

    Raises:
        InputError: There is no such strategy.

    Returns:
        For each layer the gates, sorted, as (name, qubits), and the qubits.
    """
    layers: list[list[tuple[str, tuple[int, int]]]] = []
    depth = [0] * circuit.num_qubits
    for item in circuit.data:
        places = [circuit.find_bit(qubit).index for qubit in item.qubits]
        if item.operation.name == "barrier" and places:
            level = max(depth[place] for place in places)
        elif len(places) == 2:
            level = max(depth[place] for place in places) + 1
            if len(layers) < level:
                layers.append([])
            layers[level - 1].append((item.operation.name, (places[0], places[1])))
        else:
            continue
        for place in places:
            depth[place] = level
    own = [{place for _, places in layer for place in places} for layer in layers]
    qubits = {
        "active": own,
        "active-accum": list(accumulate(own, operator.or_)),
        "active-circuit": [set().union(*own)] * len(own),
        "all": [set(range(circuit.num_qubits))] * len(own),
    }
    if strategy not in qubits:
        raise InputError(f"twirling_strategy must be one of {', '.join(qubits)}, not {strategy!r}.")
    return [
        (tuple(sorted(layer)), tuple(sorted(places))) for layer, places in zip(layers, qubits[strategy], strict=True)
    ]


def _layer_error(layer: tuple[Any, ...], options: dict[str, Any], run: Run, random: Any) -> dict[str, Any]:
    import numpy as np
    from qiskit import QuantumCircuit, qpy
    from qiskit.circuit.library import get_standard_gate_name_mapping

    gates, qubits = layer[0], list(layer[1])
    circuit = QuantumCircuit(len(qubits))
    known = get_standard_gate_name_mapping()
    for name, places in gates:
        gate = known.get(name)
        circuit.append(known["cz"] if gate is None or gate.params else gate, [qubits.index(place) for place in places])
    terms = _layer(circuit, list(range(len(qubits))), run)
    rates = np.frombuffer(
        encoding.unbase64(_learned(terms, len(qubits), False, options, random)["rates"]["data"]), "<f8"
    )
    labels = []
    for letters, places in terms:
        label = ["I"] * len(qubits)
        for letter, place in zip(letters, places, strict=True):
            label[len(qubits) - 1 - place] = letter
        labels.append("".join(label))
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, version=min(17, qpy.QPY_VERSION))
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    generators = _typed(
        "settings", "qiskit.quantum_info.operators.symplectic.pauli_list", "PauliList", {"data": labels}
    )
    home = "qiskit_ibm_runtime.utils.noise_learner_result"
    error = _typed("_json", home, "PauliLindbladError", {"generators": generators, "rates": encoding.array(rates)})
    found = {"circuit": {"__type__": "QuantumCircuit", "__value__": packed}, "qubits": qubits, "error": error}
    return _typed("_json", home, "LayerError", found)


def _typed(kind: str, module: str, name: str, value: Any) -> dict[str, Any]:
    return {"__type__": kind, "__module__": module, "__class__": name, "__value__": value}
