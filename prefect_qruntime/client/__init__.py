"""The service's client: no line below this folder imports Prefect."""

from prefect_qruntime.client.client import QuantumRuntimeClient

__all__ = ["QuantumRuntimeClient"]
