"""Local test server for the Qiskit Runtime REST API: the same calls, simulated circuits, faults on demand.

`Sandbox` serves IAM, the cloud and the legacy dialect and the legacy websocket on one loopback port and runs the
circuits on qiskit-aer. `Control` inspects the state of the server and injects faults. Nothing heavy is imported before
one of the names is used, so a pytest plugin can name this package at no cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_qruntime.sandbox.control import Control, ControlError
    from prefect_qruntime.sandbox.server import Sandbox, run_forever, serve

__all__ = ["Control", "ControlError", "Sandbox", "run_forever", "serve"]

_HOMES = {
    "Control": "control",
    "ControlError": "control",
    "Sandbox": "server",
    "run_forever": "server",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
