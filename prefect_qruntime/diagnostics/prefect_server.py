"""Check Prefect's side: server, versions, block types, create limits, work pool, results and our own settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from shlex import quote
from urllib.parse import urlsplit

import httpx
import prefect
from packaging.version import InvalidVersion, Version
from prefect.blocks.core import Block
from prefect.client.base import ServerType
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    WorkPoolFilter,
    WorkPoolFilterId,
    WorkQueueFilter,
    WorkQueueFilterId,
)
from prefect.client.schemas.objects import WorkPool, WorkQueue
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import ValidationError

from prefect_qruntime.admission.budget import Budget, budgets_in_force, has_limits
from prefect_qruntime.admission.lock_core import SILENCE
from prefect_qruntime.admission.locks import read_locks
from prefect_qruntime.admission.policy import policy_in_force
from prefect_qruntime.admission.rate_limit import pace, shared_limits
from prefect_qruntime.client.connection import Connection, is_loopback
from prefect_qruntime.diagnostics.fields import Finding, hint, ok, problem
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Usage
from prefect_qruntime.prefect_api import api, patience, saved_documents
from prefect_qruntime.redact import many, redact
from prefect_qruntime.settings import QuantumRuntimeSettings, current_settings, unknown_settings, wrong_settings

__all__ = [
    "check_budget",
    "check_floor",
    "check_limits",
    "check_policy",
    "check_prefect",
    "check_server",
    "check_settings",
    "refusal",
    "unreachable",
]

_SERVICE_TTL = 28800
"""Seconds after which the service itself ends a session."""
_SERVICE_RATE = 5
"""Jobs a minute that the service accepts from a user (IBM's OpenAPI document)."""
_ANSWER = 10.0
"""Seconds within which a working server answers."""
_MANY = 10
"""Simultaneous flow runs from which a plain server on SQLite was seen to stall."""
_NAMED = 5
"""Deployments that a finding names."""
_PAGE = 200
"""Rows that Prefect's API returns at most."""


async def check_server() -> tuple[PrefectClient | None, list[Finding]]:
    """Reach the Prefect server. Runs on the network loop.

    Returns:
        The open client, None if the server cannot be reached, and what was found.
    """
    url = get_current_settings().api.url
    try:
        if url is not None and await _nothing_listens(url):
            return None, [unreachable(url, "nothing listens there")]
        client = await api()
        with patience(_ANSWER):
            answer = await client._client.get("/health")
        if client.server_type is not ServerType.CLOUD:
            if answer.text.strip() != "true":
                return None, [unreachable(url, "something else answers there")]
            with patience(_ANSWER):
                await client.api_version()  # a server tells its health without a password
    except Exception as error:  # no server set and none allowed to start, or the start failed
        if (refused := refusal(error)) is not None:
            return None, [refused]
        reason = redact(str(error)).split("\n")[0]
        return None, [unreachable(url, reason or f"it gave no answer within {_ANSWER:.0f} s")]
    if url is not None:
        return client, [ok("server", f"Prefect answers at {url}")]
    return client, [
        hint(
            "server",
            "No Prefect server is set: each command starts a temporary one of its own.",
            "Run `prefect server start` and set PREFECT_API_URL; schedules and cancelling need it.",
        )
    ]


def unreachable(url: str | None, reason: str) -> Finding:
    """Build the finding that Prefect's API cannot be reached.

    Args:
        url: Its address; None if a server should have been started here.
        reason: Why, without a stop.
    """
    reason = reason.rstrip(".")
    if url is None:
        return problem(
            "server",
            f"No Prefect server is set, and none could be started here: {reason}.",
            "Run `prefect server start` and set PREFECT_API_URL to its address, for instance "
            "http://127.0.0.1:4200/api.",
        )
    return problem(
        "server",
        f"The Prefect server at {url} cannot be reached: {reason}.",
        "Start it with `prefect server start`, or correct PREFECT_API_URL (it ends with /api).",
    )


def refusal(error: BaseException) -> Finding | None:
    """Build the finding that Prefect's API refuses who asks; None if an error means something else."""
    if not isinstance(error, httpx.HTTPStatusError) or error.response.status_code != httpx.codes.UNAUTHORIZED:
        return None
    return problem(
        "server",
        f"The Prefect server at {get_current_settings().api.url} refuses this client (401 Unauthorized).",
        "Set PREFECT_API_AUTH_STRING to what the server has as PREFECT_SERVER_API_AUTH_STRING; for Prefect Cloud, set "
        "PREFECT_API_KEY to a valid key.",
    )


async def _nothing_listens(url: str) -> bool:
    """Whether a port of this machine is closed; other addresses may be behind a proxy."""
    parts = urlsplit(url)
    if not is_loopback(parts.hostname):
        return False
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, parts.port or 80), _ANSWER)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.close()
    return False


async def check_prefect(client: PrefectClient, kinds: Sequence[type[Block]], job_block: type[Block]) -> list[Finding]:
    """Check the server's data; one failing check hides no other. Runs on the network loop.

    Args:
        client: The open client.
        kinds: Our block types, that of the credentials first.
        job_block: That of jobs.
    """
    checks: dict[str, Callable[[PrefectClient], Awaitable[Finding]]] = {
        "versions": _versions,
        "block type": partial(_block_types, kinds),
        "work pool": _work_pool,
        "results": _results,
        "database": _database,
        "locks": _locks,
        "job blocks": partial(_budget_copies, job_block),
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(await check(client))
        except Exception as error:
            findings.append(
                problem(name, f"The server did not answer: {error}", "See the server's log; correct its version.")
            )
    return findings


def check_settings() -> list[Finding]:
    """Check our own settings."""
    fix = "Correct or remove it in the environment or the Prefect profile."
    unknown = [
        problem("settings", f"{name} is not a setting, so it has no effect.", f"{similar} {fix}".strip())
        for name, similar in unknown_settings().items()
    ]
    try:
        settings = QuantumRuntimeSettings()
    except ValidationError as error:
        return unknown + [problem("settings", f"{name}: {text}", fix) for name, text in wrong_settings(error)]
    return [*unknown, _session_life(settings)]


def _session_life(settings: QuantumRuntimeSettings) -> Finding:
    ttl = settings.session_max_ttl_seconds
    if ttl > _SERVICE_TTL:
        return hint(
            "session ttl",
            f"Sessions may live {ttl} s, longer than the service's own {_SERVICE_TTL} s.",
            "Lower PREFECT_INTEGRATIONS_QRUNTIME_SESSION_MAX_TTL_SECONDS: a session left open costs until then.",
        )
    return ok("session ttl", f"A session ends after {ttl} s at the latest, unless a flow sets another time")


async def check_limits(connection: Connection) -> Finding:
    """Check that all processes share the service's rate limit for creates. Runs on the network loop."""
    try:
        found = len(await shared_limits(connection.crn))
        here = pace(connection)
    except InvalidInput:  # as above
        return hint("limits", "Not checked, because a setting is wrong.")
    except Exception as error:
        return problem("limits", f"The create limits could not be read: {error}", "See the server's log.")
    fix = "Run `prefect-qruntime setup` once, so that all flows together create at most five jobs a minute."
    if not found and here is None:
        return ok("limits", "None: creates are not limited on this host")
    if not found:
        return hint("limits", "No create limit is set up in Prefect: each process limits its own rate only.", fix)
    if found > _SERVICE_RATE:
        return hint(
            "limits",
            f"{found} creates a minute are allowed; the service accepts {_SERVICE_RATE} from a user.",
            "That is right if several users share the account; otherwise run `prefect-qruntime setup --per-minute 5`.",
        )
    return ok("limits", f"All flows together create at most {found} jobs a minute")


async def check_policy() -> Finding:
    """Report the installation's policy. Runs on the network loop."""
    try:
        policy = await policy_in_force()
    except InvalidInput:  # one of our settings is wrong, which is reported with the settings
        return hint("policy", "Not checked, because the settings that name it are wrong.")
    except QuantumRuntimeError as error:
        return problem("policy", error.message, error.solution or "")
    if policy is None:
        return ok("policy", "None: every flow may use every saved block, backend and program")
    rules = many(len(policy.rules), "rule")
    hosts = ", ".join(policy.hosts) or "any host"
    shares = ", ".join(f"{one.name} ({one.weight:g})" for one in policy.shares) or "none"
    return ok("policy", f"{rules}; keys go to {hosts} only; shares: {shares}")


async def check_budget() -> tuple[list[Budget], list[Finding]]:
    """Read the budget that the settings impose, if they do. Runs on the network loop.

    Returns:
        The budget, if there is one and it can be loaded, and what was found.
    """
    with contextlib.suppress(InvalidInput):  # a wrong setting is reported with the settings
        if (name := current_settings().budget_block) is not None:
            try:
                imposed = await budgets_in_force(None)
            except Exception as error:
                fix = "Correct the budget, or the setting that names it. Until then nothing can be submitted."
                return [], [problem("budget", str(getattr(error, "message", error)), fix)]
            return imposed, [ok("budget", f"{name} applies to every submission")]
    return [], []


def check_floor(usage: Usage | None, imposed: Sequence[Budget]) -> list[Finding]:
    """Report what imposed budgets keep of an instance that has no limit to keep it of."""
    if usage is None or usage.remaining_seconds is not None:
        return []
    return [
        hint(
            "budget",
            f"min_remaining_seconds of the budget {one.shown_name} has no effect here: the instance has no limit.",
            "Set a limit on the instance, or other limits in the budget.",
        )
        for one in imposed
        if one.min_remaining_seconds is not None
    ]


async def _budget_copies(of: type[Block], _client: PrefectClient) -> Finding:
    """Find the job blocks whose budget is a part of the block, so that changes of a saved budget do not reach it."""
    copies = [
        str(document.name)
        for document in await saved_documents(of)
        if "budget" not in document.block_document_references and has_limits(document.data.get("budget"))
    ]
    if not copies:
        return ok("job blocks", "None has a copy of a budget")
    return hint(
        "job blocks",
        f"The budget of the job {'block' if len(copies) == 1 else 'blocks'} {', '.join(sorted(copies))} is a copy "
        "inside the block: changes of a saved budget do not reach it.",
        "Choose the saved budget again in the job block's form, or save the block from Python with Budget.load(NAME).",
    )


async def _versions(client: PrefectClient) -> Finding:
    ours, theirs = prefect.__version__, await client.api_version()
    try:
        here, there = Version(ours), Version(theirs)
    except InvalidVersion:
        return hint("versions", f"Prefect {ours} here, {theirs} on the server.")
    if here.major != there.major:
        return problem(
            "versions",
            f"Prefect {ours} here cannot work with the server's {theirs}.",
            f"Install Prefect {theirs} here, or update the server.",
        )
    if here > there:
        return hint(
            "versions",
            f"The server's Prefect {theirs} is older than the {ours} here.",
            "Update the server first: newer clients may use features that it lacks.",
        )
    return ok("versions", f"Prefect {ours} here, {theirs} on the server")


async def _block_types(kinds: Sequence[type[Block]], client: PrefectClient) -> Finding:
    fix = "Run `prefect block register -m prefect_qruntime.blocks`."
    unknown, other = list[str](), list[str]()
    for kind in kinds:
        lacking = unknown
        try:
            await client.read_block_type_by_slug(kind.get_block_type_slug())
            lacking = other
            await client.read_block_schema_by_checksum(kind._calculate_schema_checksum())
        except ObjectNotFound:
            lacking.append(str(kind._block_type_name))
    if unknown:
        types = "the block type" if len(unknown) == 1 else "the block types"
        # Without the first, the credentials, nothing can be saved; the others matter to their users only.
        say = problem if kinds[0]._block_type_name in unknown else hint
        return say("block type", f"The server does not know {types} {', '.join(unknown)}.", fix)
    if other:
        said = f"The server has the form of another version of this package for {', '.join(other)}."
        return hint("block type", said, fix)
    return ok("block type", "All registered, with the forms of this version")


async def _work_pool(client: PrefectClient) -> Finding:
    pools = await client.read_work_pools()
    if not pools:
        return hint(
            "work pool",
            "There is no work pool.",
            "Only scheduled deployments need one: `prefect work-pool create my-pool --type process`.",
        )
    halts = [halt async for halt in _halts(client, pools)]
    if halts:
        fix = f"If that is not intended, run {' and '.join(command for _, command in halts)}."
        return hint("work pool", " ".join(finding for finding, _ in halts), fix)
    return ok("work pool", ", ".join(f"{pool.name} ({pool.type})" for pool in pools))


async def _halts(client: PrefectClient, pools: Sequence[WorkPool]) -> AsyncIterator[tuple[str, str]]:
    """Yield why no worker starts the flow runs of some deployments, with the command that changes it."""
    for pool in pools:
        if pool.is_paused or pool.concurrency_limit == 0:
            of_pool = WorkPoolFilter(id=WorkPoolFilterId(any_=[pool.id]))
            users = await client.read_deployments(work_pool_filter=of_pool, limit=_PAGE)
            if users:
                yield _halt(pool, f"work pool {pool.name}", "work-pool", quote(pool.name), users)
    names, queues = {pool.id: pool.name for pool in pools}, list[WorkQueue]()
    while page := await client.read_work_queues(limit=_PAGE, offset=len(queues)):
        queues += page
    for queue in queues:
        if queue.work_pool_id in names and (queue.is_paused or queue.concurrency_limit == 0):
            of_queue = WorkQueueFilter(id=WorkQueueFilterId(any_=[queue.id]))
            users = await client.read_deployments(work_queue_filter=of_queue, limit=_PAGE)
            if users:
                what, name = f"work queue {queue.name} of the pool", names[queue.work_pool_id]
                command = f"{quote(queue.name)} --pool {quote(name)}"
                yield _halt(queue, f"{what} {name}", "work-queue", command, users)


def _halt(
    one: WorkPool | WorkQueue, what: str, kind: str, name: str, users: Sequence[DeploymentResponse]
) -> tuple[str, str]:
    state, action = ("is paused", "resume") if one.is_paused else ("has the limit 0", "clear-concurrency-limit")
    first = ", ".join(sorted(user.name for user in users)[:_NAMED])
    more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    finding = f"The {what} {state}, so no worker starts the flow runs of {first}{more}."
    return finding, f"`prefect {kind} {action} {name}`"


async def _results(client: PrefectClient) -> Finding:
    results = get_current_settings().results
    if (block := results.default_storage_block) is not None:
        kind, _, name = block.partition("/")
        try:
            if not (kind and name):
                raise ObjectNotFound(ValueError(block))
            await client.read_block_document_by_name(name, kind, include_secrets=False)
        except ObjectNotFound:
            return problem(
                "results",
                f"No block {block!r} is saved, so no flow can keep a result.",
                "Save it, or correct PREFECT_DEFAULT_RESULT_STORAGE_BLOCK (BLOCK_TYPE/NAME).",
            )
        return ok("results", f"Kept in {block}")
    with contextlib.suppress(Exception):  # older servers and clients have no such default
        if (await client.read_server_default_result_storage()).default_result_storage_block_id is not None:
            return ok("results", "Kept in the server's default storage")
    return hint(
        "results",
        f"Results are kept on this machine only, in {results.local_storage_path}.",
        "To resume flows elsewhere, or to keep private results safe, set PREFECT_DEFAULT_RESULT_STORAGE_BLOCK.",
    )


async def _database(client: PrefectClient) -> Finding:
    settings = (await client.request("GET", "/admin/settings")).json()
    driver = ((settings.get("server") or {}).get("database") or {}).get("driver")
    url = str(((settings.get("server") or {}).get("database") or {}).get("connection_url") or "")
    if driver is not None and "sqlite" not in str(driver):
        return ok("database", f"Prefect keeps its data with {driver}")
    if driver is None and not url.startswith("sqlite"):
        # The address is hidden; without a driver in the settings it may be SQLite, Prefect's default.
        return ok("database", "Prefect does not say which database it uses")
    running = (
        await client.request(
            "POST", "/flow_runs/count", json={"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
        )
    ).json()
    if running < _MANY:
        return ok("database", "Prefect keeps its data in SQLite, which is enough for a few flows at a time")
    return hint(
        "database",
        f"{running} flow runs are active on a Prefect server with SQLite. Such a server may stall for up to a minute.",
        "Start it with `prefect-qruntime server` instead of `prefect server start`, or use PostgreSQL.",
    )


async def _locks(client: PrefectClient) -> Finding:
    held = await read_locks()
    stuck = [one for one in held if one.is_stuck]
    if not stuck:
        return ok("locks", f"{len(held)} held by submissions in flight" if held else "None is held")
    which = "; ".join(f"{one.name}, held by {one.who}, silent for {one.silent:.0f} s" for one in stuck)
    return hint(
        "locks",
        f"{many(len(stuck), 'lock')} of submission keys or budgets {'was' if len(stuck) == 1 else 'were'} left by "
        f"processes that ended: {which}.",
        f"The next submission that needs one takes it over after {SILENCE:.0f} s. `prefect-qruntime sweep` frees "
        "them now.",
    )
