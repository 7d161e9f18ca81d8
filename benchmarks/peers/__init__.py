"""How each peer does what is measured, behind one face. A peer's module is imported in its own environment only."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from benchmarks.lab import Lab

HOMES = {
    "ours": "ours",
    "ours-legacy": "ours",
    "ours-flow": "ours_flow",
    "official": "official",
    "prefect-qiskit": "qiskit_block",
    "prefect-qiskit-flow": "qiskit_flow",
    "bare": "bare",
    "empty-flow": "empty_flow",
}


class Peer(Protocol):
    """What measurements ask of a peer."""

    def load(self) -> None:
        """Import what it needs and make the circuit; never measured as a request."""

    def open(self) -> None:
        """Do what a user does once in a process."""

    def run(self, count: int, *, together: bool = True) -> int:
        """Take so many jobs from submission to result, together or one after the other; return the results' number."""

    def submit(self, count: int, *, session: bool = False) -> list[Any]:
        """Submit so many jobs, as many at the same time as is usual, and return what waiting needs."""

    def wait(self, jobs: list[Any], knows: Callable[[str], object]) -> None:
        """Wait for all at the same time; tell `knows` each job's id when its end is known."""

    def close(self) -> None:
        """Clean up."""


def make_peer(name: str, lab: Lab) -> Peer:
    """Make a peer; nothing is imported before `load`."""
    peer: Peer = import_module(f"benchmarks.peers.{HOMES[name]}").make(name, lab)
    return peer
