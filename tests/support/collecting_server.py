"""`prefect server start` as `prefect-qruntime server` runs it; usable as a script by tests of any working directory."""

from __future__ import annotations

import sys

from prefect_qruntime.cli.local import run_prefect

if __name__ == "__main__":
    sys.exit(run_prefect(*sys.argv[1:]))
