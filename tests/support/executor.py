"""A small executor for tests: runs a quantum program with Aer and answers in the form of any schema version.

Written with qiskit and numpy on purpose, so that nothing of the code under test is used to check it.
"""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
from qiskit import qasm3, qpy, transpile
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2

TIMES = {"start": "2026-11-25T10:00:00Z", "stop": "2026-11-25T10:00:02.5Z"}


def tensor(array: Any, *, packed: bool = True) -> dict[str, Any]:
    """An array as the service writes it."""
    array = np.asarray(array)
    names = {"float64": "f64", "bool": "bool", "uint8": "u8", "complex128": "c128"}
    data = np.packbits(array.ravel(), bitorder="little").tobytes() if array.dtype == bool else array.tobytes()
    text = base64.b64encode(zlib.compress(data) if packed else data).decode()
    return {"data": text, "shape": list(array.shape), "dtype": names[array.dtype.name]}


def values(found: dict[str, Any], *, packed: bool = True) -> Any:
    """The float array of a tensor."""
    raw = base64.b64decode(found["data"])
    return np.frombuffer(zlib.decompress(raw) if packed else raw, "<f8").reshape(found["shape"])


def circuits_of(program: dict[str, Any]) -> list[Any]:
    """The circuits of a v2.0 program."""
    sent = program["circuits"]
    if "data" in sent:
        return [qasm3.loads(text) for text in sent["data"]]
    return list(qpy.load(io.BytesIO(zlib.decompress(base64.b64decode(sent["b64_data"])))))


def run(params: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """Run a v2.0 program; return the result's body."""
    assert params["schema_version"] == "v2.0"
    program = params["quantum_program"]
    circuits = circuits_of(program)
    assert len(circuits) == len(program["items"])
    pubs = [
        (circuit, values(item["circuit_arguments"])) for circuit, item in zip(circuits, program["items"], strict=True)
    ]
    for circuit, arguments in pubs:
        assert arguments.shape[-1] == circuit.num_parameters
    sampler = SamplerV2(seed=seed)
    known = transpile([circuit for circuit, _ in pubs], AerSimulator(), optimization_level=0)
    result = sampler.run(
        [(circuit, pub[1]) if circuit.num_parameters else (circuit,) for circuit, pub in zip(known, pubs, strict=True)],
        shots=program["shots"],
    ).result()
    data = []
    for found in result:
        registers = {}
        for name, bits in found.data.items():
            rows = np.unpackbits(bits.array, axis=-1)[..., ::-1][..., : bits.num_bits]
            registers[name] = tensor(rows.astype(bool))
        data.append({"results": registers, "metadata": {}})
    parts = [
        {"idx_item": place, "size": 1, "permutation": [], "element_range": [0, 1, 1]} for place in range(len(data))
    ]
    return {
        "schema_version": "v2.0",
        "data": data,
        "metadata": {"chunk_timing": [{**TIMES, "parts": parts}]},
        "passthrough_data": program.get("passthrough_data"),
        "semantic_role": program.get("semantic_role"),
    }
