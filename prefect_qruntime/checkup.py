"""Ask an instance what this key can do, and put each problem in its own words."""

from __future__ import annotations

from typing import Any

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.errors import AuthenticationError, NotFound, PermissionDenied, QuantumRuntimeError
from prefect_qruntime.models import Backend, InstanceReport, Usage

__all__ = ["check_instance"]


async def check_instance(client: QuantumRuntimeClient) -> InstanceReport:
    """Authenticate, then read what the instance shows.

    Returns:
        The report. It never raises for what the service answers: that is what the report is for.
    """
    connection = client.connection
    facts: dict[str, Any] = {
        "dialect": connection.dialect,
        "host": connection.host,
        "crn": connection.crn,
        "region": connection.region,
    }
    try:
        facts["token_seconds_left"] = await client.authenticate()
    except QuantumRuntimeError as error:
        return InstanceReport(ok=False, problems=(_token_problem(error, connection.iam_url),), **facts)

    problems: list[str] = []
    missing: list[str] = []
    backends: list[Backend] = []
    try:
        backends = await client.backends()
    except QuantumRuntimeError as error:
        problems.append(_instance_problem(error, connection.host, connection.dialect))
        if isinstance(error, PermissionDenied):
            missing.append("list backends (quantum-computing.device.read)")
    usage: Usage | None = None
    if not problems:
        try:
            usage = await client.usage()
        except PermissionDenied:
            missing.append("read usage (quantum-computing.instance-usage.read)")
        except QuantumRuntimeError as error:
            if not isinstance(error, NotFound):
                problems.append(f"The instance's usage cannot be read: {error}")
        if not backends:
            problems.append("The instance has no backends. Ask its owner to grant it some.")
        if usage is not None and usage.remaining_seconds == 0:
            problems.append("The instance has no QPU time left in this period; jobs would wait or be refused.")
    versions: tuple[str, ...] = ()
    if not problems:
        try:
            versions = await client.versions()
        except QuantumRuntimeError:
            versions = ()  # not every host lists them; nothing depends on it
        if connection.dialect == "cloud" and versions and connection.api_version < min(versions):
            problems.append(
                f"API version {connection.api_version} is older than all that the service offers "
                f"({min(versions)} …). Set api_version to {max(versions)}."
            )
    return InstanceReport(
        ok=not problems,
        plan=usage.plan_id if usage else None,
        backends=tuple(backend.name for backend in backends),
        usage=usage,
        api_versions=versions,
        missing_rights=tuple(missing),
        problems=tuple(problems),
        **facts,
    )


def _token_problem(error: QuantumRuntimeError, iam_url: str) -> str:
    if error.status == 404:  # IAM answers an unknown key with 400
        return f"{iam_url} has no /identity/token. Check iam_url."
    if isinstance(error, AuthenticationError) and error.status is not None:
        return f"The API key was refused by {iam_url}: {error}"
    return f"No token could be had from {iam_url}: {error} Check iam_url, proxy, ca_file and the network."


def _instance_problem(error: QuantumRuntimeError, host: str, dialect: str) -> str:
    if isinstance(error, AuthenticationError):
        return (
            f"The token is valid but {host} refuses it: {error} Check that the key's account owns the CRN, "
            "and that this machine's proxy passes the Authorization header."
        )
    if isinstance(error, PermissionDenied):
        return f"The key has no right on this instance: {error} Ask the account's admin for access to the CRN."
    if isinstance(error, NotFound):
        return f"{host} does not know the instance or the path: {error} Check crn, dialect ({dialect}) and base_url."
    return f"{host} gives no list of backends: {error}"
