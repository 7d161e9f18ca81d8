"""Report who used how many QPU seconds: a table, a picture and what has no owner. Reads only; deploy it nightly."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from prefect_qruntime.observability.charts import markdown_image, stacked_chart
from prefect_qruntime.operations.usage import report_usage
from prefect_qruntime.operations.usage_tables import UsageReport, rolled_up, table_rows
from prefect_qruntime.redact import many, markdown_text, number_text

Owner = Literal["deployment", "flow", "tag", "user", "backend", "block"]
ROWS = 50  # jobs without an owner that are listed


def picture(report: UsageReport, owner: str) -> str:
    """The days' QPU seconds, stacked by owner; a sentence if there are none."""
    days = sorted({row.keys["day"] for row in report.rows})
    parts: dict[str, list[float]] = {}
    for row in report.rows:
        parts.setdefault(row.keys[owner], [0.0] * len(days))[days.index(row.keys["day"])] += row.qpu_seconds
    if not any(map(sum, parts.values())):
        return "No QPU seconds were used."
    title = f"QPU seconds a day, by {owner}"
    return markdown_image(title, stacked_chart(title, [day[5:] for day in days], parts, y_label="QPU seconds"))


def not_final(report: UsageReport) -> str:
    """What may still change in the sums."""
    jobs, seconds = report.total.not_final, report.total.pending_qpu_seconds
    told = "1 job is not final yet" if jobs == 1 else f"{jobs} jobs are not final yet"
    return f"{told}. The {number_text(seconds)} QPU seconds counted so far may change."


def table(report: UsageReport) -> list[dict[str, Any]]:
    """The rows for people: rounded, and without what is 0 in all of them, so that they fit the page."""
    rows = table_rows(report)
    always = (*report.by, "jobs", "qpu_seconds")
    shown = [name for name in (rows[0] if rows else ()) if name in always or any(row[name] for row in rows)]

    def cell(value: Any) -> Any:
        return value if isinstance(value, str | int) else round(float(value), 2)

    return [{name.replace("_", " ").replace("qpu", "QPU"): cell(row[name]) for name in shown} for row in rows]


def page(report: UsageReport, by_day: UsageReport, owner: str) -> str:
    """The artifact's text: sums, the picture, the service's own sums, and jobs without a flow run."""
    total = report.total
    lines = [
        f"### {many(total.jobs, 'job')}, {number_text(total.qpu_seconds)} QPU seconds since {report.since:%Y-%m-%d}",
        "",
        "Complete." if report.is_complete else not_final(report),
        "",
    ]
    if total.resource_units is not None:
        lines += [f"In another account of the same work: {number_text(total.resource_units)} resource units.", ""]
    lines += [picture(by_day, owner), ""]
    if report.reconciled:
        lines += ["| what | unit | the service says | counted | difference | meaning |", "|---|---|---|---|---|---|"]
        for one in report.reconciled:
            lines.append(
                f"| {markdown_text(one.block)}, {one.what} | {one.unit} | {number_text(one.service_says)} "
                f"| {number_text(one.counted)} | {number_text(one.difference, '+')} | {one.meaning} |"
            )
        lines.append("")
    if report.jobs_without_owner:
        lines += [
            f"#### Without an owner: {many(report.jobs_without_owner, 'job')}, "
            f"{number_text(report.qpu_seconds_without_owner)} QPU seconds",
            "",
            "| job | created | state | QPU seconds | user |",
            "|---|---|---|---|---|",
        ]
        for job in report.without_owner[:ROWS]:
            created = f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else ""
            user = markdown_text(job.user or "")
            lines.append(
                f"| {job.id} | {created} | {markdown_text(job.state)} | {number_text(job.qpu_seconds)} | {user} |"
            )
        lines.append("")
    lines += [f"- {markdown_text(note)}" for note in (*report.notes, *report.problems)]
    return "\n".join(lines)


@flow(name="usage-report")
def usage_report(
    credentials_blocks: list[str] | None = None, by: Owner = "deployment", since: str = "28d"
) -> list[dict[str, Any]]:
    """Report usage by owner.

    Args:
        credentials_blocks: Names of Quantum Runtime Credentials blocks; empty for all saved ones.
        by: Kind of owner by which usage is summed up.
        since: Only jobs and sessions created since this date or time, in UTC if it names no zone, or within this
            period, such as 28d.

    Returns:
        A row for each owner.
    """
    logger = get_run_logger()
    by_day = report_usage(credentials_blocks or None, by=[by, "day"], since=since)
    report = rolled_up(by_day, by)
    rows = table_rows(report)
    create_markdown_artifact(key="qruntime-usage", markdown=page(report, by_day, by), description="Who used the QPUs")
    if rows:
        create_table_artifact(key="qruntime-usage-table", table=table(report), description=f"QPU seconds by {by}")
    total = report.total
    logger.info(
        "%s, %s QPU seconds; not final: %s.",
        many(total.jobs, "job"),
        number_text(total.qpu_seconds),
        many(total.not_final, "job"),
    )
    if report.jobs_without_owner:
        logger.warning("%s without a flow run.", many(report.jobs_without_owner, "job"))
    if report.problems:
        raise RuntimeError(f"{many(len(report.problems), 'instance')} could not be read: {'; '.join(report.problems)}")
    return rows


if __name__ == "__main__":
    usage_report()
