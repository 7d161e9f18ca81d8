"""Programs: what each takes and returns, one file a program, and the check that comes before all of them."""

from prefect_qruntime.client.programs.make import make_spec

__all__ = ["make_spec"]
