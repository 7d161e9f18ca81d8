"""A result as `qiskit.primitives` objects: the only module of the results that needs qiskit.

Built from the same views as everything else, so plain and encoded bodies give equal objects. Arrays in
metadata become numpy arrays, execution spans stay a list of `ExecutionSpan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_qruntime.client.decode import NpyArray, decode_value
from prefect_qruntime.client.result_quasi import counts_of
from prefect_qruntime.client.result_samples import HexRegister, PackedRegister, Register
from prefect_qruntime.client.result_views import PubView, form_of, pub_list, top_metadata, view_pub
from prefect_qruntime.errors import QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.client.results import JobResult

__all__ = ["primitive_result"]


def primitive_result(result: JobResult) -> Any:
    """Build a `PrimitiveResult`.

    A legacy quasi-distribution becomes a register `meas` with the shots of `JobResult.counts`, as the
    legacy service names no register.
    """
    try:
        from qiskit.primitives import PrimitiveResult
    except ImportError:
        raise QuantumRuntimeError(
            "to_primitive_result needs qiskit: pip install 'prefect-qruntime[qiskit]'", job_id=result.job_id
        ) from None
    raw, limit = result.raw, result.decode_limit
    items = pub_list(raw)
    if form_of(raw) == "other":
        raise QuantumRuntimeError("the result has no PUBs; read `.raw`", job_id=result.job_id)
    pubs: list[Any] = []
    for place, item in enumerate(items):
        width = result.widths[place] if place < len(result.widths) else None
        pubs.append(_pub_result(view_pub(raw, item, place, width=width, limit=limit), result, place))
    metadata = top_metadata(raw)
    if isinstance(metadata, list):  # legacy: one per PUB, already there
        metadata = {}
    return PrimitiveResult(pubs, metadata=decode_value(metadata or {}, limit=limit, as_array=_ndarray))


def _pub_result(view: PubView, result: JobResult, place: int) -> Any:
    from qiskit.primitives import BitArray, DataBin, PubResult, SamplerPubResult

    metadata = decode_value(view.metadata or {}, limit=result.decode_limit, as_array=_ndarray)
    if view.quasi is not None:
        counts = counts_of(view.quasi, result.shots(place) or 0)
        width = len(next(iter(view.quasi)))
        data = DataBin(meas=BitArray.from_counts(counts, num_bits=width))
        return SamplerPubResult(data, metadata=metadata)
    fields: dict[str, Any] = {}
    shape: tuple[int, ...] = ()
    for name, register in view.registers.items():
        fields[name] = _bit_array(register)
        shape = register.shape
    import numpy as np

    for name, value in view.fields.items():
        found = decode_value(value, limit=result.decode_limit, as_array=_ndarray)
        fields[name] = np.asarray(found) if isinstance(found, list | int | float) else found
    if "evs" in fields and not view.registers:
        shape = tuple(fields["evs"].shape)
    # Sampler and estimator results differ by type, as their consumers tell them apart by it.
    kind = SamplerPubResult if view.registers else PubResult
    return kind(DataBin(shape=shape, **fields), metadata=metadata)


def _bit_array(register: Register) -> Any:
    import numpy as np
    from qiskit.primitives import BitArray

    if isinstance(register, PackedRegister):
        rows = np.frombuffer(register.data, dtype=np.uint8)
        return BitArray(rows.reshape(*register.shape, register.num_shots, register.row).copy(), register.num_bits)
    if not isinstance(register, HexRegister):
        raise TypeError(f"no bits in {type(register).__name__}")
    size = (register.num_bits + 7) // 8
    points = 1
    for length in register.shape:
        points *= length
    packed = bytearray()
    shots = 0
    for point in range(points):
        keys = register.keys(point)
        table = {key: register.number(key).to_bytes(size, "big") for key in set(keys)}
        packed += b"".join([table[key] for key in keys])
        shots = len(keys)
    rows = np.frombuffer(bytes(packed), dtype=np.uint8)
    return BitArray(rows.reshape(*register.shape, shots, size).copy(), register.num_bits)


def _ndarray(found: NpyArray) -> Any:
    import numpy as np

    return np.frombuffer(found.data, dtype=np.dtype(found.descr)).reshape(found.shape).copy()
