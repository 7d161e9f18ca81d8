"""The address and credentials of an instance, checked once, before anything is sent; and the hosts of each dialect.

A `Connection` is made by the credentials block and lives in this process only. It holds the API key,
so it neither prints nor pickles it.

Sources of the hosts: IBM's OpenAPI document 0.45.3; the clients 0.1 to 0.51 for the older ones.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args
from urllib.parse import unquote, urlsplit

import httpx

from prefect_qruntime.errors import InvalidInput, clean_texts_with
from prefect_qruntime.models import MOST_TTL
from prefect_qruntime.redact import many, nearest, plain_text, register_secret

__all__ = [
    "DEFAULT_API_VERSION",
    "DEFAULT_IAM_URL",
    "DIALECTS",
    "HOME_REGION",
    "HOSTS",
    "REGIONS",
    "Connection",
    "Crn",
    "Dialects",
    "Hosts",
    "check_id",
    "check_name",
    "check_proxy",
    "check_session",
    "check_url",
    "dialect_that_answers",
    "is_id",
    "is_loopback",
    "is_public",
    "parse_crn",
    "register_proxy",
]


Dialects = Literal["cloud", "legacy"]
DIALECTS: tuple[Dialects, ...] = get_args(Dialects)
REGIONS = ("us-east", "eu-de")
HOME_REGION = "us-east"
"""The region of hosts that name none."""

DEFAULT_API_VERSION = "2026-04-15"
DEFAULT_IAM_URL = "https://iam.cloud.ibm.com"

# Without the shapes of secrets: words of our own such as "api_key: Field required" have them too.
clean_texts_with(functools.partial(plain_text, shapes=False))

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEADER_TEXT = re.compile(r"[ -~]{1,200}")
_NO_PART_OF_A_KEY = frozenset(" \"'`")
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_SOCKS = ("socks5", "socks5h")
_USUAL_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of one dialect.

    Attributes:
        pattern: Matches a host's name; its group `region` is the region, if the name has one.
        lists_versions: Whether there is `GET /versions`, which distinguishes the dialects.
        corrects: What is wrong in a block that names another dialect's host, beside the dialect.
    """

    pattern: re.Pattern[str]
    lists_versions: bool
    corrects: str
    _url: str
    _home_url: str

    def url(self, region: str) -> str:
        """What `/jobs` is appended to in a region."""
        return self._home_url if region == HOME_REGION else self._url.format(region=region)


HOSTS: Mapping[Dialects, Hosts] = {
    "cloud": Hosts(
        pattern=re.compile(r"(?:private\.)?(?:(?P<region>[a-z]{2}-[a-z0-9-]+)\.)?quantum\.cloud\.ibm\.com"),
        lists_versions=True,
        corrects="base_url",
        _url="https://{region}.quantum.cloud.ibm.com/api/v1",
        _home_url="https://quantum.cloud.ibm.com/api/v1",
    ),
    "legacy": Hosts(
        pattern=re.compile(r"(?P<region>[a-z]{2}-[a-z0-9-]+)\.quantum-computing\.cloud\.ibm\.com"),
        lists_versions=False,
        corrects="api_key, crn and base_url",
        _url="https://{region}.quantum-computing.cloud.ibm.com",
        _home_url="https://us-east.quantum-computing.cloud.ibm.com",
    ),
}


def dialect_that_answers(*, lists_versions: bool) -> Dialects:
    """The dialect of a host, by whether it lists API versions."""
    return next(name for name, hosts in HOSTS.items() if hosts.lists_versions is lists_versions)


def is_loopback(host: str | None) -> bool:
    """Whether a host name refers to this machine."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(host: str) -> bool:
    """Whether a host is outside this machine and its private network, as far as its name shows.

    Names are not resolved: private endpoints of object storage are named publicly and resolve to private addresses.
    """
    name = host.lower().strip("[]").rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        labels = name.split(".")
        # Resolvers read 127.1 and 0x7f000001 as addresses, and a name without a dot belongs to the local network.
        odd = len(labels) < 2 or re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]) is not None
        return not odd and labels[-1] not in ("localhost", "local", "internal", "localdomain", "lan", "home", "corp")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_global) and not mapped.is_multicast


def _has_host(url: str) -> bool:
    """Whether httpx finds a host in an address: it refuses names that IDNA cannot encode or decode.

    One with a percent sign it takes, and no connection finds it: the zone of an IPv6 address, or a letter in hex.
    """
    try:
        host = httpx.URL(url).host
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(host) and "%" not in host


@functools.lru_cache(maxsize=64)
def check_url(text: str, *, field: str) -> str:
    """Check a base URL. One address has one form: without a trailing slash, a usual port or capitals in the host.

    Raises:
        InvalidInput: Not http(s), plain http to another machine, or it carries user, query or fragment.
    """
    try:
        parts = urlsplit(text.strip())
        bad_port = parts.port is not None and not 0 < parts.port < 65536
    except ValueError:
        parts, bad_port = urlsplit(""), True
    if parts.scheme not in ("http", "https") or not parts.hostname or bad_port:
        raise InvalidInput("must be an address like https://host/path", field=field)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidInput("must not carry a user, a password, a query or a fragment", field=field)
    if re.search(r"[\s\\\x00-\x1f]", parts.netloc + parts.path):
        raise InvalidInput("must not contain whitespace, backslashes or control characters", field=field)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InvalidInput(
            "plain http:// is refused except to this machine: the API key would travel unencrypted", field=field
        )
    host = f"[{parts.hostname}]" if "[" in parts.netloc else parts.hostname.removesuffix(".")
    port = "" if parts.port in (None, _USUAL_PORTS[parts.scheme]) else f":{parts.port}"
    url = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
    if not _has_host(url):
        raise InvalidInput(f"names a host that cannot be one: {parts.hostname!a}", field=field)
    return url


def register_proxy(proxy: str) -> None:
    """Register the user and password of a proxy's address for redaction, also in the form that is sent."""
    parts = urlsplit(proxy)
    # A user without a password is a token.
    secret = parts.password or parts.username
    if secret:
        register_secret(secret)
        register_secret(unquote(secret))
        both = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        register_secret(base64.b64encode(both.encode()).decode())


def check_proxy(text: str, *, field: str = "proxy", socks: bool = False) -> str:
    """Check a proxy's address. No error repeats it, as it may hold a password.

    Args:
        text: The address.
        field: What gave it, for the error.
        socks: Whether it may be a SOCKS proxy, if `socksio` is installed.

    Raises:
        InvalidInput: Not `http(s)://[user:password@]host[:port]`.
    """
    stripped = text.strip()
    try:
        parts = urlsplit(stripped)
        port_fits = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        parts, port_fits = urlsplit(""), False
    if socks and parts.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise InvalidInput(
            "names a SOCKS proxy, for which `socksio` must be installed.",
            field=field,
            solution="`pip install 'httpx[socks]'`, or name an HTTP proxy, or list the service's hosts in NO_PROXY.",
        )
    known = (*_SOCKS, "http", "https") if socks else ("http", "https")
    # Others ignore a path in the environment's; with an @ it is the rest of a password.
    bare = "@" not in parts.path if socks else parts.path in ("", "/")
    whole = parts.scheme in known and bool(parts.hostname) and port_fits and _has_host(stripped)
    if not whole or not bare or parts.query or parts.fragment or re.search(r"[\s\\]", stripped):
        raise InvalidInput(
            "is not the address of an HTTP proxy.",
            field=field,
            solution="It looks like http://user:password@host:port; write special characters in them as %XX.",
        )
    return stripped


def is_id(value: str) -> bool:
    """Whether a text can be the id of a job or session: letters, digits, `-` and `_`, at most 64."""
    return _ID.fullmatch(value) is not None


def check_id(value: Any, *, field: str) -> str:
    """Check a job or session id before it goes into a URL.

    Raises:
        InvalidInput: It holds anything but letters, digits, `-` and `_`, or is longer than 64.
    """
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise InvalidInput("not an id of the service (letters, digits, - and _, at most 64)", field=field)
    return value


def check_name(value: Any, *, field: str) -> str:
    """Check a backend name before it goes into a URL."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise InvalidInput("not a backend name (letters, digits, . - and _, at most 64)", field=field)
    return value


def check_session(mode: Any, max_ttl: Any) -> None:
    """Check the mode and the longest life of a session before one is opened.

    Raises:
        InvalidInput: The mode is not one of the service's, or the life is not 1 to `MOST_TTL` seconds or None.
    """
    if not (isinstance(mode, str) and mode in ("dedicated", "batch")):
        raise InvalidInput("must be 'dedicated' or 'batch'", field="mode")
    if max_ttl is not None and (type(max_ttl) is not int or not 1 <= max_ttl <= MOST_TTL):
        raise InvalidInput(f"must be a whole number of seconds, at least 1 and at most {MOST_TTL:,}", field="max_ttl")


def _default_base_url(dialect: Dialects, crn: Crn) -> str:
    if crn.cname != "bluemix":
        raise InvalidInput(f"no default address is known for the {crn.cname!r} cloud; give base_url", field="base_url")
    if crn.region not in REGIONS:
        raise InvalidInput(
            f"the region {crn.region!r} is not one of the service's ({', '.join(REGIONS)}).",
            field="crn",
            solution=f"{nearest(crn.region, REGIONS)} Copy the CRN again from the instance's page; for a region that "
            "is new, give its address as base_url.".lstrip(),
        )
    return HOSTS[dialect].url(crn.region)


@dataclass(frozen=True)
class Connection:
    """A checked set of connection settings.

    `base_url` is what `/jobs` is appended to, `iam_url` what `/identity/token` is appended to; empty
    ones follow from the dialect and the CRN's region (Qiskit Runtime client 0.51 picks hosts the same way).

    Raises:
        InvalidInput: A field is wrong; it is named.

    Example:
        ```python
        from prefect_qruntime.client.connection import Connection

        connection = Connection(
            api_key="not-a-real-key", crn="crn:v1:bluemix:public:quantum-computing:eu-de:a/0123:11aa-22bb::"
        )
        assert connection.base_url == "https://eu-de.quantum.cloud.ibm.com/api/v1"
        ```
    """

    api_key: str = field(repr=False)
    crn: str
    dialect: Dialects = "cloud"
    base_url: str = ""
    iam_url: str = ""
    api_version: str = DEFAULT_API_VERSION
    application: str = "prefect-qruntime"
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)
    request_timeout: float = 30.0
    block: str | None = field(default=None, compare=False)
    """Name of the saved block that it comes from, for messages only."""
    guard: Callable[[Connection], Awaitable[None]] | None = field(default=None, compare=False, repr=False)
    """Raises an error if the key and its tokens may not go to these hosts; awaited before they do."""
    instance: str = field(init=False, compare=False, repr=False)
    """Names the instance in records, where its address and CRN would be too long."""

    def __post_init__(self) -> None:
        key = self.api_key.strip() if isinstance(self.api_key, str) else ""
        if not key:
            raise InvalidInput(
                "is empty.",
                field="api_key",
                solution="Enter an IBM Cloud API key, made in IBM Cloud under Manage > Access (IAM) > API keys.",
            )
        if set(key) == {"*"}:
            raise InvalidInput(
                "is a mask of asterisks, not a key.",
                field="api_key",
                solution=(
                    "A block passed as a deployment parameter loses its secret: pass the block's name and load it "
                    "inside the flow. If the saved block holds the mask, save it again with the key; in a job block, "
                    "choose the credentials, and its budget, again."
                ),
            )
        if key.lower().startswith("crn:"):
            raise InvalidInput(
                "is a CRN, not a key.",
                field="api_key",
                solution="The CRN belongs in the field crn; keys are made in IBM Cloud under Manage > Access (IAM).",
            )
        if _HEADER_TEXT.fullmatch(key) is None or not _NO_PART_OF_A_KEY.isdisjoint(key):
            raise InvalidInput(
                "is not a valid IBM Cloud API key: it contains whitespace or characters that keys never contain.",
                field="api_key",
                solution="Copy the key again: one line, without quotes.",
            )
        if self.dialect not in DIALECTS:
            raise InvalidInput(
                f"must be {' or '.join(map(repr, DIALECTS))}, not {str(self.dialect)[:80]!r}", field="dialect"
            )
        crn = parse_crn(self.crn)
        if _VERSION.fullmatch(self.api_version) is None:
            raise InvalidInput("must be a date like 2026-04-15", field="api_version")
        if _HEADER_TEXT.fullmatch(self.application) is None:
            raise InvalidInput("must be 1 to 200 printable characters on one line", field="application")
        if self.application != self.application.strip():
            raise InvalidInput(f"must not start or end with a space, as {self.application!r} does", field="application")
        if not 0 < self.request_timeout <= 3600:
            raise InvalidInput("must be between 0 and 3600 seconds", field="request_timeout")
        base = self.base_url or _default_base_url(self.dialect, crn)
        put = object.__setattr__
        put(self, "api_key", key)
        put(self, "crn", crn.text)
        put(self, "base_url", check_url(base, field="base_url"))
        put(self, "iam_url", check_url(self.iam_url or DEFAULT_IAM_URL, field="iam_url"))
        put(self, "instance", instance_name(crn.text, self.base_url))
        register_secret(key)
        if self.ca_file is not None and not self.ca_file.strip():  # as forms save a field that was emptied
            put(self, "ca_file", None)
        if self.proxy is not None:
            put(self, "proxy", check_proxy(self.proxy) if self.proxy.strip() else None)
        if self.proxy is not None:
            register_proxy(self.proxy)

    @property
    def region(self) -> str:
        """The CRN's region."""
        return parse_crn(self.crn).region

    @property
    def host(self) -> str:
        """Host and port of the API."""
        return urlsplit(self.base_url).netloc

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the connection in this process without showing the key."""
        facts = {**vars(self), "block": None, "guard": self.guard is not None}
        return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()

    def job_url(self, job_id: str) -> str:
        """Address of the job for people: IBM's console, or the API itself on other hosts."""
        host = urlsplit(self.base_url).hostname or ""
        if host.endswith("quantum.cloud.ibm.com") and not host.startswith("private."):
            return f"https://quantum.cloud.ibm.com/workloads/{job_id}"
        return f"{self.base_url}/jobs/{job_id}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Connection holds an API key and is not pickled; pass the credentials block instead")


def instance_name(crn: str, base_url: str) -> str:
    """A short name of the instance with this CRN at this address.

    IBM's public and private hosts of one region lead to the same instances, so they give the same name.

    Example:
        ```python
        from prefect_qruntime.client.connection import instance_name

        assert len(instance_name("crn:v1:…", "https://quantum.cloud.ibm.com/api/v1")) == 12
        ```
    """
    host = urlsplit(base_url).hostname or ""
    for hosts in HOSTS.values():
        if match := hosts.pattern.fullmatch(host):
            base_url = hosts.url(match["region"] or HOME_REGION)
    return hashlib.sha256(f"{base_url}\0{crn}".encode()).hexdigest()[:12]


# crn:v1:<cname>:<ctype>:<service>:<region>:a/<account>:<instance guid>::
# (IBM Cloud docs, "Cloud Resource Names")
_CRN = re.compile(
    r"crn:v1:(?P<cname>[a-z][a-z0-9-]{0,31}):(?P<ctype>public|dedicated|local):quantum-computing:"
    r"(?P<region>[a-z]{2}(?:-[a-z0-9]{1,16}){1,3}):a/(?P<account>[0-9A-Za-z]{1,64}):(?P<instance>[0-9A-Za-z-]{1,64})::"
)


_CRN_PARTS = 10
_AROUND_A_CRN = frozenset(" \"'`,;<>")


@dataclass(frozen=True, slots=True)
class Crn:
    """A parsed CRN of a Quantum Compute Service instance."""

    text: str
    cname: str
    region: str
    account: str
    instance: str

    def __str__(self) -> str:
        """The CRN as it goes into the `Service-CRN` header."""
        return self.text


_PARTS = {2: "cloud", 4: "service", 5: "region", 6: "account", 7: "instance"}
"""Parts of a CRN that users often get wrong, by position."""


def _wrong_part(text: str) -> str:
    """Describe what is wrong with a CRN. Text that is not a CRN at all is not shown, because it may be a key."""
    bare = "".join(letter for letter in text if letter.isprintable() and letter not in _AROUND_A_CRN)
    if bare != text and _CRN.fullmatch(bare) is not None:
        return ": it contains whitespace, quotes or invisible characters"
    parts = text.split(":")
    if parts[0] != "crn" or not text.isprintable():
        return ": it does not begin with crn:v1"
    if len(parts) != _CRN_PARTS:
        return f": it has {many(len(parts), 'part')} between colons, not {_CRN_PARTS}; it may be cut off"
    good = ["crn", "v1", "bluemix", "public", "quantum-computing", "us-east", "a/0", "0", "", ""]
    for place, name in _PARTS.items():
        if _CRN.fullmatch(":".join([*good[:place], parts[place], *good[place + 1 :]])) is None:
            return f": its {name} is {parts[place][:60]!r}"
    return ""


@functools.lru_cache(maxsize=64)
def parse_crn(text: str, *, field: str = "crn") -> Crn:
    """Check a CRN and take it apart.

    Args:
        text: The CRN; surrounding whitespace is dropped.
        field: How an error names it.

    Returns:
        The parsed CRN.

    Raises:
        InvalidInput: It is not the CRN of a quantum-computing instance. A line break or any other
            character that could leave the header is refused as well.

    Example:
        ```python
        from prefect_qruntime.client.connection import parse_crn

        crn = parse_crn("crn:v1:bluemix:public:quantum-computing:eu-de:a/0123abcd:11aa-22bb::")
        assert crn.region == "eu-de"
        ```
    """
    stripped = text.strip(" ") if isinstance(text, str) else ""
    match = _CRN.fullmatch(stripped)
    if match is None:
        raise InvalidInput(
            f"not the CRN of a quantum-computing instance{_wrong_part(stripped)}.",
            field=field,
            solution="It looks like crn:v1:bluemix:public:quantum-computing:<region>:a/<account>:<instance>:: "
            "and stands on the instance's page of the IBM Quantum Platform.",
        )
    return Crn(stripped, match["cname"], match["region"], match["account"], match["instance"])
