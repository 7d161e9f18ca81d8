"""Check the instance with a token: whether the key is known, has the rights that flows need, and has backends."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import HOSTS, Connection, dialect_that_answers
from prefect_qruntime.diagnostics.fields import Finding, hint, ok, problem
from prefect_qruntime.diagnostics.network import Address, check_api, check_iam
from prefect_qruntime.errors import AuthenticationError, NotFound, PermissionDenied, PolicyRefused, QuantumRuntimeError
from prefect_qruntime.models import Backend, InstanceReport, Job, Usage
from prefect_qruntime.redact import number_text

__all__ = ["InstanceInspection", "check_dialect", "check_instance", "check_token", "inspect_instance"]

T = TypeVar("T")
# IAM actions by what needs them (IBM Quantum docs, "Authorization roles").
_BACKENDS = "quantum-computing.device.read"
_USAGE = "quantum-computing.instance-usage.read"
_JOBS = "quantum-computing.job.read"


@dataclass
class InstanceInspection:
    """The outcome of inspecting an instance."""

    findings: list[Finding] = field(default_factory=list)
    backends: list[Backend] = field(default_factory=list)
    usage: Usage | None = None
    versions: tuple[str, ...] = ()
    missing_rights: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return all(finding.level != "problem" for finding in self.findings)


async def check_token(client: QuantumRuntimeClient) -> tuple[Finding | None, float | None]:
    """Exchange the key; returns the problem, or the token's remaining life in seconds.

    Raises:
        PolicyRefused: The installation's policy does not let the key go to the block's hosts.
    """
    connection = client.connection
    try:
        return None, await client.authenticate()
    except PolicyRefused:
        raise
    except QuantumRuntimeError as error:
        code = str(error.code or "")
        if code == "BXNIM0415E":
            said = f"The API key is not known to {connection.iam_url}."
            fix = "Create a new key in IBM Cloud under Manage > Access (IAM) > API keys and save it in the block."
            return problem("api_key", said, fix), None
        if code.startswith("BXN"):
            said = f"The API key was refused by {connection.iam_url}: {error}"
            fix = "Check in IBM Cloud under Manage > Access (IAM) > API keys whether it is locked or expired."
            return problem("api_key", said, fix), None
        address = await check_iam(connection)
        said = f"No token could be obtained from {connection.iam_url}: {error}"
        return address.finding or problem("iam_url", said, "Try again later."), None


def check_dialect(connection: Connection, address: Address) -> Finding | None:
    """Check that the dialect that answered is the block's."""
    if address.speaks is None or address.speaks == connection.dialect:
        return None
    right = HOSTS[address.speaks].corrects
    return problem(
        "dialect",
        f"{connection.base_url} speaks the {address.speaks} dialect, the block says {connection.dialect}.",
        f"Set dialect to {address.speaks}, or correct {right}.",
    )


async def inspect_instance(client: QuantumRuntimeClient, *, thorough: bool = False) -> InstanceInspection:
    """Read the instance's rights, backends, usage and versions, with a token. Submits nothing.

    Args:
        client: Its client.
        thorough: Also check jobs and the websocket.
    """
    inspection = InstanceInspection()
    backends, no_backends = await _tried(client.backends())
    inspection.backends = backends or []
    if no_backends is not None and not isinstance(no_backends, PermissionDenied):
        inspection.findings.append(await _no_backends(client, no_backends))
        return inspection
    usage, no_usage = await _tried(client.usage())
    inspection.usage = usage
    jobs, no_jobs = await _tried(client.jobs(limit=1)) if thorough else (None, None)
    refused = [error for error in (no_backends, no_usage, no_jobs) if isinstance(error, PermissionDenied)]
    if isinstance(no_backends, PermissionDenied) and len(refused) == (3 if thorough else 2):
        inspection.missing_rights.append(f"list backends ({_BACKENDS})")
        inspection.findings.append(
            problem(
                "crn",
                f"The key has no access to the instance of this CRN: {no_backends.message}.",
                "Take the CRN of an instance of the key's own account, or ask that account's admin for access to it.",
            )
        )
        return inspection
    _judge_backends(inspection, no_backends)
    _judge_usage(inspection, no_usage)
    if no_jobs is not None:
        _judge_jobs(inspection, no_jobs)
    await _judge_versions(client, inspection)
    if thorough:
        inspection.findings.append(await _websocket(client, jobs))
    return inspection


async def _tried(call: Awaitable[T]) -> tuple[T | None, QuantumRuntimeError | None]:
    try:
        return await call, None
    except QuantumRuntimeError as error:
        return None, error


async def _no_backends(client: QuantumRuntimeClient, error: QuantumRuntimeError) -> Finding:
    """Explain why the list of backends, the simplest request, fails."""
    connection = client.connection
    host = connection.host
    if isinstance(error, AuthenticationError):
        return problem(
            "access",
            f"IAM gave a token, but {host} refuses it: {error}",
            "Take key and CRN of the same account and the iam_url that belongs to this host; check that no proxy "
            "drops the Authorization header.",
        )
    address = await check_api(connection)
    if address.finding is not None:
        return address.finding
    if isinstance(error, NotFound):
        return problem(
            "crn",
            f"{host} knows no instance with this CRN: {error.message}.",
            "Copy the CRN again from the instance's page; its region must be the host's.",
        )
    if (wrong := check_dialect(connection, address)) is not None:
        return wrong
    versions, _ = await _tried(client.versions())
    if versions and HOSTS[connection.dialect].lists_versions and connection.api_version not in versions:
        return _version(connection.api_version, versions)
    return problem("access", f"{host} does not list backends: {error}", "Read the message, or try again later.")


def _right(doing: str, action: str) -> tuple[str, str]:
    return f"The key may not {doing}.", f"Ask the account's admin for the IAM action {action} on this instance."


def _judge_backends(inspection: InstanceInspection, error: QuantumRuntimeError | None) -> None:
    if error is not None:
        inspection.missing_rights.append(f"list backends ({_BACKENDS})")
        inspection.findings.append(problem("rights", *_right("list backends", _BACKENDS)))
    elif not inspection.backends:
        inspection.findings.append(
            problem("backends", "The instance has no backends.", "Ask its owner to grant it some.")
        )
    else:
        online = [backend.name for backend in inspection.backends if backend.is_online]
        count = f"{len(online)} of {len(inspection.backends)} backends are online"
        if online:
            inspection.findings.append(ok("backends", f"{count}: {', '.join(online)}"))
        else:
            inspection.findings.append(hint("backends", f"{count}.", "Jobs wait in the queue until one is back."))


def _judge_usage(inspection: InstanceInspection, error: QuantumRuntimeError | None) -> None:
    if isinstance(error, PermissionDenied):
        inspection.missing_rights.append(f"read usage ({_USAGE})")
        said, fix = _right("read the instance's usage", _USAGE)
        inspection.findings.append(hint("rights", said, f"{fix} Budgets need it."))
    elif isinstance(error, NotFound):
        inspection.findings.append(hint("usage", "This host does not report usage."))
    elif error is not None:
        inspection.findings.append(
            problem("usage", f"The instance's usage cannot be read: {error}", "Try again later.")
        )
    elif inspection.usage is not None:
        left = inspection.usage.remaining_seconds
        if left == 0:
            inspection.findings.append(
                problem(
                    "usage",
                    "The instance has no QPU time left in this period; jobs would wait or be refused.",
                    "Raise the instance's limit, or wait for the next period"
                    + (f" ({inspection.usage.period_end:%Y-%m-%d})." if inspection.usage.period_end else "."),
                )
            )
        else:
            rest = "no limit" if left is None else f"{number_text(left)} left"
            plan = f", plan {inspection.usage.plan_id}" if inspection.usage.plan_id else ""
            inspection.findings.append(
                ok("usage", f"{number_text(inspection.usage.consumed_seconds)} QPU seconds used, {rest}{plan}")
            )


def _judge_jobs(inspection: InstanceInspection, error: QuantumRuntimeError) -> None:
    if isinstance(error, PermissionDenied):
        inspection.missing_rights.append(f"read jobs ({_JOBS})")
        said, fix = _right("read jobs", _JOBS)
        inspection.findings.append(problem("rights", said, f"{fix} Without it no job can be waited for."))
    else:
        inspection.findings.append(
            problem("jobs", f"The instance's jobs cannot be listed: {error}", "Try again later.")
        )


async def _judge_versions(client: QuantumRuntimeClient, inspection: InstanceInspection) -> None:
    """Find two mistakes by the versions: a sunset `api_version`, and a cloud host in a legacy block."""
    connection = client.connection
    found, _ = await _tried(client.versions())  # not every host lists them; nothing depends on it
    inspection.versions = found or ()
    if not inspection.versions:
        return
    if not HOSTS[connection.dialect].lists_versions:
        wrong = check_dialect(connection, Address(speaks=dialect_that_answers(lists_versions=True)))
        inspection.findings += [wrong] if wrong is not None else []
    elif connection.api_version not in inspection.versions:
        unknown = _version(connection.api_version, inspection.versions)
        # It answered nevertheless: only a version older than all others will stop working.
        works = connection.api_version > min(inspection.versions)
        inspection.findings.append(unknown.model_copy(update={"level": "hint"}) if works else unknown)


def _version(ours: str, versions: tuple[str, ...]) -> Finding:
    newest = max(versions)
    if ours > newest:
        said, fix = f"is newer than all that the service lists (up to {newest}).", f"Set api_version to {newest}."
    else:
        said, fix = (
            f"is not one that the service offers ({min(versions)} … {newest}).",
            f"Set api_version to {newest}, or leave the default.",
        )
    return problem("api_version", f"API version {ours} {said}", fix)


async def _websocket(client: QuantumRuntimeClient, jobs: list[Job] | None) -> Finding:
    if not client.expects_stream:
        return ok("websocket", f"None in the {client.connection.dialect} dialect, which is normal: waiting polls")
    if not jobs:
        return ok("websocket", "No job to try it with; the first wait tries it, and polls without")
    refusal, error = await _tried(client.knock(jobs[0].id))
    if refusal is None and error is None:
        return ok("websocket", "The host offers it: ends of jobs are noticed at once")
    reason = refusal or (error.message if error is not None else "")
    return hint(
        "websocket",
        f"The host offers no websocket ({reason}): waiting polls.",
        "Nothing needs to be done. If it should have one, make sure that the proxy lets websockets pass.",
    )


async def check_instance(client: QuantumRuntimeClient) -> InstanceReport:
    """Authenticate, then inspect the instance.

    Returns:
        The report. It raises no error for an answer of the service: the report contains it.
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
    inspection = await inspect_instance(client)
    return InstanceReport(
        ok=inspection.ok,
        plan=inspection.usage.plan_id if inspection.usage else None,
        backends=tuple(backend.name for backend in inspection.backends),
        usage=inspection.usage,
        api_versions=inspection.versions,
        missing_rights=tuple(inspection.missing_rights),
        problems=tuple(str(finding) for finding in inspection.findings if finding.level == "problem"),
        token_seconds_left=life,
        **where,
    )
