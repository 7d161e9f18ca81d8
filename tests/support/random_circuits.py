"""Random circuits, built the same way from a seed in any process, and the same circuit with one change.

Run as a script it prints the digests of a range of seeds: `python random_circuits.py FIRST COUNT WARM_UP`.
"""

from __future__ import annotations

import base64
import io
import random
import struct
import sys
import zlib
from typing import Any

from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qpy
from qiskit.circuit import Parameter, ParameterVector

CHANGES = ("angle", "sign", "absolute", "gate", "qubits", "register", "drop", "order")


def build(seed: int, change: str | None = None) -> QuantumCircuit:
    """A circuit of a seed; with a change, the same one with exactly that difference."""
    draw = random.Random(seed)
    width = draw.randint(2, 5)
    circuit = QuantumCircuit(QuantumRegister(width), ClassicalRegister(width))
    free = Parameter("theta")
    vector = ParameterVector("v", draw.randint(1, 12))
    expressions = [
        lambda a, b, k: k * a + b,
        lambda a, b, k: a * b + k,
        lambda a, b, k: (a + k).sin() * b,
        lambda a, b, k: (a - b) / 3 + k,
        lambda a, b, k: (k * a).exp() + b,
    ]
    steps: list[tuple[str, Any, list[int]]] = []
    for _ in range(draw.randint(4, 16)):
        kind = draw.choice(("fixed", "free", "expression", "pair", "plain", "controlled"))
        qubits = draw.sample(range(width), 2)
        if kind == "fixed":
            steps.append((draw.choice(("rx", "ry", "rz", "p")), draw.uniform(-4, 4), qubits[:1]))
        elif kind == "free":
            steps.append((draw.choice(("rx", "ry", "rz")), free, qubits[:1]))
        elif kind == "expression":
            value = draw.choice(expressions)(free, vector[draw.randrange(len(vector))], round(draw.uniform(-2, 2), 3))
            steps.append((draw.choice(("rx", "ry", "rz")), value, qubits[:1]))
        elif kind == "pair":
            steps.append((draw.choice(("cx", "cz", "swap", "ecr")), None, qubits))
        elif kind == "controlled":
            steps.append((draw.choice(("crx", "cp", "rzz")), draw.uniform(-4, 4), qubits))
        else:
            steps.append((draw.choice(("h", "x", "sx", "s", "tdg")), None, qubits[:1]))
    # The place of the change: a step that has an angle, so that each change finds what it changes.
    steps.append(("ry", free + round(draw.uniform(0.1, 2), 3), [draw.randrange(width)]))
    steps.append(("rx", 0.75, [0]))
    gate, value, qubits = steps[-2]
    if change == "angle":
        value = value + 1e-9
    elif change == "sign":
        value = -value
    elif change == "absolute":
        value = value.abs()
    elif change == "gate":
        gate = "rz"
    elif change == "qubits":
        qubits = [(qubits[0] + 1) % width]
    steps[-2] = gate, value, qubits
    if change == "drop":
        steps.pop()
    if change == "order":
        steps[-1] = ("rx", 0.75, [1])
    for gate, value, qubits in steps:
        getattr(circuit, gate)(*(() if value is None else (value,)), *qubits)
    circuit.measure(range(width), reversed(range(width)) if change == "register" else range(width))
    return circuit


def executor_params(circuit: QuantumCircuit) -> dict[str, Any]:
    """A raw payload as IBM's client writes it."""
    target = io.BytesIO()
    qpy.dump([circuit], target, version=17)
    count = circuit.num_parameters
    data = zlib.compress(struct.pack(f"<{count}d", *([0.5] * count)))
    arguments = {"data": base64.b64encode(data).decode(), "shape": [count], "dtype": "f64"}
    return {
        "schema_version": "v2.0",
        "options": {},
        "quantum_program": {
            "shots": 10,
            "circuits": {
                "b64_data": base64.b64encode(zlib.compress(target.getvalue())).decode(),
                "qpy_version": 17,
                "num_programs": 1,
            },
            "items": [{"item_type": "circuit", "circuit_arguments": arguments, "shape": [], "chunk_size": "auto"}],
        },
    }


def digest(circuit: QuantumCircuit) -> str:
    """The digest of a submission of the raw payload."""
    from prefect_qruntime.client.programs import make_spec

    spec = make_spec(None, backend="b", program_id="executor", params=executor_params(circuit))
    assert not spec.doubts, spec.doubts
    return spec.digest()


if __name__ == "__main__":
    first, count, warm_up = map(int, sys.argv[1:])
    for _ in range(warm_up):  # another count of circuits and registers made before
        QuantumCircuit(1, 1), QuantumRegister(1), ClassicalRegister(1)
    for seed in range(first, first + count):
        print(digest(build(seed)), digest(build(seed, CHANGES[seed % len(CHANGES)])))
