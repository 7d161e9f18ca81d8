"""Inputs: from what a user passes to a checked `JobSpec`, and from that to a dialect's `params`."""

from prefect_qruntime.client.inputs.isa import check_isa, transpile_pubs
from prefect_qruntime.client.inputs.options import EstimatorOptions, SamplerOptions
from prefect_qruntime.client.inputs.payload import v1_params, v2_params

__all__ = ["EstimatorOptions", "SamplerOptions", "check_isa", "transpile_pubs", "v1_params", "v2_params"]
