"""Draw the random parameters of a samplex item with IBM's `samplomatic`, of the extra `sandbox`."""

from __future__ import annotations

import math
import re
from typing import Any

from prefect_qruntime.sandbox import tensors
from prefect_qruntime.sandbox.encoding import INSTALL, InputError

# The version within the samplex, which may be escaped JSON in JSON.
_SSV = re.compile(r'"ssv\\*":\s*\\*"?(\d+)')
_PARAMETERS = "parameter_values"


def draw(item: dict[str, Any], seed: int, packed: bool) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    """Sample a samplex item.

    Axes in which the item's shape exceeds that of the arguments enumerate independent randomizations.

    Args:
        item: The item as sent.
        seed: Seed of the random numbers.
        packed: Whether its tensors are compressed.

    Returns:
        The circuit's parameter values with the item's shape in front, the other outputs by name, and the shape.

    Raises:
        InputError: If samplomatic is missing, or the samplex or its arguments cannot be used.
    """
    try:
        from samplomatic.serialization import samplex_from_json
    except ImportError as error:
        raise InputError(f"Samplex items need the package samplomatic. {INSTALL}") from error
    import numpy as np

    text, ssv = item["samplex"]["samplex_json"], item["samplex"]["ssv"]
    found = _SSV.search(text)
    if found is not None and int(found[1]) != ssv:
        raise InputError(f"The ssv is {ssv}, the samplex is of version {found[1]}.")
    try:
        samplex = samplex_from_json(text).finalize()
        inputs = samplex.inputs().make_broadcastable()
        for name, value in item["samplex_arguments"].items():
            inputs[name] = _argument(name, value, packed)
        shape = np.broadcast_shapes(tuple(item["shape"]), inputs.shape)
    except Exception as error:  # The library raises many kinds of errors.
        raise InputError(f"The samplex or its arguments cannot be used: {error}") from error
    if not inputs.fully_bound:
        raise InputError(f"The samplex lacks arguments:\n{inputs.describe(include_bound=False)}")
    if not math.prod(shape):
        raise InputError("The item holds no point.")
    own = (1,) * (len(shape) - len(inputs.shape)) + tuple(inputs.shape)
    repeated = tuple(full for full, given in zip(shape, own, strict=True) if given != full)
    outputs: dict[str, Any] = {}
    random = np.random.default_rng(seed)
    for index in np.ndindex(*inputs.shape):
        sampled = samplex.sample(inputs[index], num_randomizations=math.prod(repeated), rng=random)
        padded = (0,) * (len(shape) - len(index)) + index
        place = tuple(
            slice(None) if given != full else position for position, given, full in zip(padded, own, shape, strict=True)
        )
        for name, values in sampled.items():
            inner = values.shape[1:]
            target = outputs.setdefault(name, np.empty(shape + inner, dtype=values.dtype))
            target[place] = values.reshape(repeated + inner)
    parameters = outputs.pop(_PARAMETERS, np.empty((*shape, 0)))
    return parameters, outputs, shape


def _argument(name: str, value: Any, packed: bool) -> Any:
    if not isinstance(value, dict):
        return value
    if "sparse_terms" in value:
        from qiskit.quantum_info import PauliLindbladMap

        return PauliLindbladMap.from_sparse_list([tuple(term) for term in value["sparse_terms"]], value["num_qubits"])
    return tensors.read(value, name, packed)
