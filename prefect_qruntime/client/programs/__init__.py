"""The programs: what each takes and returns, one file per program, and the check of their inputs."""

from prefect_qruntime.client.programs.make import make_spec

__all__ = ["make_spec"]
