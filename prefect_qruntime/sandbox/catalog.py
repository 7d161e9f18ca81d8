"""The backends, their state and the documents that describe them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson

from prefect_qruntime.sandbox.api_errors import ApiError
from prefect_qruntime.sandbox.clock import iso

ONLINE, PAUSED, OFFLINE = "online", "paused", "offline"
VERSION = "1.0.0"
MAX_SHOTS = 1_000_000

# Error rates of the noisy backends; uniform over qubits, so a circuit may run on any of them.
ERROR_1Q, ERROR_2Q, ERROR_READOUT = 5e-4, 7e-3, 0.01

# The heavy-hexagon map of 27 qubits that IBM's Falcon processors had.
_FALCON_EDGES = (
    (0, 1), (1, 2), (1, 4), (2, 3), (3, 5), (4, 7), (5, 8), (6, 7), (7, 10), (8, 9), (8, 11), (10, 12),
    (11, 14), (12, 13), (12, 15), (13, 14), (14, 16), (15, 18), (16, 19), (17, 18), (18, 21), (19, 20),
    (19, 22), (21, 23), (22, 25), (23, 24), (24, 25), (25, 26),
)  # fmt: skip
_NOISY_GATES = ("cz", "id", "rz", "sx", "x")
_IDEAL_GATES = ("cz", "cx", "h", "id", "rx", "ry", "rz", "rzz", "s", "sdg", "sx", "t", "tdg", "u", "x", "y", "z")
_TWO_QUBIT = frozenset({"cz", "cx", "ecr", "rzz"})
_KNOWN_GATES = frozenset({*_NOISY_GATES, *_IDEAL_GATES, *_TWO_QUBIT})
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_FALCON_QUBITS, _MOST_IDEAL_QUBITS = 27, 32
_ANGLES = {"rz": ["theta"], "rx": ["theta"], "ry": ["theta"], "rzz": ["theta"], "u": ["theta", "phi", "lambda"]}


@dataclass(slots=True)
class Backend:
    """One backend. `queue_time` and `run_time` in service seconds, `None` for the sandbox's own."""

    name: str
    qubits: int
    noisy: bool
    gates: tuple[str, ...] = ()
    mock: bool = False
    status: str = ONLINE
    queue_length: int | None = None
    queue_time: float | None = None
    run_time: float | None = None
    pending: int = 0

    def __post_init__(self) -> None:
        self.gates = tuple(self.gates)

    @property
    def physical_qubits(self) -> int:
        """The qubits of the device with those that couple them."""
        return self.qubits + (len(self.edges()) // 2 if self.noisy else 0)

    @property
    def basis_gates(self) -> tuple[str, ...]:
        """The backend's native gates."""
        return self.gates or (_NOISY_GATES if self.noisy else _IDEAL_GATES)

    @property
    def calibration_id(self) -> str:
        """The only calibration the backend has had."""
        return f"calibration-{self.name.replace('_', '-')}-2026-01-01"

    @property
    def waiting(self) -> int:
        """The queue length to show."""
        return self.pending if self.queue_length is None else self.queue_length

    def edges(self) -> list[list[int]]:
        """Return the coupling map, both directions."""
        if not self.noisy:
            return [[a, b] for a in range(self.qubits) for b in range(self.qubits) if a != b]
        pairs = [[a, b] for a, b in _FALCON_EDGES if a < self.qubits and b < self.qubits]
        return pairs + [[b, a] for a, b in pairs]


class Catalog:
    """The four backends of every sandbox and those that were added.

    For each there is a mock backend that runs jobs without simulating them.
    """

    def __init__(self) -> None:
        self.backends: dict[str, Backend] = {}
        self.reset()

    def reset(self) -> None:
        """Reset every backend to its initial state."""
        made = (
            Backend("sandbox_noisy", 27, noisy=True),
            Backend("sandbox_ideal", 32, noisy=False),
            Backend("sandbox_paused", 27, noisy=True, status=PAUSED),
            Backend("sandbox_offline", 27, noisy=True, status=OFFLINE),
        )
        self.backends = {backend.name: backend for backend in (*made, *map(_mock_of, made))}

    def add(self, backend: Backend) -> None:
        """Add a backend with its mock backend.

        Raises:
            ValueError: The name is taken or not valid, there are too many or too few qubits, or the gates
                are not known.
        """
        if not _NAME.fullmatch(backend.name) or backend.name.startswith("mock_"):
            raise ValueError(f"a name must be like ibm_example, not {backend.name!r}")
        if isinstance(backend.qubits, bool) or not isinstance(backend.qubits, int):
            raise ValueError(f"qubits must be a whole number, not {backend.qubits!r}")
        most = _FALCON_QUBITS if backend.noisy else _MOST_IDEAL_QUBITS
        if not 1 <= backend.qubits <= most:
            raise ValueError(f"qubits must be within 1..{most}, not {backend.qubits}")
        if strange := [gate for gate in backend.gates if gate not in _KNOWN_GATES]:
            raise ValueError(f"basis_gates must be of {', '.join(sorted(_KNOWN_GATES))}; not {strange[0]!r}")
        mock = _mock_of(backend)
        if taken := {backend.name, mock.name} & self.backends.keys():
            raise ValueError(f"there is a backend {min(taken)} already")
        self.backends |= {backend.name: backend, mock.name: mock}

    def names(self) -> list[str]:
        """Return the names of all backends but the mock ones."""
        return [backend.name for backend in self.backends.values() if not backend.mock]

    def get(self, name: str) -> Backend:
        """Return a backend or raise the service's 404."""
        backend = self.backends.get(name)
        if backend is None:
            raise ApiError(404, "not_found", f"device not found: {name}")
        return backend

    def calibration(self, backend: Backend, calibration_id: str | None) -> str:
        """Check the id of a calibration; return the current one if none is given.

        Raises:
            ApiError: 404 if the backend has no such calibration.
        """
        if calibration_id not in (None, backend.calibration_id):
            raise ApiError(
                404,
                "not_found",
                f"calibration not found: {calibration_id}",
                f"Use {backend.calibration_id} or leave it out.",
            )
        return backend.calibration_id

    def devices(self, waits: bool, queue_time: float, run_time: float, *, mocks: bool = False) -> list[dict[str, Any]]:
        """Return the items of `GET /backends` as objects, those of mock backends on request."""
        shown = [backend for backend in self.backends.values() if mocks or not backend.mock]
        return [_device(backend, waits, queue_time, run_time) for backend in shown]


def _mock_of(backend: Backend) -> Backend:
    return replace(backend, name=f"mock_{backend.name.partition('_')[2]}", mock=True)


def _device(backend: Backend, waits: bool, queue_time: float, run_time: float) -> dict[str, Any]:
    reasons = {ONLINE: "available", PAUSED: "maintenance", OFFLINE: "not available"}
    device: dict[str, Any] = {
        "name": backend.name,
        "status": {"name": backend.status, "reason": reasons[backend.status]},
        "is_simulator": not backend.noisy,
        "qubits": backend.qubits,
        "clops": {"type": "hardware" if backend.noisy else "virtual", "value": 100_000},
        "processor_type": {"family": "Sandbox", "revision": "1", "segment": None},
        "queue_length": backend.waiting,
        "physical_qubits": backend.physical_qubits,
    }
    if backend.mock:
        device["class"] = "mock"
    error = ERROR_2Q if backend.noisy else 0.0
    device["performance_metrics"] = {
        "two_q_error_best": {"value": error, "gate": "cz", "unit": "", "qubits": [0, 1]},
        "two_q_error_layered": {"value": error, "unit": ""},
        "two_q_error_median": {"value": error, "unit": ""},
        "readout_error_median": {"value": ERROR_READOUT if backend.noisy else 0.0, "unit": ""},
    }
    if waits:
        queue = queue_time if backend.queue_time is None else backend.queue_time
        run = run_time if backend.run_time is None else backend.run_time
        average = round(queue + run * backend.waiting)
        device["wait_time_seconds"] = {"average": average, "p50": average, "p95": round(average * 1.5)}
    return device


def status_view(backend: Backend) -> dict[str, Any]:
    """Return the body of `GET /backends/{id}/status`."""
    texts = {ONLINE: "active", PAUSED: "paused", OFFLINE: "offline"}
    return {
        "state": backend.status != OFFLINE,
        "status": texts[backend.status],
        "message": "" if backend.status == ONLINE else f"The backend is {backend.status}.",
        "length_queue": backend.waiting,
        "backend_version": VERSION,
    }


def configuration_json(backend: Backend) -> bytes:
    """Return the body of `GET /backends/{id}/configuration`."""
    return _configuration(backend.name, backend.qubits, backend.noisy, backend.gates)


def properties_json(backend: Backend) -> bytes:
    """Return the body of `GET /backends/{id}/properties`."""
    return _properties(backend.name, backend.qubits, backend.noisy, backend.gates)


def defaults_json(backend: Backend) -> bytes:
    """Return the body of `GET /backends/{id}/defaults`: pulse defaults without any pulse."""
    frequencies = [5.0] * backend.qubits
    return orjson.dumps(
        {
            "qubit_freq_est": frequencies,
            "meas_freq_est": [7.0] * backend.qubits,
            "buffer": 0,
            "pulse_library": [],
            "cmd_def": [],
        }
    )


_CALIBRATED = iso(1_767_225_600.0)  # 2026-01-01, a fixed date keeps the documents cacheable


@lru_cache(maxsize=16)
def _configuration(name: str, qubits: int, noisy: bool, own_gates: tuple[str, ...]) -> bytes:
    backend = Backend(name, qubits, noisy, own_gates)
    edges, singles = backend.edges(), [[q] for q in range(qubits)]
    gates = [
        {
            "name": gate,
            "parameters": _ANGLES.get(gate, []),
            "qasm_def": f"gate {gate} q {{ U(0, 0, 0) q; }}",
            "coupling_map": edges if gate in _TWO_QUBIT else singles,
        }
        for gate in backend.basis_gates
    ]
    control_flow = ["if_else", "for_loop", "while_loop", "switch_case"]
    return orjson.dumps(
        {
            "backend_name": name,
            "backend_version": VERSION,
            "basis_gates": list(backend.basis_gates),
            "clops": {"type": "virtual", "value": 100_000},
            "conditional": True,
            "coords": [[q // 9, q % 9] for q in range(qubits)],
            "coupling_map": edges,
            "default_rep_delay": 250.0,
            "description": "Simulated by qiskit-aer, " + ("with noise." if noisy else "without noise."),
            "dt": 0.2222,
            "dtm": 0.2222,
            "dynamic_reprate_enabled": True,
            "gates": gates,
            "local": False,
            "max_experiments": 300,
            "max_shots": MAX_SHOTS,
            "meas_levels": [2],
            "memory": True,
            "n_qubits": qubits,
            "online_date": _CALIBRATED,
            "open_pulse": False,
            "processor_type": {"family": "Sandbox", "revision": "1"},
            "rep_delay_range": [0.0, 500.0],
            "simulator": not noisy,
            "supported_features": ["qasm3", "qobj"],
            "supported_instructions": [*backend.basis_gates, "measure", "reset", "delay", *control_flow],
            "timing_constraints": {
                "acquire_alignment": 1,
                "granularity": 1,
                "min_length": 1,
                "pulse_alignment": 1,
            },
            "u_channel_lo": [],
        }
    )


def _nduv(name: str, unit: str, value: float) -> dict[str, Any]:
    return {"date": _CALIBRATED, "name": name, "unit": unit, "value": value}


@lru_cache(maxsize=16)
def _properties(name: str, qubits: int, noisy: bool, own_gates: tuple[str, ...]) -> bytes:
    backend = Backend(name, qubits, noisy, own_gates)
    readout = ERROR_READOUT if noisy else 0.0
    gates: list[dict[str, Any]] = []
    for gate in backend.basis_gates:
        double = gate in _TWO_QUBIT
        places = backend.edges() if double else [[q] for q in range(qubits)]
        error = 0.0 if not noisy or gate in ("rz", "id") else ERROR_2Q if double else ERROR_1Q
        length = 0.0 if gate == "rz" else 80.0 if double else 32.0
        gates.extend(
            {
                "gate": gate,
                "qubits": place,
                "name": gate + "_".join(map(str, place)),
                "parameters": [_nduv("gate_error", "", error), _nduv("gate_length", "ns", length)],
            }
            for place in places
        )
    qubit = [
        _nduv("T1", "us", 250.0),
        _nduv("T2", "us", 180.0),
        _nduv("frequency", "GHz", 5.0),
        _nduv("anharmonicity", "GHz", -0.34),
        _nduv("readout_error", "", readout),
        _nduv("prob_meas0_prep1", "", readout),
        _nduv("prob_meas1_prep0", "", readout),
        _nduv("readout_length", "ns", 1000.0),
    ]
    return orjson.dumps(
        {
            "backend_name": name,
            "backend_version": VERSION,
            "gates": gates,
            "general": [],
            "last_update_date": _CALIBRATED,
            "qubits": [qubit] * qubits,
        }
    )
