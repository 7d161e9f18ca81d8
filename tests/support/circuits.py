"""Circuits that people run, as OpenQASM 3 text and as `QuantumCircuit`."""

from __future__ import annotations

import math
import random
from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

HEAD = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'

BELL = HEAD + "qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;"
GHZ = HEAD + "bit[4] m; h $0; cx $0, $1; cx $1, $2; cx $2, $3; " + " ".join(f"m[{i}] = measure ${i};" for i in range(4))
TELEPORTATION = HEAD + (
    "qubit[3] q; bit[1] a; bit[1] b; bit[1] out; ry(1.1) q[0]; h q[1]; cx q[1], q[2]; cx q[0], q[1]; h q[0]; "
    "a[0] = measure q[0]; b[0] = measure q[1]; if (b[0]) { x q[2]; } if (a[0]) { z q[2]; } out[0] = measure q[2];"
)
ANSATZ = HEAD + (
    "input float[64] theta; input float[64] alpha; qubit[2] q; bit[2] meas; ry(theta) q[0]; rx(alpha) q[1]; "
    "cx q[0], q[1]; rz(theta / 2) q[1]; ry(alpha) q[1]; meas = measure q;"
)


def qaoa() -> QuantumCircuit:
    """Max-cut on a ring of four, one layer."""
    beta, gamma = Parameter("beta"), Parameter("gamma")
    circuit = QuantumCircuit(4)
    circuit.h(range(4))
    for place in range(4):
        circuit.rzz(2 * gamma, place, (place + 1) % 4)
    circuit.rx(2 * beta, range(4))
    circuit.measure_all()
    return circuit


def random_text(seed: int, width: int = 3, depth: int = 12, *, measured: bool = False) -> str:
    """A random circuit on physical or on declared qubits."""
    draw = random.Random(seed)
    physical = draw.random() < 0.5
    names = [f"${place}" if physical else f"q[{place}]" for place in range(width)]
    lines = [] if physical else [f"qubit[{width}] q;"]
    lines += [f"id {names[-1]};"]  # the highest is named, so that a physical circuit has them all
    for _ in range(depth):
        one, other = draw.sample(names, 2)
        angle = draw.uniform(-math.pi, math.pi)
        lines.append(
            draw.choice((f"rx({angle}) {one};", f"ry({angle}) {one};", f"h {one};", f"cx {one}, {other};", f"t {one};"))
        )
    if measured:
        lines += [f"bit[{width}] c;", *(f"c[{place}] = measure {name};" for place, name in enumerate(names))]
    return HEAD + " ".join(lines)


def random_observable(draw: random.Random, width: int, letters: str = "IXYZ") -> dict[str, float]:
    """A few random terms."""
    return {
        "".join(draw.choice(letters) for _ in range(width)): round(draw.uniform(-2, 2), 3) or 1.0
        for _ in range(draw.randint(1, 5))
    }


def exact(circuit: Any, observable: dict[str, float]) -> float:
    """The expectation value of an observable, with projectors, by its dense matrix."""
    from qiskit.quantum_info import SparseObservable, SparsePauliOp, Statevector

    operator = SparsePauliOp.from_sparse_observable(SparseObservable.from_list(list(observable.items())))
    return float(Statevector(circuit).expectation_value(operator).real)
