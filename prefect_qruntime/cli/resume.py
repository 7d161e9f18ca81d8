"""`prefect-qruntime resume`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from prefect_qruntime.cli.options import AsJson, needs_prefect
from prefect_qruntime.cli.output import many
from prefect_qruntime.operations.stalled import resume_flow_run

__all__ = ["resume"]


@needs_prefect
def resume(
    flow_run_id: Annotated[str, Parameter(help="Id of the flow run.")],
    /,
    *,
    force: Annotated[bool, Parameter(help="Run it again even if its process may be alive.")] = False,
    json: AsJson = False,
) -> int:
    """Run a flow run again, under its own id, after its worker died: it attaches to its jobs and submits none twice.

    `prefect-qruntime sweep` finds such runs. The UI's "Copy to new run" would submit their jobs again.
    """
    resumed = resume_flow_run(flow_run_id, force=force)
    if json:
        sys.stdout.write(resumed.model_dump_json(indent=2) + "\n")
        return 0
    number = len(resumed.jobs)
    jobs = f"It attaches to its {many(number, 'job')}" if number else "It had submitted no job"
    Console().print(
        f"Flow run {resumed.name} ({resumed.id}) is scheduled again under the same id. {jobs}. "
        "A worker of its work pool starts it.",
        highlight=False,
        soft_wrap=True,
    )
    return 0
