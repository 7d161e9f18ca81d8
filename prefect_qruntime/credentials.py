"""The credentials block: API key, instance and address.

Building or loading a block never uses the network. The API key stays in its `SecretStr` until a client
needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator

from prefect_qruntime.admission.policy import check_hosts
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import DEFAULT_API_VERSION, Connection, Dialects
from prefect_qruntime.client.inputs.spec import check_texts
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import InvalidInput, NotFound, PermissionDenied, QuantumRuntimeError
from prefect_qruntime.models import InstanceReport
from prefect_qruntime.observability.artifacts import Place
from prefect_qruntime.prefect_api import Loadable, load_saved, saved_names
from prefect_qruntime.settings import current_settings

__all__ = [
    "Attended",
    "QuantumRuntimeCredentials",
    "aload_credentials",
    "block_name",
    "block_names",
    "leading_to",
    "load_credentials",
    "load_each",
    "load_for",
    "none_saved",
    "read_each",
    "saved_blocks",
    "that_sees",
    "with_new_key",
]

_AT_ONCE = 8  # instances that are read concurrently

T = TypeVar("T")

# Only flows repeat requests through an outage.
_WHILE_SOMEONE_WAITS = RetryDeadlines(token=5.0, read=5.0)


class QuantumRuntimeCredentials(Loadable, CredentialsBlock):
    """API key and instance of IBM's Qiskit Runtime REST API (IBM Quantum Compute Service).

    Building or loading a block never uses the network; `verify` does, and names each problem with its fix.

    Attributes:
        api_key: IBM Cloud API key.
        crn: Cloud Resource Name of the instance.
        dialect: `cloud` or `legacy`.
        api_version: Value of the `IBM-API-Version` header.
        base_url: What `/jobs` is appended to.
        iam_url: What `/identity/token` is appended to.
        application: Name shown in the service's metrics.
        ca_file: CA bundle for HTTPS.
        proxy: Proxy for all calls.
        request_timeout: Seconds one HTTP exchange may take.

    Raises:
        InvalidInput: A field is wrong; the error names it.

    Example:
        ```python
        from prefect_qruntime import QuantumRuntimeCredentials

        credentials = QuantumRuntimeCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Quantum Runtime Credentials"
    _block_type_slug = "quantum-runtime-credentials"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/1459110?s=200&v=4")
    _documentation_url = HttpUrl("https://quantum.cloud.ibm.com/docs/en/guides/cloud-setup-rest-api")
    _description = (
        "API key and instance of IBM's Qiskit Runtime REST API (IBM Quantum Compute Service). "
        "The key is stored encrypted and used only to get access tokens."
    )

    api_key: SecretStr = Field(
        default=...,
        title="API key",
        description="IBM Cloud API key, made in IBM Cloud under Manage, Access (IAM). One key serves all regions.",
    )
    crn: str = Field(
        default=...,
        title="Instance CRN",
        description=(
            "Cloud Resource Name of the instance, from its page on the IBM Quantum Platform: "
            "crn:v1:bluemix:public:quantum-computing:REGION:a/ACCOUNT:INSTANCE::. Its region picks the host."
        ),
    )
    dialect: Dialects = Field(
        default="cloud",
        title="Dialect",
        description="Which REST API the host speaks: cloud is today's service, legacy that of 2022 to 2024.",
    )
    api_version: str = Field(
        default=DEFAULT_API_VERSION,
        title="API version",
        description="Value of the IBM-API-Version header, a date. Leave it unless IBM announces a sunset.",
    )
    base_url: str = Field(
        default="",
        title="Base URL",
        description="What /jobs is appended to, for private endpoints, mirrors and the sandbox. Empty: by the region.",
    )
    iam_url: str = Field(
        default="",
        title="IAM URL",
        description="What /identity/token is appended to. Empty: https://iam.cloud.ibm.com.",
    )
    application: str = Field(
        default="prefect-qruntime",
        title="Application",
        description="Name of your application, shown as the caller in the service's job metrics.",
    )
    ca_file: str | None = Field(
        default=None,
        title="CA file",
        description="Path of a CA bundle on the worker, if a proxy or private endpoint has its own certificates.",
    )
    proxy: SecretStr | None = Field(
        default=None,
        title="Proxy",
        description="HTTP proxy, http://user:password@host:port. Empty: the worker's environment decides.",
    )
    request_timeout: float = Field(
        default=30.0,
        title="Request timeout",
        gt=0,
        le=3600,
        description="Seconds that one HTTP exchange may take. How long a job may take is the wait's own timeout.",
    )

    @field_validator("crn")
    @classmethod
    def _bare(cls, crn: str) -> str:
        return crn.strip(" ")  # blocks of one instance are told by it

    @model_validator(mode="after")
    def _check(self) -> QuantumRuntimeCredentials:
        # The key itself is checked when a client is made: documents are also built with masked secrets.
        self._connection(api_key="unchecked")
        return self

    def _connection(self, *, api_key: str | None = None) -> Connection:
        try:
            return Connection(
                api_key=self.api_key.get_secret_value() if api_key is None else api_key,
                crn=self.crn,
                dialect=self.dialect,
                base_url=self.base_url,
                iam_url=self.iam_url,
                api_version=self.api_version,
                application=self.application,
                ca_file=self.ca_file,
                proxy=self.proxy.get_secret_value() if self.proxy is not None else None,
                request_timeout=self.request_timeout,
                block=block_name(self),
                guard=check_hosts,
            )
        except QuantumRuntimeError as error:
            # Its traceback would show the key and the proxy's password among the local values.
            raise error.with_traceback(None) from None

    def get_client(self, *args: Any, **kwargs: Any) -> QuantumRuntimeClient:
        """A client of this instance. No network.

        Raises:
            InvalidInput: The API key is empty or masked.
        """
        return QuantumRuntimeClient(self._connection(), *args, **kwargs)

    def verify(self) -> InstanceReport:
        """Check the key and its rights with the service; for code without an event loop.

        Returns:
            A report; `ok` says whether jobs can be run, `problems` names each problem with its fix.
        """
        return network_loop().run(self.averify())

    async def averify(self) -> InstanceReport:
        """As `verify`, for async code."""
        from prefect_qruntime.diagnostics.instance import check_instance

        return await check_instance(self.get_client(patience=_WHILE_SOMEONE_WAITS))


def load_credentials(name: str) -> QuantumRuntimeCredentials:
    """Load a saved block by name, in sync code.

    Raises:
        InvalidInput: No block of this type has the name, or a field of it is wrong.
        PolicyRefused: Its host is not allowed by the installation's policy.
    """
    return network_loop().run(aload_credentials(name))


async def aload_credentials(name: str) -> QuantumRuntimeCredentials:
    """Load a saved block by name, in async code.

    Raises:
        InvalidInput: No block of this type has the name, or a field of it is wrong.
        PolicyRefused: Its host is not allowed by the installation's policy.
    """
    return await load_for(name, field="name")


async def load_for(name: str, *, field: str) -> QuantumRuntimeCredentials:
    """As `aload_credentials`, for a caller whose own parameter or option gave the name."""
    found = await load_saved(QuantumRuntimeCredentials, name, field=field, fix="Create one in the UI under Blocks.")
    await network_loop().arun(check_hosts(found._connection(api_key="unchecked")))
    return found


def block_name(credentials: QuantumRuntimeCredentials) -> str | None:
    """Name of the saved block, by which another process can load it again."""
    name = credentials._block_document_name
    return name if isinstance(name, str) else None


async def with_new_key(credentials: QuantumRuntimeCredentials) -> QuantumRuntimeCredentials | None:
    """The saved block as it is now, if it leads to the same instance with another key; None if it does not."""
    name, before = block_name(credentials), credentials.get_client().connection
    if name is None:
        return None
    place = Place(name, before.instance)
    try:
        saved = (await leading_to([place])).get(place, {}).get(name)
        return saved if saved is not None and saved.get_client().connection.api_key != before.api_key else None
    except Exception:  # what is raised is that the old key is refused
        return None


async def load_each(names: Iterable[str] | None) -> tuple[dict[str, QuantumRuntimeCredentials], dict[str, str]]:
    """Load several saved blocks; an invalid one is reported and does not stop the others. Runs on the network loop.

    Args:
        names: The blocks' names; None for all saved ones.

    Returns:
        The blocks by name, and what is wrong with those that cannot be used, by name.

    Raises:
        InvalidInput: The names are none, or a setting is wrong, which is no fault of a block.
    """
    current_settings()
    found: dict[str, QuantumRuntimeCredentials] = {}
    problems: dict[str, str] = {}
    for name in sorted(block_names(names)) if names is not None else await saved_blocks():
        try:
            found[name] = await aload_credentials(name)
            found[name].get_client()  # which checks the key
        except (QuantumRuntimeError, ValueError) as error:
            found.pop(name, None)
            problems[name] = f"{name}: {error}"
    return found, problems


async def leading_to(
    places: Iterable[Place], loaded: Mapping[str, QuantumRuntimeCredentials] | None = None
) -> dict[Place, dict[str, QuantumRuntimeCredentials]]:
    """Find the saved blocks that lead to recorded jobs and sessions. Runs on the network loop.

    Since something was recorded, its block may have been renamed, deleted, or edited so that it leads to another
    instance, which would say that it knows no such job or session.

    Args:
        places: Where they are.
        loaded: Blocks that are loaded already.

    Returns:
        The blocks by name, for each place: the one that was recorded, or else all others that lead to its instance.
        A place without any is left out.
    """
    blocks, found = dict(loaded or {}), dict[Place, dict[str, QuantumRuntimeCredentials]]()
    wanted = set(places)
    if missing := {place.block for place in wanted if place.block} - blocks.keys():
        blocks |= (await load_each(missing))[0]
    for place in wanted:
        named = blocks.get(place.block)
        if named is not None and place.is_reached(named.get_client().connection, place.block):
            found[place] = {place.block: named}
    if lost := {place for place in wanted - found.keys() if place.instance is not None}:
        others = (await load_each(None))[0]
        for place in lost:
            leading = {n: one for n, one in others.items() if place.is_reached(one.get_client().connection, n)}
            found |= {place: leading} if leading else {}
    return found


async def that_sees(
    place: Place,
    leading: Mapping[Place, Mapping[str, QuantumRuntimeCredentials]],
    read: Callable[[QuantumRuntimeClient], Awaitable[object]],
) -> str:
    """Name the block for a recorded job or session. Runs on the network loop.

    A user's key sees the user's own jobs and sessions only. So that another block does not see one says nothing.

    Args:
        place: Where it is.
        leading: What `leading_to` found.
        read: Reads it.

    Raises:
        QuantumRuntimeError: No saved block leads to its instance, or none with a key that sees it.
    """
    blocks, unread = leading.get(place, {}), list[str]()
    for name, credentials in blocks.items():
        if name == place.block:
            return name
        try:
            await read(credentials.get_client())
        except (NotFound, PermissionDenied):
            continue
        except QuantumRuntimeError:  # a revoked key, or a private host that is not reached from here
            unread.append(name)
        else:
            return name
    if unread:
        return unread[0]  # the caller meets its error again
    text = f"The credentials block {place.block!r} is gone or leads to another instance now." if place.block else ""
    if blocks:
        raise QuantumRuntimeError(f"{text} The keys of {', '.join(map(repr, blocks))} do not see it.".strip())
    raise QuantumRuntimeError(f"{text} No saved credentials block leads to its instance. Save one.".strip())


@dataclass(frozen=True, slots=True)
class Attended:
    """For a person who waits: short deadlines, and a report of the instances that are slow to answer.

    Attributes:
        report: Called once, with the blocks of the instances that have not answered by then.
        after: Seconds until it is called.
        patience: How long requests are repeated.
    """

    report: Callable[[Sequence[str]], None]
    after: float = 3.0
    patience: RetryDeadlines = _WHILE_SOMEONE_WAITS


async def read_each(
    loaded: Mapping[str, QuantumRuntimeCredentials],
    problems: dict[str, str],
    read: Callable[[str, QuantumRuntimeClient], Awaitable[T]],
    attended: Attended | None = None,
) -> dict[str, T]:
    """Read several instances at once, so that one that does not answer delays no other. Runs on the network loop.

    Args:
        loaded: The blocks by name. Blocks of one instance are read one after the other.
        problems: Receives what is wrong with the instances that cannot be read, by block.
        read: Reads an instance, by the name of the block and a client.
        attended: For a person who waits; None for an unattended flow, which is patient.

    Returns:
        What was read, by block.
    """
    patience = attended.patience if attended is not None else None
    found: dict[str, T] = {}
    waiting = dict.fromkeys(loaded)
    instances: dict[str, list[str]] = {}
    for name, credentials in loaded.items():
        instances.setdefault(credentials.crn, []).append(name)
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one_after_the_other(names: list[str]) -> None:
        async with at_once:
            for name in names:
                try:
                    found[name] = await read(name, loaded[name].get_client(patience=patience))
                except (QuantumRuntimeError, ValueError) as error:
                    problems[name] = f"{name}: {error}"
                finally:
                    del waiting[name]

    async with _reported(waiting, attended):
        await asyncio.gather(*(one_after_the_other(names) for names in instances.values()))
    return {name: found[name] for name in loaded if name in found}


@asynccontextmanager
async def _reported(waiting: Mapping[str, None], attended: Attended | None) -> AsyncIterator[None]:
    """Report what is still waited for, if the block takes long."""
    if attended is None:
        yield
        return
    timer = asyncio.get_running_loop().call_later(attended.after, lambda: attended.report(list(waiting)))
    try:
        yield
    finally:
        timer.cancel()


def block_names(names: Iterable[str], *, may_be_empty: bool = False) -> list[str]:
    """The names of blocks that a caller gives, each once.

    Args:
        names: The names.
        may_be_empty: Whether there is something to do without any.

    Raises:
        InvalidInput: They are no list of names, or an empty one.
    """
    found = check_texts(names, field="blocks")
    if not all(found):
        raise InvalidInput("a name is empty", field="blocks")
    if not (found or may_be_empty):  # what works with no instance would look like one where all is in order
        raise InvalidInput("no name is given; leave it out to use all saved blocks", field="blocks")
    return list(dict.fromkeys(found))


def none_saved() -> InvalidInput:
    """The error of a command that works with all saved blocks, if there are none."""
    return InvalidInput(
        f"No {QuantumRuntimeCredentials._block_type_name} block is saved.",
        solution="Create one in the UI under Blocks, or set PREFECT_API_URL to the server that has yours.",
    )


async def saved_blocks() -> list[str]:
    """The names of all saved blocks of this type. Runs on the network loop."""
    return await saved_names(QuantumRuntimeCredentials)
