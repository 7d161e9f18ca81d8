"""Prefect 3 integration for the Qiskit Runtime REST API."""

from prefect_qruntime._version import __version__

__all__ = ["__version__"]
