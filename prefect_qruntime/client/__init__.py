"""The client of the service; nothing in this folder imports Prefect."""

from prefect_qruntime.client.client import QuantumRuntimeClient

__all__ = ["QuantumRuntimeClient"]
