"""The policy block: what the tenants of an installation may do, and which team has which share of it.

An administrator owns it. It is stored under a fixed name in Prefect, read before each submission, and cached for half a
minute. If Prefect cannot be asked, nothing is submitted. Each connection of a credentials block checks its hosts
(`check_hosts`) before it requests or uses an access token.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from cachetools import LRUCache
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, field_validator, model_validator

from prefect_qruntime.admission.budget_core import lowest
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.errors import PolicyRefused
from prefect_qruntime.prefect_api import Loadable, api, in_run, not_sent, patience, wrong_fields
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import QuantumRuntimeSettings, current_settings

__all__ = [
    "Asked",
    "PolicyRule",
    "QuantumRuntimePolicy",
    "TeamShare",
    "Tenant",
    "admit",
    "check_hosts",
    "host_refusal",
    "limits",
    "policy_in_force",
    "refusal",
    "share_of",
    "tenant_of",
]

log = get_logger(__name__)

_FRESH = 30.0  # seconds for which a policy is not read again
_ANSWER = 5.0  # seconds within which Prefect must answer if the cached policy will do
_GLANCE = 1.0  # the same, outside any run
_KEEP = 512


class _Entry(BaseModel):
    """An entry of the policy as it is typed: spaces around a name mean nothing, and null is a field not given."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _only_given(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}


class PolicyRule(_Entry):
    """Limits for the submissions that match it. All rules that match a submission apply together.

    Names may contain `*`. An empty field matches all.
    """

    deployment: str = Field(default="", description="Deployment: its name, or flow/deployment.")
    tag: str = Field(default="", description="Tag of the deployment, or of a flow run without one.")
    work_pool: str = Field(default="", description="Work pool of the deployment.")
    block: str = Field(default="", description="Name of the credentials block.")
    backends: list[str] = Field(default=[], description="Backends that may be used. Empty: all.")
    programs: list[str] = Field(default=[], description="Programs that may run, such as sampler. Empty: all.")
    max_execution_time: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SECONDS,
        description="Most QPU seconds of a job, and the limit of jobs without one.",
    )
    max_session_seconds: int | None = Field(
        default=None, ge=0, description="Longest life of a dedicated session in seconds; 0 allows none."
    )


class TeamShare(_Entry):
    """One team's share of the create rate, and its ceilings. It is named by a tag of its deployments or a work pool."""

    name: str = Field(min_length=1, max_length=60, description="The team.")
    tag: str = Field(default="", description="Tag of its deployments, or of its flow runs without one.")
    work_pool: str = Field(default="", description="Its work pool.")
    weight: float = Field(default=1.0, ge=0.01, le=100, description="Its share, relative to the other waiting teams.")
    max_creates_per_minute: int | None = Field(
        default=None, ge=1, le=60, description="Most jobs it may create a minute."
    )

    @model_validator(mode="after")
    def _named(self) -> TeamShare:
        if not (self.tag or self.work_pool):
            raise ValueError("a team's share needs a tag or a work pool")
        return self


class QuantumRuntimePolicy(Loadable, Block):
    """What the tenants of an installation may do. Save it under the name `qruntime-policy` and let only admins edit it.

    Attributes:
        hosts: Hosts to which an API key or an access token may be sent.
        rules: What each tenant may use.
        refuse_unnamed: Whether submissions that match no rule are refused.
        shares: The teams' shares of the create rate.

    Example:
        ```python
        from prefect_qruntime import QuantumRuntimePolicy

        policy = QuantumRuntimePolicy.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Quantum Runtime Policy"
    _block_type_slug = "quantum-runtime-policy"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/1459110?s=200&v=4")
    _documentation_url = HttpUrl("https://prefect-qruntime.github.io/prefect-qruntime/how-to/teams/#the-policy")
    _description = "What the tenants of an installation may do, and each team's share of it. Owned by an administrator."

    hosts: list[str] = Field(
        default=["*.quantum.cloud.ibm.com", "quantum.cloud.ibm.com", "iam.cloud.ibm.com"],
        title="Hosts",
        description=(
            "Hosts to which an API key or an access token may be sent, with the port unless it is the usual one. A "
            "credentials block whose base_url or iam_url points elsewhere is refused. Empty: all hosts."
        ),
    )
    rules: list[PolicyRule] = Field(
        default=[],
        title="Rules",
        description="What each tenant may use. All rules that match a submission apply together.",
    )
    refuse_unnamed: bool = Field(
        default=False,
        title="Refuse what matches no rule",
        description="Whether a submission that matches no rule is refused.",
    )
    shares: list[TeamShare] = Field(
        default=[],
        title="Shares",
        description="The teams' shares of the create rate. All other submissions together have the weight 1.",
    )

    @field_validator("hosts")
    @classmethod
    def _plain_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not host or "/" in host or host != host.strip():
                raise ValueError(
                    f"{host!r} is not a host: give a name such as iam.cloud.ibm.com, without https:// and path"
                )
        return [host.lower() for host in hosts]

    @field_validator("shares")
    @classmethod
    def _each_once(cls, shares: list[TeamShare]) -> list[TeamShare]:
        names = [share.name for share in shares]
        if len(set(names)) < len(names):
            raise ValueError("two shares have the same name")
        return shares


# ---- decisions only ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tenant:
    """The submitter, as far as an administrator can identify it.

    Attributes:
        flow: Name of the deployment's flow.
        deployment: Name of the deployment.
        tags: Of the deployment, or of a flow run that has none.
        work_pool: Of the deployment.
        block: Name of the credentials block.
    """

    flow: str | None = None
    deployment: str | None = None
    tags: frozenset[str] = frozenset()
    work_pool: str | None = None
    block: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: a job, or a dedicated session if `session_seconds` is set (0 for one of any life)."""

    backend: str
    program: str | None = None
    max_execution_time: int | None = None
    session_seconds: int | None = None


def host_refusal(policy: QuantumRuntimePolicy, base_url: str, iam_url: str) -> str | None:
    """The reason why a credentials block's addresses are refused; None if they are allowed."""
    for name, url in (("base_url", base_url), ("iam_url", iam_url)):
        host = _host(url)
        if policy.hosts and not _named(policy.hosts, host):
            return (
                f"the credentials block's {name} points to {host!r}, which is not among the policy's hosts "
                f"({', '.join(policy.hosts)})"
            )
    return None


def _host(url: str) -> str:
    parts = urlsplit(url)
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    return (parts.hostname or "") + (f":{parts.port}" if parts.port not in (None, usual) else "")


def _rules(policy: QuantumRuntimePolicy, tenant: Tenant) -> Iterator[PolicyRule]:
    for rule in policy.rules:
        full = f"{tenant.flow}/{tenant.deployment}" if tenant.deployment is not None else None
        if (
            (not rule.deployment or _named([rule.deployment], tenant.deployment, full))
            and (not rule.tag or _named([rule.tag], *tenant.tags))
            and (not rule.work_pool or _named([rule.work_pool], tenant.work_pool))
            and (not rule.block or _named([rule.block], tenant.block))
        ):
            yield rule


def _named(patterns: Iterable[str], *names: str | None) -> bool:
    """Whether one of the patterns fits one of the names. Only `*` has a meaning: a name may have brackets.

    Spaces around a name count as little as those around a pattern, which are removed as it is read.
    """
    bare = [one.replace("[", "[[]").replace("?", "[?]") for one in patterns]
    return any(fnmatchcase(name.strip(), one) for name in names if name is not None for one in bare)


def refusal(policy: QuantumRuntimePolicy, tenant: Tenant, asked: Asked) -> str | None:
    """The reason why a request is refused; None if it is allowed."""
    rules = list(_rules(policy, tenant))
    if not rules and policy.refuse_unnamed:
        return "no rule of the policy matches this submission, and the policy refuses such submissions"
    for rule in rules:
        why = _broken(rule, asked)
        if why is not None:
            return why
    return None


def _broken(rule: PolicyRule, asked: Asked) -> str | None:
    if rule.backends and not _named(rule.backends, asked.backend):
        return f"the backend {asked.backend!r} is not allowed; allowed are {', '.join(rule.backends)}"
    if asked.program is not None and rule.programs and not _named(rule.programs, asked.program):
        return f"the program {asked.program!r} is not allowed; allowed are {', '.join(rule.programs)}"
    most = rule.max_execution_time
    if most is not None and asked.max_execution_time is not None and asked.max_execution_time > most:
        return f"max_execution_time is {asked.max_execution_time} s; at most {most} s are allowed"
    life = rule.max_session_seconds
    if life is None or asked.session_seconds is None:
        return None
    if life == 0:
        return "no dedicated session is allowed; use a batch, or single jobs in the legacy dialect"
    if asked.session_seconds > life:
        return f"max_ttl of the dedicated session is {asked.session_seconds} s; at most {life} s are allowed"
    return None


def limits(policy: QuantumRuntimePolicy, tenant: Tenant) -> tuple[int | None, int | None]:
    """The most QPU seconds of a job, and the longest life of a session."""
    rules = list(_rules(policy, tenant))
    return lowest(*(one.max_execution_time for one in rules)), lowest(*(one.max_session_seconds for one in rules))


def share_of(policy: QuantumRuntimePolicy, tenant: Tenant) -> TeamShare | None:
    """The first share that matches the tenant; None if none does."""
    for share in policy.shares:
        of_tag = share.tag and _named([share.tag], *tenant.tags)
        if of_tag or (share.work_pool and _named([share.work_pool], tenant.work_pool)):
            return share
    return None


# ---- Prefect -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Known:
    """A cache of the policies that this process read, by Prefect's address and the block's name, and of tenants."""

    policies: dict[tuple[str, str], tuple[float, QuantumRuntimePolicy | None]] = field(default_factory=dict)
    failed: dict[tuple[str, str], float] = field(default_factory=dict)
    tenants: LRUCache[str, tuple[float, Tenant]] = field(default_factory=lambda: LRUCache(_KEEP))
    reading: SingleFlight[Tenant] = field(default_factory=SingleFlight)
    in_force: SingleFlight[QuantumRuntimePolicy | None] = field(default_factory=SingleFlight)


async def policy_in_force(*, buys: bool = True) -> QuantumRuntimePolicy | None:
    """Read the installation's policy; None if it has none. Runs on the network loop.

    Args:
        buys: Whether something is about to be submitted. If not, the cached policy will do if Prefect is unreachable.

    Raises:
        InvalidInput: A setting is wrong, so that the policy's name is not known.
        PolicyRefused: The policy cannot be read, so nothing is allowed.
        QuantumRuntimeError: Prefect could not be asked, in a run.
    """
    url = get_current_settings().api.url
    if url is None and not in_run():
        return None  # there is no Prefect to ask
    name = current_settings().policy_block
    known, which = network_loop().state(_Known), (str(url), name)
    moment, policy = known.policies.get(which, (float("-inf"), None))
    if time.monotonic() - moment < _FRESH:
        return policy
    # A script outside any run needs no Prefect and could name another: a policy applies there if it can be read.
    glances = not in_run()
    will_do = glances or (moment > float("-inf") and not buys)
    if will_do and time.monotonic() - known.failed.get(which, float("-inf")) < _FRESH:
        return policy
    # None waits for the failures of the others.
    reading = partial(_read_in_force, known, which, buys=buys, will_do=will_do, glances=glances)
    return await known.in_force.join(reading, which, buys, will_do, glances)


async def _read_in_force(
    known: _Known, which: tuple[str, str], *, buys: bool, will_do: bool, glances: bool
) -> QuantumRuntimePolicy | None:
    name, (_, policy) = which[1], known.policies.get(which, (float("-inf"), None))
    try:
        with patience(_GLANCE if glances else _ANSWER) if will_do else contextlib.nullcontext():
            data = await _read(name)
    except Exception as error:
        first = which not in known.failed  # in this outage
        known.failed[which] = time.monotonic()
        if will_do:
            what = "The last known one applies." if policy is not None else "None applies."
            level = logging.WARNING if first else logging.DEBUG
            log.log(level, "The policy could not be read from Prefect (%r). %s", error, what)
            return policy
        raise not_sent(
            f"The policy {name!r} cannot be read: Prefect's API failed ({error!r}). Without it nothing is allowed."
        ) from error
    known.failed.pop(which, None)
    try:
        found = _parsed(name, data)
    except PolicyRefused:
        if buys:
            raise
        # Existing jobs and sessions must stay manageable, on the hosts that an administrator last allowed.
        usable = policy if data is None else _hosts_of(data)
        known.policies[which] = time.monotonic() - 2 * _FRESH, usable  # for an outage only
        return usable
    known.policies[which] = time.monotonic(), found
    return found


async def _read(name: str) -> dict[str, Any] | None:
    with contextlib.suppress(ObjectNotFound):
        slug = QuantumRuntimePolicy.get_block_type_slug()
        return (await (await api()).read_block_document_by_name(name, slug)).data
    return None


def _hosts_of(data: dict[str, Any]) -> QuantumRuntimePolicy:
    """A policy of the hosts alone of one that has a wrong field."""
    with contextlib.suppress(KeyError, ValidationError):
        return QuantumRuntimePolicy(hosts=data["hosts"])
    return QuantumRuntimePolicy()


def _parsed(name: str, data: dict[str, Any] | None) -> QuantumRuntimePolicy | None:
    """Parse the policy of a block document; None if there is none and no setting names one.

    Raises:
        PolicyRefused: A field of it is wrong, or it is gone.
    """
    if data is None:
        if name == QuantumRuntimeSettings.model_fields["policy_block"].default:
            return None
        raise PolicyRefused(
            f"No policy is named {name!r}, but PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK names it. Until it is saved, "
            "nothing is allowed.",
            solution="This request was not sent. Correct the setting, or save the policy under this name.",
            policy=name,
        )
    try:
        policy = QuantumRuntimePolicy(**data)
    except ValidationError as error:
        wrong = wrong_fields(error)
        raise PolicyRefused(
            f"The policy {name!r} has a wrong field ({wrong}). Until it is corrected, nothing is allowed.",
            solution="This request was not sent. An administrator has to correct the block in Prefect's UI.",
            policy=name,
        ) from None
    policy._block_document_name = name
    return policy


async def check_hosts(connection: Connection) -> None:
    """Refuse a credentials block that points to a host that the policy does not allow. Runs on the network loop.

    The guard of each connection that a block makes, so it is asked before a key or a token is sent, by any caller.

    Raises:
        PolicyRefused: The host is not allowed.
        QuantumRuntimeError: Prefect could not be asked for the policy.
    """
    policy = await policy_in_force(buys=False)
    if policy is not None:
        _refuse(policy, host_refusal(policy, connection.base_url, connection.iam_url))


async def admit(
    connection: Connection, where: RunContext, block: str | None, asked: Sequence[Asked]
) -> tuple[int | None, int | None]:
    """Refuse what the policy does not allow. Runs on the network loop.

    Args:
        connection: The instance to which it would be sent.
        where: The flow run that asks.
        block: Name of the credentials block.
        asked: The requests.

    Returns:
        The most QPU seconds of a job, and the longest life of a session.

    Raises:
        PolicyRefused: It is not allowed.
        QuantumRuntimeError: Prefect could not be asked.
    """
    policy = await policy_in_force()
    if policy is None:
        return None, None
    _refuse(policy, host_refusal(policy, connection.base_url, connection.iam_url))
    if not policy.rules and not policy.refuse_unnamed:
        return None, None
    tenant = await tenant_of(where, block)
    for one in asked:
        _refuse(policy, refusal(policy, tenant, one))
    return limits(policy, tenant)


def _refuse(policy: QuantumRuntimePolicy, why: str | None) -> None:
    if why is not None:
        name = policy._block_document_name
        which = f"The policy {name!r}" if name else "The policy that applies while the installation's cannot be read"
        raise PolicyRefused(
            f"{which} does not allow this: {why}.",
            solution="This request was not sent. Change the request, or ask an administrator to change the policy.",
            policy=name,
        )


async def tenant_of(where: RunContext, block: str | None) -> Tenant:
    """Identify the submitter. Runs on the network loop.

    Raises:
        QuantumRuntimeError: Prefect could not be asked.
    """
    known = network_loop().state(_Known)
    name = where.deployment_id or where.flow_run_id
    if name is None:
        return Tenant(block=block)
    moment, tenant = known.tenants.get(name, (float("-inf"), Tenant()))
    if time.monotonic() - moment >= _FRESH:
        try:
            tenant = await known.reading.join(partial(_read_tenant, where), name)
        except Exception as error:
            if name not in known.tenants or not isinstance(error, ObjectNotFound):  # else it was deleted since then
                text = f"The deployment could not be read from Prefect ({error!r}), so the policy cannot be applied."
                raise not_sent(text) from error
        else:
            known.tenants[name] = time.monotonic(), tenant
    return replace(tenant, block=block)


async def _read_tenant(where: RunContext) -> Tenant:
    client = await api()
    if where.deployment_id is not None:
        deployment = await client.read_deployment(UUID(where.deployment_id))
        flow = await client.read_flow(deployment.flow_id)
        return Tenant(flow.name, deployment.name, frozenset(deployment.tags), deployment.work_pool_name)
    run = await client.read_flow_run(UUID(where.flow_run_id or ""))
    return Tenant(tags=frozenset(run.tags))
