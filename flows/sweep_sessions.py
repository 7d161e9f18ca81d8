"""Close sessions whose flow run is over, and report or cancel the jobs left behind. Deploy it on a schedule."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from prefect_qruntime.operations.sweep import SweepReport, rows, run_sweep
from prefect_qruntime.redact import many


@flow(name="sweep-sessions")
def sweep_sessions(
    credentials_blocks: list[str] | None = None, dry_run: bool = False, cancel_jobs: bool = False
) -> SweepReport:
    """Sweep the instances of some or all credentials blocks.

    Args:
        credentials_blocks: Names of Quantum Runtime Credentials blocks; empty for all saved ones.
        dry_run: Only report what would be done.
        cancel_jobs: Also cancel live jobs whose flow run failed or completed, and detached ones.

    Returns:
        What was found and done.
    """
    report = run_sweep(credentials_blocks or None, dry_run=dry_run, cancel_jobs=cancel_jobs)
    logger = get_run_logger()
    for line in report.problems:
        logger.error("Not swept: %s", line)
    for stalled in report.stalled:
        logger.warning("Flow run %s: %s %s", stalled.name, stalled.evidence, stalled.next_step)
    logger.info("Left behind: %s and %s.", many(len(report.sessions), "session"), many(len(report.jobs), "job"))
    found = rows(report)
    if found:
        create_table_artifact(key="qruntime-sweep", table=found, description="Left behind by finished flow runs")
    if report.problems:
        raise RuntimeError(f"Not swept: {'; '.join(report.problems)}")
    return report


if __name__ == "__main__":
    sweep_sessions()
