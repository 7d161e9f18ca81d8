"""Ask an instance what this key can do, and put each problem in its own words."""

from __future__ import annotations

from prefect_qruntime.checks.instance import check_token, look_at_instance
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.models import InstanceReport

__all__ = ["check_instance"]


async def check_instance(client: QuantumRuntimeClient) -> InstanceReport:
    """Authenticate, then read what the instance shows.

    Returns:
        The report. It never raises for what the service answers: that is what the report is for.
    """
    connection = client.connection
    where = {
        "dialect": connection.dialect,
        "host": connection.host,
        "crn": connection.crn,
        "region": connection.region,
    }
    refused, life = await check_token(client)
    if refused is not None:
        return InstanceReport(ok=False, problems=(str(refused),), **where)
    look = await look_at_instance(client)
    return InstanceReport(
        ok=look.ok,
        plan=look.usage.plan_id if look.usage else None,
        backends=tuple(backend.name for backend in look.backends),
        usage=look.usage,
        api_versions=look.versions,
        missing_rights=tuple(look.missing_rights),
        problems=tuple(str(finding) for finding in look.findings if finding.level == "problem"),
        token_seconds_left=life,
        **where,
    )
