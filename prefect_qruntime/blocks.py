"""The package's block types and nothing else, for `prefect block register -m prefect_qruntime.blocks`.

Prefect registers every block class that a module holds, an imported base class too.
"""

from __future__ import annotations

from prefect_qruntime.admission.budget import Budget
from prefect_qruntime.admission.policy import QuantumRuntimePolicy
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.jobs import QuantumRuntimeJob

__all__ = ["Budget", "QuantumRuntimeCredentials", "QuantumRuntimeJob", "QuantumRuntimePolicy"]
