"""Run the V2 programs `sampler` and `estimator`: PUBs in, plain or encoded results out."""

from __future__ import annotations

import math
from random import Random
from statistics import NormalDist
from typing import Any

from prefect_qruntime.models import twirled_shots
from prefect_qruntime.sandbox import aer, circuits as qc, encoding
from prefect_qruntime.sandbox.catalog import ERROR_READOUT, MAX_SHOTS
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.state import Run

DEFAULT_SHOTS = 4096
DEFAULT_PRECISION = 1 / 64
_MAX_EXECUTIONS = 10_000_000
_TRAJECTORIES = 4096


def sampler(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run a V2 sampler job; return its result and the shots taken.

    Raises:
        InputError: If a PUB cannot be run.
    """
    options = params.get("options") or {}
    level = (options.get("execution") or {}).get("meas_type", "classified")
    encoded = bool(params.get("support_qiskit"))
    if level != "classified" and not encoded:
        raise InputError(f"The meas_type {level} needs support_qiskit: plain JSON has no form for its results.")
    default = options.get("default_shots") or DEFAULT_SHOTS
    results, total = [], 0
    shapes: list[tuple[int, ...]] = []
    for number, sent in enumerate(params["pubs"]):
        own = sent[2] if isinstance(sent, list) and len(sent) > 2 else None
        shots, executed = twirled_shots(options, _checked(own, params.get("shots")), default)
        pub = _sampler_pub(sent, shots, run)
        points = max(1, math.prod(pub.shape))
        total += points * executed
        shapes.append((*pub.shape, pub.shots))
        check_shots(pub.shots, total)
        taken = take_shots(pub.circuit, _rows(pub), pub.shots, run, run.seed + number)
        fields = {
            name: _register(taken, places, pub, encoded)
            if level == "classified"
            else encoding.array(kerneled(taken, places, pub, level, run.seed + number))
            for name, places in qc.registers(pub.circuit).items()
            if places
        }
        meta: dict[str, Any] = {"circuit_metadata": {}}
        if encoded:
            data = encoding.data_bin(fields, pub.shape)
            results.append(encoding.pub_result("SamplerPubResult", data, meta))
        else:
            results.append({"data": fields, "metadata": meta})
    if encoded:
        metadata = {"execution": {"execution_spans": _spans(shapes, run)}, "version": 2}
        return encoding.primitive_result(results, metadata), total
    return {"results": results, "metadata": {"version": 2}}, total


def _spans(shapes: list[tuple[int, ...]], run: Run) -> dict[str, Any]:
    """Return when each PUB ran, one after another over the job's time on the QPU, in the client's encoding."""
    sizes = [math.prod(shape) for shape in shapes]
    spans, done, total = [], 0, max(1, sum(sizes))
    for number, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        start, stop = (encoding.moment(run.started + run.duration * part / total) for part in (done, done + size))
        done += size
        slices = {str(number): [list(shape), 0, size]}
        span = {"start": start, "stop": stop, "data_slices": slices}
        spans.append({"__type__": "ExecutionSpan", "__value__": span})
    return {"__type__": "ExecutionSpans", "__value__": {"spans": spans}}


def _checked(own: Any, common: int | None) -> int | None:
    """Return the shots that a PUB or its job asks for."""
    shots = common or None if own is None else own
    if shots is None or (type(shots) is int and shots > 0):
        return shots
    raise InputError(f"The number of shots must be a positive integer, not {shots!r}.", 6000)


def _sampler_pub(sent: Any, shots: int, run: Run) -> Any:
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    parts = sent if isinstance(sent, list) else [sent]
    circuit = qc.load(parts[0])
    qc.check_fits(circuit, run.backend, run.strict)
    if not circuit.num_clbits:
        raise InputError("The circuit has no classical bits: add measurements.")
    values = encoding.decode(parts[1]) if len(parts) > 1 else None
    try:
        return SamplerPub.coerce((circuit, qc.bindings(circuit, values), shots))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The PUB is not valid: {error}") from error


def check_shots(shots: int, total: int) -> None:
    """Refuse more shots at a time, or in all by now, than a job may take.

    Raises:
        InputError: With code 6001.
    """
    if shots > MAX_SHOTS or total > _MAX_EXECUTIONS:
        raise InputError("The job asks for too many shots.", 6001)


def take_shots(circuit: Any, rows: Any, shots: int, run: Run, seed: int) -> list[list[str]]:
    """Run a circuit once for each row of parameter values; return the shots as hex strings over all classical bits."""
    if not run.simulated:
        return [["0x0"] * shots] * len(rows)
    if run.backend.mock:
        random = Random(seed)  # noqa: S311
        return [[hex(random.getrandbits(circuit.num_clbits)) for _ in range(shots)] for _ in rows]
    reduced, _ = qc.compact(circuit)
    bound = qc.bind(reduced, list(circuit.parameters), rows)
    taken = aer.memory(bound, shots, seed, noisy=run.backend.noisy)
    if reduced.num_clbits == circuit.num_clbits:
        return taken
    mask = (1 << circuit.num_clbits) - 1
    return [[hex(int(value, 16) & mask) for value in values] for values in taken]


def _rows(pub: Any) -> Any:
    """Return the parameter values of a sampler pub, one row a point, in the order of the circuit's parameters."""
    points = max(1, math.prod(pub.shape))
    if not pub.circuit.parameters:
        return [[]] * points
    rows = pub.parameter_values.as_array(list(pub.circuit.parameters)).reshape(-1, len(pub.circuit.parameters))
    return rows.repeat(points, axis=0) if len(rows) == 1 and points > 1 else rows


def _register(taken: list[list[str]], places: list[int], pub: Any, encoded: bool) -> dict[str, Any]:
    whole = places == list(range(pub.circuit.num_clbits))
    bits = len(places)
    if encoded:
        import numpy as np

        width = -(-bits // 8)
        packed = b"".join(value.to_bytes(width, "big") for shots in taken for value in bit_values(shots, places, whole))
        array = np.frombuffer(packed, dtype=np.uint8).reshape(*pub.shape, pub.shots, width)
        return encoding.bit_array(array, bits)
    samples: list[Any] = [
        shots if whole else [hex(value) for value in bit_values(shots, places, whole)] for shots in taken
    ]
    return {"samples": nested(samples, pub.shape), "num_bits": bits}


def kerneled(taken: list[list[str]], places: list[int], pub: Any, level: str, seed: int) -> Any:
    """Return a register's readout points, averaged over the shots at level `avg_kerneled`."""
    whole = places == list(range(pub.circuit.num_clbits))
    points = readout_points(bits_of(taken, places, whole).reshape(*pub.shape, pub.shots, len(places)), seed)
    return points.mean(axis=-2) if level == "avg_kerneled" else points


def bits_of(taken: list[list[str]], places: list[int], whole: bool) -> Any:
    """Return the bits of one register as booleans, one row a shot, the lowest first."""
    import numpy as np

    width = -(-len(places) // 8)
    raw = b"".join(value.to_bytes(width, "little") for one in taken for value in bit_values(one, places, whole))
    rows = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(-1, width), axis=1, bitorder="little")
    return rows[:, : len(places)].astype(bool)


def readout_points(bits: Any, seed: int) -> Any:
    """Return complex readout points for bits: two clouds around -1 and +1, well separated."""
    import numpy as np

    noise = np.random.default_rng(seed).normal(scale=0.2, size=(*bits.shape, 2))
    return np.where(bits, 1.0, -1.0) + noise[..., 0] + 1j * noise[..., 1]


def bit_values(shots: list[str], places: list[int], whole: bool) -> list[int]:
    """Return the number each shot has in the bits of one register; `whole` if they are all there are, in order."""
    numbers = [int(shot, 16) for shot in shots]
    if whole:
        return numbers
    low = places[0]
    if places == list(range(low, low + len(places))):
        mask = (1 << len(places)) - 1
        return [(number >> low) & mask for number in numbers]
    return [sum(((number >> place) & 1) << index for index, place in enumerate(places)) for number in numbers]


def nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """Arrange a flat list as nested lists of a shape; shape `()` is the one item itself."""
    if not shape:
        return flat[0]
    step = math.prod(shape[1:])
    return [nested(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def estimator(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run a V2 estimator job; return its result and the shots it stands for.

    Values lie within the asked precision of the simulated expectation: shot noise is drawn from a normal
    distribution cut off there.

    Raises:
        InputError: If a PUB cannot be run.
    """
    import numpy as np

    options = params.get("options") or {}
    encoded = bool(params.get("support_qiskit"))
    common, level = params.get("precision"), params.get("resilience_level", 1)
    default = common or options.get("default_precision") or DEFAULT_PRECISION
    # From level 1 on the service corrects readout errors.
    mitigated = level >= 1
    results, total = [], 0
    for number, sent in enumerate(params["pubs"]):
        pub = _estimator_pub(sent, default, run)
        wanted = math.ceil(1 / pub.precision**2)
        asked = wanted if common or (len(sent) > 3 and sent[3] is not None) else None
        shots, executed = twirled_shots(options, asked, options.get("default_shots") or wanted, level=level)
        precision = pub.precision if shots == wanted else 1 / math.sqrt(shots)
        values, deviations = estimate(pub, shots, precision, run, run.seed + number, mitigated=mitigated)
        total += executed * max(1, math.prod(pub.shape))
        meta: dict[str, Any] = {
            "shots": shots,
            "target_precision": precision,
            "circuit_metadata": {},
            "resilience": {},
            "num_randomizations": 32,
        }
        fields: dict[str, Any] = {}
        for name, found in (
            ("evs", values),
            ("stds", deviations),
            ("ensemble_standard_error", deviations),
        ):
            shaped = np.asarray(found, dtype=float).reshape(pub.shape)
            fields[name] = encoding.array(shaped) if encoded else shaped.tolist()
        if encoded:
            results.append(encoding.pub_result("PubResult", encoding.data_bin(fields, pub.shape), meta))
        else:
            results.append({"data": fields, "metadata": meta})
    overall: dict[str, Any] = {"dynamical_decoupling": {}, "twirling": {}, "resilience": {}, "version": 2}
    learned = (options.get("resilience") or {}).get("layer_noise_model")
    if learned:
        overall["resilience"]["layer_noise_model"] = learned
    if encoded:
        return encoding.primitive_result(results, overall), total
    return {"results": results, "metadata": overall}, total


def _estimator_pub(sent: list[Any], default_precision: float, run: Run) -> Any:
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.observables_array import ObservablesArray

    circuit = qc.load(sent[0])
    qc.check_fits(circuit, run.backend, run.strict)
    observables = encoding.decode(sent[1])
    values = encoding.decode(sent[2]) if len(sent) > 2 else None
    precision = sent[3] if len(sent) > 3 and sent[3] is not None else default_precision
    if isinstance(precision, bool) or not isinstance(precision, int | float) or not precision >= 1e-6:
        raise InputError(f"The precision must be a positive number, not {precision!r}.")
    if hasattr(observables, "tolist"):
        observables = observables.tolist()
    try:
        observables = ObservablesArray.coerce(observables)
        circuit = qc.widen(circuit, min(_width(observables), run.backend.qubits))
        return EstimatorPub.coerce((circuit, observables, qc.bindings(circuit, values), float(precision)))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The PUB is not valid: {error}") from error


def _width(observables: Any) -> int:
    # The terms of all observables are equally long, which coercing has checked.
    flat = observables.sparse_observables_array().ravel()
    return int(flat[0].num_qubits) if flat.size else 0


def estimate(
    pub: Any, shots: int, precision: float, run: Run, seed: int, *, mitigated: bool
) -> tuple[list[float], list[float]]:
    """Return values and standard errors for every point of an estimator pub, flat in C order."""
    import numpy as np
    from qiskit.quantum_info import SparsePauliOp

    shape = pub.shape
    noisy, size = run.backend.noisy, max(1, math.prod(shape))
    if run.backend.mock:
        return [float(value) for value in np.random.default_rng(seed).uniform(-1, 1, size)], [precision] * size
    if not run.simulated:
        return [0.0] * size, [precision] * size
    flat = np.empty(pub.observables.shape, dtype=object)
    terms: dict[str, int] = {}
    sparse = pub.observables.sparse_observables_array()
    for where in np.ndindex(*pub.observables.shape):
        found = SparsePauliOp.from_sparse_observable(sparse[where]).to_list()
        flat[where] = [(terms.setdefault(label, len(terms)), coeff.real) for label, coeff in found]
    width = pub.circuit.num_qubits
    needed = frozenset(width - 1 - i for label in terms for i, letter in enumerate(label) if letter != "I")
    reduced, places = qc.compact(qc.without_last_measurements(pub.circuit), needed)
    labels = [_moved(label, places, reduced.num_qubits) for label in terms]
    point_shape = pub.parameter_values.shape
    points = np.arange(max(1, math.prod(point_shape))).reshape(point_shape)
    circuits = _bound_points(reduced, pub)
    exact = aer.expectations(circuits, labels, min(shots, _TRAJECTORIES), seed, noisy=noisy)
    # Unmitigated readout shrinks each term by (1 - 2p) per measured qubit.
    shrink = [
        (1 - 2 * ERROR_READOUT) ** sum(letter != "I" for letter in label) if noisy and not mitigated else 1.0
        for label in labels
    ]
    random = np.random.default_rng(seed)
    values, deviations = [], []
    wide_points, wide_terms = np.broadcast_to(points, shape), np.broadcast_to(flat, shape)
    for where in np.ndindex(*shape):
        row = exact[int(wide_points[where])]
        value = variance = 0.0
        for index, coeff in wide_terms[where]:
            mean = max(-1.0, min(1.0, row[index] * shrink[index]))
            value += coeff * mean
            variance += coeff**2 * (1 - mean**2)
        deviation = math.sqrt(max(0.0, variance) / shots)
        values.append(value + _noise(deviation, precision, float(random.random())))
        deviations.append(deviation)
    return values, deviations


def _bound_points(reduced: Any, pub: Any) -> list[Any]:
    known = list(pub.circuit.parameters)
    points = max(1, math.prod(pub.parameter_values.shape))
    rows = pub.parameter_values.as_array(known).reshape(-1, len(known)) if known else [[]] * points
    return qc.bind(reduced, known, rows)


def _moved(label: str, places: dict[int, int], width: int) -> str:
    letters = ["I"] * width
    for index, letter in enumerate(reversed(label)):
        if letter != "I":
            letters[places[index]] = letter
    return "".join(reversed(letters))


def _noise(deviation: float, bound: float, uniform: float) -> float:
    if deviation < 1e-12:
        return 0.0
    curve = NormalDist(0.0, deviation)
    low, high = curve.cdf(-bound), curve.cdf(bound)
    drawn = curve.inv_cdf(min(max(low + (high - low) * uniform, 1e-15), 1 - 1e-15))
    return max(-bound, min(bound, drawn))
