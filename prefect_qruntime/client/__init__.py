"""The service's client: no line below this folder imports Prefect."""

from prefect_qruntime.client.api import QuantumRuntimeClient

__all__ = ["QuantumRuntimeClient"]
