"""Follow the jobs of suspended flow runs and resume each when its job is over.

Either keep `prefect-qruntime watch` running as a service, or deploy this flow on a schedule:
`python flows/watch_jobs.py` serves it, one run after the other.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from prefect_qruntime.suspend.watcher import WatchReport, run_watch


@flow(name="watch-jobs")
def watch_jobs(
    credentials_blocks: list[str] | None = None,
    minutes: Annotated[float | None, Field(gt=0)] = 55,
    interval: Annotated[float, Field(gt=0)] = 10,
) -> WatchReport:
    """Watch the jobs of all instances, or of some.

    Args:
        credentials_blocks: Names of Quantum Runtime Credentials blocks; empty for all.
        minutes: How long to watch; empty to poll once.
        interval: Seconds between polls for newly suspended flow runs.

    Returns:
        The work done.
    """
    duration = None if minutes is None else minutes * 60
    report = run_watch(credentials_blocks or None, once=minutes is None, interval=interval, duration=duration)
    logger = get_run_logger()
    for problem in report.problems:
        logger.error("Not watched: %s", problem)
    logger.info(
        "flow runs resumed: %d; finished jobs reported: %d; flow runs cancelled with their jobs: %d",
        report.resumed,
        report.told,
        report.cancelled,
    )
    return report


if __name__ == "__main__":
    watch_jobs.serve(name="watch", cron="0 * * * *", global_limit=1, parameters={"minutes": 59})
