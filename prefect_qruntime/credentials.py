"""The credentials block: API key, instance and address.

Building or loading a block never uses the network. The API key stays in its `SecretStr` until a client
needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, SecretStr, model_validator

from prefect_qruntime.admission.policy import check_hosts
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import DEFAULT_API_VERSION, Connection, Dialects
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import InstanceReport
from prefect_qruntime.prefect_api import Loadable, load_saved, saved_names

__all__ = [
    "QuantumRuntimeCredentials",
    "aload_credentials",
    "block_name",
    "load_credentials",
    "load_each",
    "saved_blocks",
]

# Only flows repeat requests through an outage.
_WHILE_SOMEONE_WAITS = RetryDeadlines(token=5.0, read=5.0)


class QuantumRuntimeCredentials(Loadable, CredentialsBlock):
    """API key and instance of IBM's Qiskit Runtime REST API (IBM Quantum Compute Service).

    Building or loading a block never uses the network; `verify` does, and names each problem
    is wrong.

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

    @model_validator(mode="after")
    def _check(self) -> QuantumRuntimeCredentials:
        # The key itself is checked when a client is made: documents are also built with masked secrets.
        self._connection(api_key="unchecked")
        return self

    def _connection(self, *, api_key: str | None = None) -> Connection:
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
    found = await load_saved(
        QuantumRuntimeCredentials, name, field="credentials_block", fix="Create one in the UI under Blocks."
    )
    await network_loop().arun(check_hosts(found._connection(api_key="unchecked")))
    return found


def block_name(credentials: QuantumRuntimeCredentials) -> str | None:
    """Name of the saved block, by which another process can load it again."""
    name = credentials._block_document_name
    return name if isinstance(name, str) else None


async def load_each(names: Iterable[str] | None) -> tuple[dict[str, QuantumRuntimeCredentials], dict[str, str]]:
    """Load several saved blocks; an invalid one is reported and does not stop the others. Runs on the network loop.

    Args:
        names: The blocks' names; None for all saved ones.

    Returns:
        The blocks by name, and what is wrong with those that cannot be used, by name.
    """
    found: dict[str, QuantumRuntimeCredentials] = {}
    problems: dict[str, str] = {}
    for name in sorted(set(names)) if names is not None else await saved_blocks():
        try:
            found[name] = await aload_credentials(name)
            found[name].get_client()  # which checks the key
        except (QuantumRuntimeError, ValueError) as error:
            found.pop(name, None)
            problems[name] = f"{name}: {error}"
    return found, problems


async def saved_blocks() -> list[str]:
    """The names of all saved blocks of this type. Runs on the network loop."""
    return await saved_names(QuantumRuntimeCredentials)
