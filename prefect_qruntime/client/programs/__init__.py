"""Programs of the service: what each one takes and returns, as plain data in and out."""

RECIPE_AUTHOR = "prefect_qruntime"
RECIPE_VERSION = "p1"
"""Our own post-processing record in a quantum program: who wrote it, and its version (IBM's start with a `v`)."""
