"""The program `executor`: bound circuits in, the bits of every register out, as plain tensors.

Circuit items only: samplex items (twirling, and everything the official client's own estimator sends) need the
library that draws from them. Versions `v0.1` and `v0.2` are those of IBM's OpenAPI document; `v2.0`, which packs
circuits and tensors, is what the official client 0.51 sends (read from its schema package).
"""

from __future__ import annotations

import base64
import binascii
import math
import time
import zlib
from typing import Any

from prefect_qruntime.sandbox import circuits as qc, encoding
from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.clock import iso
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.primitives import bit_values, check_shots, take_shots

DEFAULT_VERSION = "v0.2"
PACKED = "v2.0"


def executor(
    params: dict[str, Any], backend: Backend, seed: int, *, strict: bool, simulated: bool
) -> tuple[dict[str, Any], int]:
    """Run an executor job; return its result and the shots taken.

    Raises:
        InputError: If an item cannot be run.
    """
    program, version = params["quantum_program"], params.get("schema_version", DEFAULT_VERSION)
    packed = version == PACKED
    if program.get("meas_level", "classified") != "classified":
        raise InputError("Only classified measurements are offered here.")
    shots, items = int(program["shots"]), program["items"]
    circuits = _circuits(program, items, packed)
    data, parts, total = [], [], 0
    began = time.time()
    for number, (circuit, item) in enumerate(zip(circuits, items, strict=True)):
        qc.check_fits(circuit, backend, strict)
        pub = _pub(circuit, _read(item["circuit_arguments"], packed), shots)
        points = max(1, math.prod(pub.shape))
        total += points * shots
        check_shots(shots, total)
        taken = take_shots(pub, seed + number, backend, simulated)
        results = {
            name: _write(_bits(taken, places, pub), packed) for name, places in qc.registers(circuit).items() if places
        }
        data.append({"results": results, "metadata": {}})
        part: dict[str, Any] = {"idx_item": number, "size": points}
        if packed:
            part |= {"permutation": list(range(len(pub.shape))), "element_range": [0, points, 1]}
        parts.append(part)
    timing = {"start": iso(began), "stop": iso(time.time()), "parts": parts}
    answer: dict[str, Any] = {"schema_version": version, "data": data, "metadata": {"chunk_timing": [timing]}}
    for name in ("passthrough_data", "semantic_role"):
        if program.get(name) is not None:
            answer[name] = program[name]
    return answer, total


def _circuits(program: dict[str, Any], items: list[Any], packed: bool) -> list[Any]:
    if packed:
        found = encoding.decode_circuits(encoding.inflate(program["circuits"]["b64_data"]))
    else:
        found = [encoding.decode_circuits(_unbase64(item["circuit"]["circuit_b64"]))[0] for item in items]
    if len(found) != len(items):
        raise InputError(f"There are {len(items)} items and {len(found)} circuits.")
    return found


def _pub(circuit: Any, values: Any, shots: int) -> Any:
    from qiskit.primitives.containers.bindings_array import BindingsArray
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    names = tuple(circuit.parameters)
    if values.shape[-1:] != (len(names),):
        raise InputError(f"The last axis of circuit_arguments must have {len(names)} values, not {values.shape}.")
    if not math.prod(values.shape[:-1]):
        raise InputError("circuit_arguments holds no point.")
    if not circuit.num_clbits:
        raise InputError("The circuit has no classical bits: add measurements.")
    bound = BindingsArray({names: values}) if names else BindingsArray({}, shape=values.shape[:-1])
    return SamplerPub(circuit, bound, shots)


def _bits(taken: list[list[str]], places: list[int], pub: Any) -> Any:
    """Return the register's bits, lowest first, as booleans of shape (*pub, shots, bits)."""
    import numpy as np

    whole = places == list(range(pub.circuit.num_clbits))
    width = -(-len(places) // 8)
    raw = b"".join(value.to_bytes(width, "little") for shots in taken for value in bit_values(shots, places, whole))
    rows = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(-1, width), axis=1, bitorder="little")
    return rows[:, : len(places)].reshape(*pub.shape, pub.shots, len(places))


def _write(bits: Any, packed: bool) -> dict[str, Any]:
    import numpy as np

    data = np.packbits(bits, bitorder="little").tobytes()
    text = base64.b64encode(zlib.compress(data) if packed else data).decode()
    return {"data": text, "shape": list(bits.shape), "dtype": "bool"}


def _read(tensor: dict[str, Any], packed: bool) -> Any:
    import numpy as np

    if tensor.get("dtype", "f64") != "f64":
        raise InputError("circuit_arguments must be of dtype f64.")
    raw = encoding.inflate(tensor["data"]) if packed else _unbase64(tensor["data"])
    shape = tuple(int(length) for length in tensor["shape"])
    if not shape or len(raw) != 8 * math.prod(shape):
        raise InputError(f"The data of circuit_arguments does not fit the shape {shape}.")
    return np.frombuffer(raw, "<f8").reshape(shape)


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"An encoded value could not be decoded: {error}") from error
