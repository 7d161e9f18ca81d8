"""The checks of a block's fields: no network, no field hides another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_qruntime.client.connection import check_proxy
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.diagnostics.fields import check_ca_file, check_fields
from prefect_qruntime.errors import InvalidInput
from tests.support.loopback import Authority

US = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
EU = US.replace("us-east", "eu-de")
KEY = "a-key-of-no-worth-1234567890"
CLASSIC = "https://runtime-us-east.quantum-computing.ibm.com"


def found(**fields: Any) -> list[tuple[str, str, str]]:
    data = {"api_key": KEY, "crn": US, **fields}
    return [(one.check, one.finding, one.fix) for one in check_fields(data).findings if one.level == "problem"]


# What is set, the check that finds it, words of the message, words of the fix.
HOSTS: list[tuple[dict[str, str], str, str, str]] = [
    ({"crn": EU, "base_url": "https://quantum.cloud.ibm.com/api/v1"}, "region", "in eu-de by", "Leave base_url empty"),
    ({"base_url": "https://eu-de.quantum.cloud.ibm.com/api/v1"}, "region", "to eu-de", "an instance in eu-de"),
    ({"base_url": "https://private.eu-de.quantum.cloud.ibm.com/api/v1"}, "region", "to eu-de", "Leave base_url"),
    ({"crn": US.replace("us-east", "us-west")}, "crn", "'us-west' is not one of", "Copy the CRN again"),
    ({"dialect": "legacy", "base_url": "https://quantum.cloud.ibm.com/api/v1"}, "dialect", "speaks the", "to cloud"),
    (
        {"base_url": "https://us-east.quantum-computing.cloud.ibm.com"},
        "dialect",
        "the legacy dialect",
        "to legacy",
    ),
    ({"base_url": CLASSIC}, "base_url", "switched off", "IBM Cloud"),
    ({"base_url": "https://quantum.cloud.ibm.com/api/v1/sessions"}, "base_url", "the endpoint /sessions", "/api/v1."),
    ({"crn": US.replace("bluemix", "staging")}, "base_url", "no default address", "Correct base_url"),
]


@pytest.mark.parametrize(("fields", "check", "finding", "fix"), HOSTS)
def test_hosts_that_do_not_fit(fields: dict[str, str], check: str, finding: str, fix: str) -> None:
    ((where, said, helps),) = found(**fields)
    assert (where, finding in said, fix in helps) == (check, True, True), (said, helps)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crn": EU},
        {"dialect": "legacy"},
        {"crn": EU, "base_url": "https://private.eu-de.quantum.cloud.ibm.com/api/v1/"},
        {"base_url": "https://mirror.example/quantum"},
        {"ca_file": None, "proxy": None, "request_timeout": 5},
        {"proxy": "http://user:p%40ss@proxy.example:3128/"},
    ],
)
def test_fields_that_fit(fields: dict[str, Any]) -> None:
    checked = check_fields({"api_key": KEY, "crn": US, **fields})
    assert [one.level for one in checked.findings] == ["ok"]
    assert checked.bad == frozenset()


def test_all_wrong_fields_are_named_at_once_and_stood_in_for() -> None:
    data = {
        "api_key": "", "crn": 7, "dialect": None, "base_url": "ftp://x", "iam_url": "x", "api_version": "new",
        "application": "a\nb", "ca_file": "/nowhere", "proxy": "x", "request_timeout": -1,
    }  # fmt: skip
    checked = check_fields(data)
    named = {one.check for one in checked.findings}
    assert named == set(data) - {"dialect"}
    assert checked.bad == named
    assert checked.connection.region == "us-east"


def test_an_empty_document() -> None:
    assert {check for check, _, _ in found(api_key=None, crn=None)} == {"api_key", "crn"}


@pytest.mark.parametrize("emptied", ["", "  "])
@pytest.mark.parametrize("name", sorted(QuantumRuntimeCredentials.model_fields))
def test_an_emptied_field_is_a_problem_if_the_block_refuses_it(name: str, emptied: str) -> None:
    try:
        QuantumRuntimeCredentials(**{"api_key": KEY, "crn": US, name: emptied}).get_client()
    except (ValueError, InvalidInput):
        assert name in {check for check, _, _ in found(**{name: emptied})}
    else:
        assert found(**{name: emptied}) == found(**{name: None})


def test_no_secret_is_repeated() -> None:
    told = str(found(api_key="half of a key\n0123456789", proxy="me:password-0123@host"))
    assert "half" not in told
    assert "password-0123" not in told


@pytest.mark.parametrize(
    "text", ["proxy.example:3128", "socks5://host:1", "http://", "http://host:99999", "http://host/path", "http://a b"]
)
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_proxy(text)
    assert caught.value.field == "proxy"


def test_ca_files(tmp_path: Path) -> None:
    ours = Authority.make("our ca")
    assert check_ca_file(ours.write(tmp_path)) is None
    _, leaf = ours.tls(tmp_path, "localhost")
    levels = [one.level for file in (leaf, str(tmp_path), "/nowhere") if (one := check_ca_file(file)) is not None]
    assert levels == ["hint", "problem", "problem"]


def test_a_field_that_the_block_does_not_have_is_named() -> None:
    ((check, said, fix),) = found(baseurl="https://elsewhere.example", _block_document_name="mine")
    assert check == "fields"
    assert said.startswith("baseurl is not a field")
    assert fix.startswith("Did you mean 'base_url'?")
