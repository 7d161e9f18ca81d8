"""Check the way to the service without a token: proxy, name, TLS, paths, the dialect that answers, the clock."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from prefect_qruntime.client.connection import (
    DEFAULT_IAM_URL,
    HOSTS,
    Connection,
    Dialects,
    dialect_that_answers,
    is_loopback,
)
from prefect_qruntime.client.transport.http import Probe, Trouble, probe, proxy_of, reaches_proxy
from prefect_qruntime.client.transport.replies import parse_error
from prefect_qruntime.diagnostics.fields import Finding, ok, problem
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

__all__ = ["MOST_SKEW", "Address", "check_api", "check_clock", "check_iam", "check_proxy_reached", "skew_of"]

MOST_SKEW = 60.0
"""Seconds by which this machine's clock may be wrong without a finding."""

_Setting = Literal["base_url", "iam_url"]


@dataclass(frozen=True, slots=True)
class Address:
    """The service or other server that answers at an address.

    `reached` says that something answers, right or wrong; `speaks` is the dialect it shows, `skew` how many seconds
    its clock is ahead of ours.
    """

    finding: Finding | None = None
    reached: bool = True
    speaks: Dialects | None = None
    skew: float | None = None

    @property
    def answers(self) -> bool:
        """Whether the expected service answers."""
        return self.finding is None


async def check_proxy_reached(connection: Connection) -> list[Finding]:
    """Check that the proxies in use accept connections: the block's, or those that the environment names.

    A proxy of the environment is reported even if it works: it is easily forgotten, and may block the next host.
    """
    findings = []
    urls = (connection.base_url, connection.iam_url)
    try:
        proxies = [proxy for url in urls if (proxy := proxy_of(connection, url)) is not None]
    except InvalidInput as error:
        return [problem("proxy", f"The environment's {error.message}", error.solution or "Correct that variable.")]
    for proxy in dict.fromkeys(proxies):
        parts = urlsplit(proxy)
        where = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        reached = await reaches_proxy(proxy)
        if connection.proxy is None:
            hosts = [urlsplit(url).hostname for url in urls if proxy_of(connection, url) == proxy]
            on_the_way = f"the proxy {where} to {' and '.join(dict.fromkeys(map(str, hosts)))}"
            said = f"The environment (HTTPS_PROXY, ALL_PROXY) sets {on_the_way}"
            findings.append(
                ok("proxy", f"{said}.")
                if reached
                else problem(
                    "proxy",
                    f"{said}, and it cannot be reached from this machine.",
                    "Correct that variable, list the hosts in NO_PROXY, or set proxy of the block.",
                )
            )
        elif not reached:
            findings.append(
                problem(
                    "proxy",
                    f"The proxy {where} cannot be reached from this machine.",
                    "Correct proxy of the block, or leave it empty if the service can be reached directly.",
                )
            )
    return findings


async def check_iam(connection: Connection) -> Address:
    """Check that IAM answers at `iam_url`. Without a key, IAM refuses with an error code of its own."""
    found = await _iam(connection, connection.iam_url)
    if found.trouble is not None:
        return Address(_in_the_way(found, connection, "iam_url"), reached=False)
    if _is_iam(found):
        return Address(skew=skew_of(found))
    if (found.status or 0) >= 500:
        return Address(_ill(found, "iam_url"))
    if connection.iam_url == DEFAULT_IAM_URL:
        fix = "Something between this machine and IAM answers in its place: set proxy, or allow IAM's host."
    else:
        fix = f"Set iam_url to {DEFAULT_IAM_URL}, or leave it empty."
        for other in _shorter(connection.iam_url):
            if _is_iam(await _iam(connection, other)):
                fix = f"Set iam_url to {other}."
                break
    said = f"{connection.iam_url} is not IAM: /identity/token gives HTTP {found.status} there."
    return Address(problem("iam_url", said, fix))


async def check_api(connection: Connection) -> Address:
    """Check that the service answers at `base_url`, and in which dialect."""
    found = await probe(connection, f"{connection.base_url}/backends")
    if found.trouble is not None:
        return Address(_in_the_way(found, connection, "base_url"), reached=False)
    status = found.status or 0
    if status >= 500:
        return Address(_ill(found, "base_url"), skew=skew_of(found))
    versions = await _has_versions(connection, connection.base_url)
    # Without a token the service refuses (401, some gateways 400 or 403), which shows that the path exists.
    if status in (400, 401, 403) or (status == 200 and _is_json(found)):
        return Address(speaks=dialect_that_answers(lists_versions=versions), skew=skew_of(found))
    return Address(await _wrong_path(found, connection), skew=skew_of(found))


async def _wrong_path(found: Probe, connection: Connection) -> Finding:
    """Build the finding for a wrong path, with the right address if a similar one answers."""
    if 300 <= (found.status or 0) < 400:
        said = f"{connection.base_url} redirects elsewhere (HTTP {found.status}), which is not followed."
    elif found.status == 200:
        said = f"{connection.base_url} answers with a page, not with the API."
    else:
        said = f"{connection.base_url} has no /backends (HTTP {found.status}): not the API's path."
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(connection.base_url))
    candidates = [*_shorter(connection.base_url), f"{connection.base_url}/v1", f"{origin}/api/v1"]
    for other in dict.fromkeys(candidates):
        if HOSTS[connection.dialect].lists_versions:
            fits = await _has_versions(connection, other)
        else:
            neighbour = await probe(connection, f"{other}/backends")
            fits = neighbour.status in (400, 401, 403) and not await _has_versions(connection, other)
        if fits:
            return problem("base_url", said, f"Set base_url to {other}.")
    fix = "Correct base_url (what /jobs is appended to), or leave it empty; check also that the dialect is right "
    return problem("base_url", said, f"{fix}({connection.dialect}).")


async def _has_versions(connection: Connection, base: str) -> bool:
    found = await probe(connection, f"{base}/versions")
    if found.reply is None or found.status != 200:
        return False
    try:
        return isinstance(found.reply.object().get("versions"), list)
    except QuantumRuntimeError:
        return False


def _is_json(found: Probe) -> bool:
    try:
        return found.reply is not None and isinstance(found.reply.json(), dict)
    except QuantumRuntimeError:
        return False


async def _iam(connection: Connection, base: str) -> Probe:
    return await probe(connection, f"{base}/identity/token", method="POST")


def _is_iam(found: Probe) -> bool:
    return found.reply is not None and str(parse_error(found.reply.content).code).startswith("BXN")


def _shorter(url: str) -> list[str]:
    """The addresses above this one: users paste whole endpoints."""
    parts = urlsplit(url)
    steps = [step for step in parts.path.split("/") if step]
    origin = f"{parts.scheme}://{parts.netloc}"
    return ["/".join([origin, *steps[:number]]) for number in range(len(steps) - 1, -1, -1)]


def _ill(found: Probe, setting: _Setting) -> Finding:
    host = urlsplit(found.url).netloc
    return problem(
        setting,
        f"{host} answers with a server error: HTTP {found.status}.",
        f"Try again later; if it lasts, check IBM Cloud's status page, or correct {setting}.",
    )


def _in_the_way(found: Probe, connection: Connection, setting: _Setting) -> Finding:
    host = urlsplit(found.url).netloc
    said, fix, field = _TROUBLES[found.trouble or "broken"]
    # By an HTTP proxy, or by a SOCKS proxy in httpcore's words.
    asks = found.trouble == "proxy" and ("407" in found.text or "username/password" in found.text)
    if found.trouble == "refused" and is_loopback(urlsplit(found.url).hostname):
        # The commonest of these blocks is what a first try of the sandbox left behind.
        fix = "If it was a sandbox and has ended, delete the block; otherwise correct host and port of {setting}."
    elif found.trouble == "untrusted" and connection.ca_file:
        said = "The certificate of {host} was not signed by a CA in ca_file."
        fix = "Add the CA of {host}, or of the proxy in between, to ca_file."
    elif asks:
        said, fix = "The proxy asks for a user and a password.", "Set them in proxy: http://user:password@host:port."
        if urlsplit(proxy_of(connection, found.url) or "").username:
            said = "The proxy refuses the user and the password that it is given."
            fix = "Correct them in proxy, or in HTTPS_PROXY if that is empty; write special characters as %XX."
    fill = {"host": host, "setting": setting}
    said = said.format_map(fill)
    if found.trouble == "proxy" and found.text and not asks:
        said = f"{said} ({found.text})"  # only now: braces in a proxy's words are no fields
    return problem(field or setting, said, fix.format_map(fill))


# The finding, the fix, and the setting concerned if it is not the address itself.
_TROUBLES: dict[Trouble, tuple[str, str, str | None]] = {
    "name": (
        "The name {host} is not known on this machine.",
        "Check {setting} for a typing error; otherwise this machine needs DNS, or a proxy.",
        None,
    ),
    "refused": (
        "{host} refuses connections.",
        "Correct host and port of {setting}, or open the firewall; otherwise set proxy.",
        None,
    ),
    "silent": (
        "{host} does not answer in time.",
        "A firewall may drop the packets: allow {host}, or set proxy.",
        None,
    ),
    "untrusted": (
        "The certificate of {host} is signed by a CA that this machine does not know.",
        "Set ca_file to your organisation's CA bundle.",
        "ca_file",
    ),
    "expired": (
        "The certificate of {host} is not valid at this machine's time.",
        "Correct this machine's clock; if it is right, the certificate must be renewed.",
        None,
    ),
    "other-name": (
        "The certificate of {host} is for another name.",
        "Use the name in the certificate for {setting}.",
        None,
    ),
    "no-tls": ("{host} does not speak TLS on this port.", "Correct scheme and port of {setting}.", None),
    "proxy": ("The proxy does not let {host} through.", "Ask for {host} to be allowed, or correct proxy.", "proxy"),
    "broken": (
        "{host} closes the connection without an answer.",
        "Correct {setting}; otherwise something in between closes the connection: set proxy.",
        None,
    ),
}


def skew_of(found: Probe) -> float | None:
    """Seconds by which the server's clock is ahead of ours according to its `Date`, whose step is a second."""
    stamp = found.reply.headers.get("date") if found.reply is not None else None
    if not stamp:
        return None
    try:
        return email.utils.parsedate_to_datetime(stamp).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def check_clock(skews: list[float | None]) -> Finding | None:
    """Compare this machine's clock with those of the service's hosts; None if it is right or no host sends a date."""
    known = [skew for skew in skews if skew is not None]
    if not known or (skew := min(known, key=abs)) is None or abs(skew) <= MOST_SKEW:
        return None
    return problem(
        "clock",
        f"This machine's clock is {abs(skew):.0f} s {'slow' if skew > 0 else 'fast'} by the service's clock.",
        "Let NTP set it: certificates, schedules and the search for jobs by time depend on it.",
    )
