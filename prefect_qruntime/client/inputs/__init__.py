"""Inputs: from what a user passes to a checked `JobSpec`."""

from prefect_qruntime.client.inputs.isa import check_isa, transpile_pubs
from prefect_qruntime.client.inputs.options import EstimatorOptions, SamplerOptions

__all__ = ["EstimatorOptions", "SamplerOptions", "check_isa", "transpile_pubs"]
