"""Settings of the integration, read from `PREFECT_INTEGRATIONS_QRUNTIME_*`."""

from __future__ import annotations

from typing import Literal

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field

__all__ = ["QuantumRuntimeSettings"]


class QuantumRuntimeSettings(PrefectBaseSettings):
    """Numbers and policies of a whole installation; each can be set in a Prefect profile or the environment.

    Example:
        ```python
        from prefect_qruntime.settings import QuantumRuntimeSettings

        assert QuantumRuntimeSettings().submission_grace_seconds == 30
        ```
    """

    model_config = build_settings_config(("integrations", "qruntime"))

    submission_grace_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long, after a lost answer or a repeated run, a job may take to show up in the service's list.",
    )
    session_max_ttl_seconds: int = Field(
        default=7200,
        ge=1,
        description="Longest life of a session where the flow names none.",
    )
    outage_patience_seconds: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="How long a wait goes on without one usable answer of the service.",
    )
    result_grace_seconds: float = Field(
        default=15.0,
        ge=0,
        description="How long the result of a completed job may take to appear.",
    )
    on_cancel: Literal["cancel", "detach"] = Field(
        default="cancel",
        description="What a cancelled flow run does to its live jobs: cancel them, or leave them running.",
    )
    events: bool = Field(default=True, description="Whether jobs and sessions emit events.")
    progress_seconds: float = Field(
        default=300.0,
        gt=0,
        description="How often a long wait says in the log that it is still waiting.",
    )
