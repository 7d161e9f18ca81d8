"""Draw a job's circuits on its page and estimate their error from the backend's calibration, if Qiskit is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cachetools import TTLCache

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.pubs import load_qpy
from prefect_qruntime.client.inputs.spec import JobSpec, Pub
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.observability.markdown import section
from prefect_qruntime.observability.run_page import add_section
from prefect_qruntime.observability.run_summary import in_background
from prefect_qruntime.prefect_api import in_run
from prefect_qruntime.redact import printable
from prefect_qruntime.settings import current_settings

__all__ = ["circuit_section", "is_drawable", "show_circuits", "success_probability"]

_CIRCUITS = 2  # circuits that are drawn
_GATES = 150  # most gates of a drawn circuit
_QUBITS = 12  # most qubits of a drawn circuit
_WIDTH = 96  # characters of a drawing's line
_FREE = frozenset({"barrier", "delay"})


def show_circuits(client: QuantumRuntimeClient, job_id: str, spec: JobSpec) -> None:
    """Show a job's circuits on its page, in the background. Never call it for a private job. On the network loop.

    Args:
        client: The instance; it is asked for the backend's calibration at most once in ten minutes.
        job_id: The job.
        spec: The submission.
    """
    if not (in_run() and spec.pubs and is_drawable(current_settings().circuit_drawings)):
        return

    async def show() -> None:
        properties = await _calibration(client, spec.backend)
        shown = await asyncio.to_thread(circuit_section, spec.pubs, spec.backend, properties)
        if shown:
            add_section(job_id, section("Circuit", shown))

    in_background(show)


class _Calibrations:
    """A cache of backends' calibrations."""

    def __init__(self) -> None:
        self.known: TTLCache[tuple[str, str], dict[str, Any] | None] = TTLCache(32, ttl=600)
        self.asking = SingleFlight[dict[str, Any] | None]()


async def _calibration(client: QuantumRuntimeClient, backend: str) -> dict[str, Any] | None:
    state, which = network_loop().state(_Calibrations), (client.connection.crn, backend)

    async def ask() -> dict[str, Any] | None:
        try:
            return await client.backend_properties(backend)
        except QuantumRuntimeError:  # simulators have none
            return None

    if which not in state.known:
        state.known[which] = await state.asking.join(ask, *which)
    return state.known.get(which)


def is_drawable(wish: str) -> bool:
    """Whether circuits are drawn in this process: never, always, or if Qiskit is loaded anyway."""
    return wish == "always" or (wish == "loaded" and "qiskit.circuit" in sys.modules)


def circuit_section(pubs: Sequence[Pub], backend: str, properties: Mapping[str, Any] | None) -> str:
    """Draw the first circuits of a job as text, each with its size and its estimated error.

    Args:
        pubs: The PUBs that were sent.
        backend: Name of the backend.
        properties: Its calibration, if it is known.

    Returns:
        Markdown; empty if no circuit can be read.
    """
    parts = []
    for place, pub in enumerate(pubs[:_CIRCUITS]):
        if (circuit := _read(pub)) is None:
            continue
        parts.append(_about(circuit, place))
        if properties is not None and (good := success_probability(circuit, properties)) is not None and good < 1:
            parts.append(_estimate(good, backend, properties))
        parts += _drawing(circuit)
    if parts and len(pubs) > _CIRCUITS:
        parts.append(f"{len(pubs)} circuits in all.")
    return "\n\n".join(parts)


def success_probability(circuit: Any, properties: Mapping[str, Any]) -> float | None:
    """Multiply (1 - error) over all gates and measurements of a circuit, with the errors of the calibration.

    Args:
        circuit: A `QuantumCircuit` in the backend's own gates, its qubits numbered as the backend's.
        properties: The answer of `GET /backends/{id}/properties`.

    Returns:
        A number from 0 to 1; None if the calibration lacks a gate that the circuit uses.
    """
    used = {step.operation.name for step in circuit.data}  # a calibration has thousands of gates
    gates = {
        (gate["gate"], tuple(gate.get("qubits", ()))): _value(gate.get("parameters"), "gate_error")
        for gate in properties.get("gates", ())
        if gate.get("gate") in used
    }
    readouts = [_value(qubit, "readout_error") for qubit in properties.get("qubits", ())]
    logs = 0.0
    for step in circuit.data:
        name, qubits = step.operation.name, tuple(circuit.find_bit(qubit).index for qubit in step.qubits)
        if name in _FREE:
            continue
        if name == "measure":
            error = readouts[qubits[0]] if qubits[0] < len(readouts) else None
        else:
            error = gates.get((name, qubits), gates.get((name, qubits[::-1])))
        if error is None or not 0 <= error <= 1:
            return None
        if error == 1:
            return 0.0
        logs += math.log1p(-error)
    return math.exp(logs)


def _value(parameters: Any, name: str) -> float | None:
    for one in parameters or ():
        if one.get("name") == name and isinstance(one.get("value"), int | float):
            return float(one["value"])
    return None


def _read(pub: Pub) -> Any | None:
    """Parse the circuit with Qiskit; None if Qiskit refuses the text, which the service may accept."""
    if not isinstance(pub.circuit, str):
        return load_qpy(pub.circuit, field="pubs")
    from qiskit import qasm2, qasm3

    for reader in (qasm3.loads, qasm2.loads):
        with contextlib.suppress(Exception):
            return reader(pub.circuit)
    return None


def _used(circuit: Any) -> int:
    return len({qubit for step in circuit.data for qubit in step.qubits})


def _about(circuit: Any, place: int) -> str:
    pairs = sum(len(step.qubits) == 2 and step.operation.name != "barrier" for step in circuit.data)
    gates = sum(step.operation.name not in ("measure", *_FREE) for step in circuit.data)
    facts = (
        f"{_used(circuit)} of {circuit.num_qubits} qubits",
        f"{gates} gate{'' if gates == 1 else 's'}, {pairs} on two qubits",
        f"depth {circuit.depth()}",
    )
    return f"**Circuit {place}**: {'; '.join(facts)}."


def _estimate(good: float, backend: str, properties: Mapping[str, Any]) -> str:
    date = printable(str(properties.get("last_update_date", ""))[:10])
    when = f" of {date}" if date else ""
    return (
        f"Estimated error: **{1 - good:.1%}** of the shots meet at least one faulty gate or readout. Multiplied out of "
        f"the gate and readout errors in the calibration{when} of {printable(backend, 60)}; crosstalk, idle time and "
        "error mitigation are left out."
    )


def _drawing(circuit: Any) -> list[str]:
    if len(circuit.data) > _GATES or _used(circuit) > _QUBITS:
        return ["Too large for a drawing."]
    text = str(circuit.draw("text", fold=_WIDTH, idle_wires=False, vertical_compression="high"))
    # Trailing spaces mean nothing, and three backquotes would end the block.
    return ["\n".join(["```text", *(line.rstrip().replace("```", "'''") for line in text.splitlines()), "```"])]
