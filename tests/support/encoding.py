"""RuntimeEncoder's forms written with numpy, to have something to read."""

from __future__ import annotations

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
from qiskit.primitives import BitArray, DataBin


def ndarray(values: Any) -> dict[str, Any]:
    target = io.BytesIO()
    np.save(target, np.asarray(values), allow_pickle=False)
    return {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(target.getvalue())).decode()}


def bit_array(bits: BitArray) -> dict[str, Any]:
    return {"__type__": "BitArray", "__value__": {"array": ndarray(bits.array), "num_bits": bits.num_bits}}


def data_bin(data: DataBin) -> dict[str, Any]:
    fields = {name: bit_array(item) if isinstance(item, BitArray) else ndarray(item) for name, item in data.items()}
    return {
        "__type__": "DataBin",
        "__value__": {"field_names": list(fields), "shape": list(data.shape), "fields": fields},
    }


def encoded(data: DataBin, kind: str = "SamplerPubResult", **metadata: Any) -> str:
    pub = {"__type__": kind, "__value__": {"data": data_bin(data), "metadata": metadata}}
    return json.dumps({"__type__": "PrimitiveResult", "__value__": {"pub_results": [pub], "metadata": {"version": 2}}})


def plain(data: DataBin, **metadata: Any) -> str:
    def samples(bits: BitArray, index: tuple[int, ...]) -> Any:
        if len(index) < bits.ndim:
            return [samples(bits, (*index, place)) for place in range(bits.shape[len(index)])]
        one = bits[index] if index else bits
        return [hex(int(text, 2)) for text in one.get_bitstrings()]

    fields = {
        name: {"samples": samples(item, ()), "num_bits": item.num_bits} if isinstance(item, BitArray) else item.tolist()
        for name, item in data.items()
    }
    return json.dumps({"results": [{"data": fields, "metadata": metadata}], "metadata": {"version": 2}})
