"""Findings, and the checks of a saved block's fields, which need no network: one wrong field hides no other.

A finding says what was checked, what was found, and what to do about it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client.connection import HOME_REGION, HOSTS, Connection
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.prefect_api import unknown_fields
from prefect_qruntime.redact import redact, register_secret

__all__ = ["Fields", "Finding", "Level", "check_ca_file", "check_fields", "check_host", "hint", "ok", "problem"]


Level = Literal["ok", "hint", "problem"]

# Placeholder for a missing or wrong field; never sent, because the checks that need the field are skipped.
_STAND_IN: Mapping[str, Any] = {
    "api_key": "none-given",
    "crn": "crn:v1:bluemix:public:quantum-computing:us-east:a/0:0::",
}
_ANY_URL = "https://localhost"
_NAMES = (
    *("api_key", "crn", "dialect", "base_url", "iam_url", "api_version"),
    *("application", "ca_file", "proxy", "request_timeout"),
)
_ENDPOINTS = ("jobs", "backends", "sessions", "workloads", "versions", "instances")
_SWITCHED_OFF = re.compile(r"(?:[a-z0-9-]+\.)*quantum-computing\.ibm\.com")


class Finding(BaseModel):
    """One row of a check-up, free of secrets.

    `block` names the credentials block, or is None if the finding is not about one. `ok` needs nothing, a `hint` may be
    ignored, a `problem` stops jobs or makes them unsafe.
    """

    model_config = ConfigDict(frozen=True)

    block: str | None = None
    check: str
    level: Level
    finding: str
    fix: str = ""

    def __str__(self) -> str:
        """The finding and what to do."""
        return f"{self.finding} {self.fix}".strip()


def ok(check: str, finding: str) -> Finding:
    """A check that found nothing to do."""
    return Finding(check=check, level="ok", finding=redact(finding))


def hint(check: str, finding: str, fix: str = "") -> Finding:
    """Advice that may be ignored; everything works without it."""
    return Finding(check=check, level="hint", finding=redact(finding), fix=redact(fix))


def problem(check: str, finding: str, fix: str) -> Finding:
    """A problem that must be fixed."""
    return Finding(check=check, level="problem", finding=redact(finding), fix=redact(fix))


@dataclass(frozen=True)
class Fields:
    """The outcome of the fields' checks: findings, and a connection with placeholders for the `bad` fields."""

    findings: tuple[Finding, ...]
    connection: Connection
    bad: frozenset[str]


def check_fields(data: Mapping[str, Any]) -> Fields:
    """Check each field of a block's data.

    Args:
        data: The document's data, with its secrets.

    Returns:
        Findings and the fields that can be used despite them.
    """
    for name in ("api_key", "proxy"):
        value = data.get(name)
        # A proxy's address is a secret if it holds a password, even if it cannot be parsed.
        if isinstance(value, str) and (name == "api_key" or "@" in value):
            register_secret(value.strip())
    given = {name: data[name] for name in _NAMES if data.get(name) is not None}
    for name, value in [*given.items()]:  # an emptied text is not given, as for the block itself
        if isinstance(value, str) and not value.strip() and name not in ("dialect", "request_timeout"):
            del given[name]
    given.setdefault("api_key", "")
    given.setdefault("crn", "")
    findings: list[Finding] = []
    good: dict[str, Any] = {}
    for name, value in given.items():
        try:
            # With an address given, a CRN is checked by itself; combinations of fields are checked below.
            Connection(**{**_STAND_IN, "base_url": _ANY_URL, name: value})
        except InvalidInput as error:
            findings.append(_refused(name, error))
        except (TypeError, ValueError, AttributeError):
            kind = type(value).__name__
            findings.append(problem(name, f"{name}: cannot be a {kind}.", f"Correct {name} of the block."))
        else:
            good[name] = value
    bad = set(given) - set(good)
    for name, similar in unknown_fields(_NAMES, data).items():
        fix = f"{similar} Remove it from the block, or upgrade the package here.".strip()
        findings.append(problem("fields", f"{name} is not a field of the block, which cannot be loaded.", fix))
    try:
        connection = Connection(**{**_STAND_IN, **good})
    except InvalidInput as error:  # fields that do not fit together: a cloud without a known address
        findings.append(_refused(error.field or "base_url", error))
        bad.add("base_url")
        connection = Connection(**{**_STAND_IN, **{name: good[name] for name in good if name != "crn"}})
    if "crn" in bad and not given.get("base_url"):
        bad.add("base_url")  # the address follows from the CRN
    if connection.ca_file is not None and (found := check_ca_file(connection.ca_file)) is not None:
        findings.append(found)
        if found.level == "problem":
            bad.add("ca_file")
    addresses = check_host(connection, region_known="crn" not in bad) if "base_url" not in bad else []
    addresses += _check_iam_url(connection.iam_url)
    findings += addresses
    bad |= {finding.check for finding in addresses} & {"base_url", "iam_url"}
    if not [finding for finding in findings if finding.level == "problem"]:
        findings.append(
            ok("settings", f"{connection.dialect} dialect, region {connection.region}, {connection.base_url}")
        )
    return Fields(tuple(findings), connection, frozenset(bad))


def _refused(name: str, error: InvalidInput) -> Finding:
    said = error.message.removeprefix(f"{name}: ")
    # "api_key: …" has the shape of a secret and would be masked.
    said = f"The API key {said}" if name == "api_key" else f"{name}: {said}"
    return problem(name, said.rstrip(".") + ".", error.solution or f"Correct {name} of the block.")


def _check_iam_url(url: str) -> list[Finding]:
    above, endpoint, _ = url.partition("/identity")
    if not endpoint:
        return []
    said = "iam_url contains a part of the endpoint /identity/token, which is appended to it."
    return [problem("iam_url", said, f"Set iam_url to {above}.")]


def check_ca_file(path: str) -> Finding | None:
    """Check that `path` is a file of CA certificates; None if it is."""
    here = "Put the CA bundle (PEM) there on every machine that runs flows, or correct the path."
    if not Path(path).is_file():
        return problem("ca_file", f"ca_file: there is no file {path} on this machine.", here)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        return problem(
            "ca_file", f"ca_file: {path} holds no certificate.", "Give a PEM file with BEGIN CERTIFICATE lines in it."
        )
    except OSError as error:
        return problem(
            "ca_file", f"ca_file: {path} cannot be read: {error.strerror}.", "Let the worker's user read it."
        )
    if not context.cert_store_stats()["x509_ca"]:
        return hint(
            "ca_file",
            f"ca_file: {path} holds no CA's certificate, only a server's own.",
            "Prefer the certificate of the CA that signed it: a server's own one stops working when it is renewed.",
        )
    return None


def check_host(connection: Connection, *, region_known: bool = True) -> list[Finding]:
    """Check that a known host fits the dialect and, if that is known, the CRN's region."""
    host = urlsplit(connection.base_url).hostname or ""
    findings = []
    known = {name: match for name, hosts in HOSTS.items() if (match := hosts.pattern.fullmatch(host))}
    above, _, last = connection.base_url.rpartition("/")
    if last in _ENDPOINTS:
        # Checked without the network: below an endpoint's path the service may answer with something else than a 404.
        findings.append(
            problem(
                "base_url",
                f"base_url ends with the endpoint /{last}, but endpoints are appended to it.",
                f"Set base_url to {above}.",
            )
        )
    if _SWITCHED_OFF.fullmatch(host):
        findings.append(
            problem(
                "base_url",
                f"{host} belongs to IBM's classic platform, which was switched off in July 2025.",
                "Leave base_url empty and use a key and a CRN of IBM Cloud.",
            )
        )
    elif known and connection.dialect not in known:
        (speaks,) = known
        findings.append(
            problem(
                "dialect",
                f"{host} speaks the {speaks} dialect, the block says {connection.dialect}.",
                f"Set dialect to {speaks}, or leave base_url empty: dialect and region then pick the host.",
            )
        )
    match = next(iter(known.values()), None)
    region = (match["region"] or HOME_REGION) if match and region_known else None
    if region is not None and region != connection.region:
        findings.append(
            problem(
                "region",
                f"The instance is in {connection.region} by its CRN, base_url belongs to {region}.",
                "Leave base_url empty: the CRN's region then picks the host. Or take the CRN of an instance in "
                f"{region}.",
            )
        )
    return findings
