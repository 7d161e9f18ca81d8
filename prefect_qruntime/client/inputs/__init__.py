"""Inputs: from what a user passes to a checked `JobSpec`.

Few submissions have options or are checked for a backend, so the modules for that are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_qruntime.client.inputs.isa import check_isa, transpile_pubs
    from prefect_qruntime.client.inputs.options import EstimatorOptions, SamplerOptions

__all__ = ["EstimatorOptions", "SamplerOptions", "check_isa", "transpile_pubs"]

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{'options' if name.endswith('Options') else 'isa'}"), name)
