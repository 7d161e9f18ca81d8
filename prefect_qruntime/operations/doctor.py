"""Check a whole installation: Prefect's side, then each credentials block. Submits and changes nothing.

Blocks are read as saved, not loaded: a block with a wrong field cannot be loaded, but must be diagnosed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.admission.policy import QuantumRuntimePolicy, check_hosts
from prefect_qruntime.blocks import Budget, QuantumRuntimeCredentials, QuantumRuntimeJob
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.credentials import block_names, none_saved, saved_blocks
from prefect_qruntime.diagnostics.fields import Fields, Finding, check_fields, hint, ok, problem
from prefect_qruntime.diagnostics.instance import check_dialect, check_token, inspect_instance
from prefect_qruntime.diagnostics.network import Address, check_api, check_clock, check_iam, check_proxy_reached
from prefect_qruntime.diagnostics.prefect_server import (
    check_budget,
    check_floor,
    check_limits,
    check_policy,
    check_prefect,
    check_server,
    check_settings,
)
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.prefect_api import check_block_name

__all__ = ["DoctorReport", "check_block", "run_doctor"]

# What is wrong now is reported now; only flows repeat requests through an outage.
_NOW = RetryDeadlines(token=0.0, read=0.0)


class DoctorReport(BaseModel):
    """All findings, Prefect's side first, then block by block."""

    model_config = ConfigDict(frozen=True)

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem; hints do not count."""
        return all(finding.level != "problem" for finding in self.findings)


def run_doctor(blocks: Iterable[str] | None = None) -> DoctorReport:
    """Check an installation; for code without an event loop.

    Args:
        blocks: Names of credentials blocks; None for all saved ones, an empty list to check the rest alone.

    Returns:
        One finding for each check; what is wrong is a finding, never an exception.

    Raises:
        InvalidInput: `blocks` is no list of names.
    """
    return network_loop().run(_doctor(None if blocks is None else block_names(blocks, may_be_empty=True)))


async def _doctor(blocks: Iterable[str] | None) -> DoctorReport:
    client, findings = await check_server()
    findings += check_settings()
    if client is None:
        findings.append(hint("blocks", "Not checked: the Prefect server stores them."))
        return DoctorReport(findings=tuple(findings))
    kinds = (QuantumRuntimeCredentials, Budget, QuantumRuntimeJob, QuantumRuntimePolicy)
    findings += await check_prefect(client, kinds, QuantumRuntimeJob)
    findings.append(await check_policy())
    imposed, of_budget = await check_budget()
    findings += of_budget
    documents, missing = await _documents(client, blocks)
    findings += missing
    for name, data in documents.items():
        own = await check_block(data, imposed)
        findings += [finding.model_copy(update={"block": name}) for finding in own]
    return DoctorReport(findings=tuple(findings))


async def _documents(
    client: PrefectClient, names: Iterable[str] | None
) -> tuple[dict[str, Mapping[str, Any]], list[Finding]]:
    """The data of the blocks, with secrets, and what could not be read."""
    slug = QuantumRuntimeCredentials.get_block_type_slug()
    found: dict[str, Mapping[str, Any]] = {}
    findings: list[Finding] = []
    try:
        saved = await saved_blocks()
        if names is None and not saved:
            none = none_saved()
            return {}, [problem("blocks", none.message, none.solution or "")]
        for name in saved if names is None else names:
            try:
                check_block_name(name, field="block")
                found[name] = (await client.read_block_document_by_name(name, slug)).data
            except InvalidInput as error:
                odd = problem("block", error.message, error.solution or "")
                findings.append(odd.model_copy(update={"block": name}))
            except ObjectNotFound:
                fix = f"Use a saved one ({', '.join(saved) or 'there is none'}), or create it."
                gone = problem("block", "No credentials block has this name.", fix)
                findings.append(gone.model_copy(update={"block": name}))
    except Exception as error:
        findings.append(problem("blocks", f"The blocks could not be read: {error}", "See the Prefect server's log."))
    return found, findings


async def check_block(data: Mapping[str, Any], imposed: Sequence[Budget]) -> list[Finding]:
    """Check one block by its data: fields, policy, network, token, instance. Runs on the network loop.

    Args:
        data: The document's data, with its secrets.
        imposed: The budgets that the settings impose.
    """
    fields = check_fields(data)
    connection, bad = replace(fields.connection, guard=check_hosts), fields.bad
    findings = list(fields.findings)
    try:
        await check_hosts(connection)
    except InvalidInput:  # reported with the settings
        return [*findings, hint("policy", "Nothing beyond this machine was checked, because a setting is wrong.")]
    except QuantumRuntimeError as error:  # the key is not sent there, not even for a check-up
        fix = "Correct the block's address, or add the host to the policy."
        return [*findings, problem("policy", f"This block is refused. {error.message}", fix)]
    if not bad & {"crn", "base_url"}:
        findings.append(await check_limits(connection))
    proxies = await check_proxy_reached(connection) if "proxy" not in bad else []
    findings += proxies
    barred = any(one.level == "problem" for one in proxies)
    if barred or "proxy" in bad or ("ca_file" in bad and _needs_tls(fields)):
        findings.append(hint("network", "Nothing beyond this machine could be checked.", "Fix the above first."))
        return findings
    api = await check_api(connection) if "base_url" not in bad else Address()
    if api.finding is not None:
        findings.append(api.finding)
    client = QuantumRuntimeClient(connection, patience=_NOW)
    iam, has_token = Address(), False
    if not bad & {"api_key", "iam_url"}:
        refused, _ = await check_token(client)
        has_token = refused is None
        findings += [refused] if refused is not None else [ok("api_key", f"Known to {connection.iam_url}")]
        iam = Address(skew=await client.clock_skew())
    elif "iam_url" not in bad:
        iam = await check_iam(connection)
        findings += [iam.finding] if iam.finding is not None else []
    wrong_clock = check_clock([api.skew, iam.skew])
    findings += [wrong_clock] if wrong_clock is not None else []
    if has_token and api.reached and not bad & {"crn", "base_url", "dialect"}:
        inspection = await inspect_instance(client, thorough=True)
        if inspection.backends and api.finding is not None:
            findings.remove(api.finding)  # with a token it answers: a gateway hides it from requests without one
        findings += [*inspection.findings, *check_floor(inspection.usage, imposed)]
    elif api.answers and not bad & {"base_url", "dialect"}:
        wrong = check_dialect(connection, api)
        findings += [wrong] if wrong is not None else []
    # One cause can be met twice: on the way to IAM and to the API, which may be one host.
    return list({finding.finding: finding for finding in reversed(findings)}.values())[::-1]


def _needs_tls(fields: Fields) -> bool:
    connection: Connection = fields.connection
    return any(url.startswith("https") for url in (connection.base_url, connection.iam_url))
