"""CRNs, addresses, ids and connections are checked before anything is sent."""

from __future__ import annotations

import base64
import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest

from prefect_qruntime.client.connection import (
    Connection,
    check_id,
    check_name,
    check_session,
    check_url,
    is_loopback,
    is_public,
    parse_crn,
)
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import MASK, redact

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
KEY = "a-key-of-no-worth-1234567890"


def make(**fields: Any) -> Connection:
    return Connection(**{"api_key": KEY, "crn": CRN, **fields})


def test_a_crn_is_taken_apart() -> None:
    crn = parse_crn(f"  {CRN.replace('us-east', 'eu-de')} ")
    assert (crn.cname, crn.region, crn.account, crn.instance) == ("bluemix", "eu-de", "0123abcd", "11aa-22bb")
    assert str(crn) == CRN.replace("us-east", "eu-de")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crn",
        CRN[:-1],
        CRN + ":",
        CRN + "\n",
        CRN.replace("11aa", "11\r\nX: y"),
        CRN.replace("us-east", ""),
        CRN.replace("quantum-computing", "cloud-object-storage"),
        CRN.replace("v1", "v2"),
        CRN + "/x",
        None,
        7,
        CRN.replace("us-east", "evil.com/"),
        CRN.replace("0123abcd", "é"),
        CRN.replace("a/0123abcd", "0123abcd"),
    ],
)
def test_what_is_no_crn(text: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_crn(text, field="credentials.crn")
    assert caught.value.field == "credentials.crn"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CRN.replace("quantum-computing", "cloud-object-storage"), "its service is 'cloud-object-storage'"),
        (CRN.replace("us-east", "US EAST"), "its region is 'US EAST'"),
        (CRN.replace("a/", "b/"), "its account is "),
        (CRN.removesuffix("::"), "8 parts between colons, not 10"),
        ("an-api-key-in-the-wrong-field", "does not begin with crn:v1"),
        *(
            (wrong, "contains whitespace, quotes or invisible characters")
            for odd in ("\n", "\r\n", "\t", '"', "'", "`", "\u00a0", "\u200b", "\ufeff")
            for wrong in (CRN + odd, odd + CRN, odd + CRN + odd, CRN[:20] + odd + CRN[20:])
        ),
        (CRN[:20] + " " + CRN[20:], "contains whitespace, quotes or invisible characters"),
    ],
)
def test_a_wrong_crn_is_told_where_it_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_crn(text)
    assert said in caught.value.message
    assert "an-api-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("region", "said"), [("us-west", "Did you mean 'us-east'?"), ("eu-fr", ""), ("jp-tok", "give its address")]
)
def test_a_region_that_there_is_not_is_refused_unless_its_address_is_given(region: str, said: str) -> None:
    crn = CRN.replace("us-east", region)
    with pytest.raises(InvalidInput) as caught:
        make(crn=crn)
    assert (caught.value.field, repr(region) in caught.value.message) == ("crn", True)
    assert said in str(caught.value)
    assert make(crn=crn, base_url="https://host.example/x").region == region


@pytest.mark.parametrize(
    ("region", "dialect", "url"),
    [
        ("us-east", "cloud", "https://quantum.cloud.ibm.com/api/v1"),
        ("eu-de", "cloud", "https://eu-de.quantum.cloud.ibm.com/api/v1"),
        ("us-east", "legacy", "https://us-east.quantum-computing.cloud.ibm.com"),
        ("eu-de", "legacy", "https://eu-de.quantum-computing.cloud.ibm.com"),
    ],
)
def test_hosts_follow_the_region(region: str, dialect: Any, url: str) -> None:
    connection = make(crn=CRN.replace("us-east", region), dialect=dialect)
    assert (connection.base_url, connection.region, connection.iam_url) == (url, region, "https://iam.cloud.ibm.com")


def test_another_cloud_needs_an_address() -> None:
    staging = CRN.replace("bluemix", "staging")
    with pytest.raises(InvalidInput, match="base_url"):
        make(crn=staging)
    assert make(crn=staging, base_url="https://host.example/x").base_url == "https://host.example/x"


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_trailing_slash_changes_nothing(slashes: str) -> None:
    connection = make(base_url=f"https://host.example/api/v1{slashes}", iam_url=f"https://iam.example{slashes}")
    assert (connection.base_url, connection.iam_url) == ("https://host.example/api/v1", "https://iam.example")


@pytest.mark.parametrize("name", ["quantum.cloud.ibm.com", "iam.example", "localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize(("scheme", "port"), [("https", 443), ("http", 80)])
def test_one_address_has_one_form(name: str, scheme: str, port: int) -> None:
    if scheme == "http" and not is_loopback(name.strip("[]")):
        name = "localhost"
    dot = "." if "." in name and not name[0].isdigit() else ""
    forms = {
        check_url(f"{protocol}://{host}{suffix}/api{slash}", field="base_url")
        for protocol in (scheme, scheme.upper())
        for host in (name, name.upper(), name.title(), f"{name}{dot}")
        for suffix in ("", ":", f":{port}")
        for slash in ("", "/")
    }
    assert forms == {f"{scheme}://{name}/api"}
    assert check_url(f"{scheme}://{name}:8443/Api", field="base_url") == f"{scheme}://{name}:8443/Api"


@pytest.mark.parametrize("region", ["us-east", "eu-de"])
def test_an_instance_has_one_name_on_all_of_ibm_s_hosts(region: str) -> None:
    crn = CRN.replace(":us-east:", f":{region}:")
    hosts = [f"{private}{region}.quantum.cloud.ibm.com" for private in ("", "private.")]
    hosts += ["quantum.cloud.ibm.com", "private.quantum.cloud.ibm.com"] if region == "us-east" else []
    names = {make(crn=crn, base_url=f"https://{host}{port}/api/v1").instance for host in hosts for port in ("", ":443")}
    assert names == {make(crn=crn).instance}
    legacy = f"https://{region}.quantum-computing.cloud.ibm.com"
    others = {
        make(crn=crn.replace("0123", "0124")).instance,
        make(crn=crn, base_url=f"https://{hosts[0]}.example/api/v1").instance,
        make(crn=crn, base_url=f"https://my{hosts[0]}/api/v1").instance if region == "us-east" else "",
        make(crn=crn, base_url="https://127.0.0.1:8000/api/v1").instance,
        make(crn=crn, base_url="https://127.0.0.1:8001/api/v1").instance,
    }
    assert names.isdisjoint(others)
    assert make(crn=crn, dialect="legacy").instance == make(crn=crn, dialect="legacy", base_url=legacy).instance


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost/x", "http://[::1]:9/x", "https://a.example"]
)
def test_good_addresses(url: str) -> None:
    assert check_url(url, field="base_url") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host/",
        "http://host.example/",
        "http://10.0.0.1/",
        "http://0.0.0.0/",
        "http://localhost.evil/",
        "https://u:p@host/",
        "https://u@host/",
        "https://@host/",
        "https://host/?q=1",
        "https://host/#f",
        "https:///x",
        "https://host:0/",
        "https://host:99999/",
        "https://host:x/",
        "http://[::1",
        "https://::1]/",
        "https://[::g]/",
        "https://[v1.x/",
        "https://a b/",
        "https://good\\@evil/",
        "//host/x",
        # No name of a host may be these.
        "https://[v1.x]/",
        "https://xn--a.example/",
        "https://\u24d4xample.example\uff05/",
        "https://ex\u00adample.example/",
        "https://\u202eelpmaxe.example/",
    ],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_url(url, field="base_url")
    assert caught.value.field == "base_url"


@pytest.mark.parametrize("value", ["../x", "a/b", "a?b", "a b", "", "x" * 65, "a\n", "é", None, 7, "%2e", "a.b"])
def test_bad_ids(value: Any) -> None:
    with pytest.raises(InvalidInput):
        check_id(value, field="job")


@pytest.mark.parametrize("value", ["../x", "..", ".x", "a/b", "", "x" * 65, "a\n", None, "a%2fb"])
def test_bad_backend_names(value: Any) -> None:
    with pytest.raises(InvalidInput):
        check_name(value, field="backend")


class Undecided:
    """Compares as an array of numpy does."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, _: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


@pytest.mark.parametrize("mode", ["", "batched", None, True, ["batch"], {"batch"}, Undecided()])
def test_a_session_has_one_of_two_modes(mode: Any) -> None:
    check_session("batch", 5)
    with pytest.raises(InvalidInput, match="mode"):
        check_session(mode, None)


def test_good_ids_and_names() -> None:
    assert check_id("d1abc-DEF_9", field="job") == "d1abc-DEF_9"
    assert check_name("ibm_torino.v2-x", field="backend") == "ibm_torino.v2-x"


@pytest.mark.parametrize(
    ("field", "value"),
    [("api_key", v) for v in ("", "   ", "a\nb", "a b", "é" * 20, "x" * 201, None, "**********")]
    + [("dialect", "grpc"), ("crn", "x"), ("api_version", "latest"), ("api_version", "2026-04-15\n")]
    + [("application", ""), ("application", "a\r\nX: y"), ("application", "x" * 201)]
    + [("request_timeout", v) for v in (0, -1, 3601, float("nan"))]
    + [("base_url", "http://host.example"), ("iam_url", "http://host.example")],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**{field: value})
    assert caught.value.field == field


def test_a_connection_shows_and_hands_on_no_secret() -> None:
    connection = make(proxy="http://me:proxy%2Dpassword@proxy.example:3128")
    assert KEY not in repr(connection)
    assert "proxy" not in repr(connection).replace("prefect_qruntime", "")
    assert KEY not in connection.fingerprint
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="API key") as caught:
            attempt(connection)
        assert KEY not in str(caught.value)
    assert redact(f"x {KEY} proxy%2Dpassword proxy-password y") == "x ******** ******** ******** y"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'"{KEY}"', "without quotes"),
        (f"'{KEY}'", "without quotes"),
        (f"`{KEY}`", "without quotes"),
        (f'{KEY}"', "without quotes"),
        (CRN, "The CRN belongs in the field crn"),
        (f" {CRN.upper()}\n", "The CRN belongs in the field crn"),
    ],
)
def test_a_key_with_quotes_and_a_crn_in_its_place_are_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        make(api_key=text)
    assert caught.value.field == "api_key"
    assert KEY not in str(caught.value)


def test_surrounding_blanks_of_the_key_are_dropped() -> None:
    assert make(api_key=f" {KEY}\n").api_key == KEY


def test_the_fingerprint_tells_connections_apart() -> None:
    base = make()
    assert base.fingerprint == make().fingerprint
    others = [
        make(api_key=KEY + "x"),
        make(dialect="legacy"),
        make(ca_file="/x"),
        make(proxy="http://p.example"),
        make(request_timeout=5.0),
        replace(base, application="other"),
    ]
    assert len({c.fingerprint for c in [base, *others]}) == len(others) + 1


def test_where_to_look_at_a_job() -> None:
    assert make().job_url("d1") == "https://quantum.cloud.ibm.com/workloads/d1"
    assert make(base_url="http://127.0.0.1:1/api/v1").job_url("d1") == "http://127.0.0.1:1/api/v1/jobs/d1"


PUBLIC = ["s3.us-east.cloud-object-storage.appdomain.cloud", "8.8.8.8", "[2606:4700::1111]", "s3.private.example.com."]
PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::]"),
    *("localhost", "LOCALHOST.", "a.localhost", "printer.local", "metadata.google.internal", "metadata", ""),
    *("127.1", "2130706433", "0x7f000001", "0x7f.1", "1.2.3.08"),
]


@pytest.mark.parametrize("host", PUBLIC)
def test_public_hosts(host: str) -> None:
    assert is_public(host)


@pytest.mark.parametrize("host", PRIVATE)
def test_hosts_of_this_machine_or_its_network(host: str) -> None:
    assert not is_public(host)


@pytest.mark.parametrize("empty", ["", " ", None])
@pytest.mark.parametrize("name", ["proxy", "ca_file"])
def test_an_emptied_field_is_none(name: str, empty: str | None) -> None:
    assert getattr(make(**{name: empty}), name) is None


@pytest.mark.parametrize(
    "host",
    [
        "[v1.x]",
        "xn--a.example",
        "\uff05.example",
        "ex\u00adample.example",
        "\u202ea",
        "[::1%25lo]",
        "[fe80::1%eth0]",
        "a%2e",
    ],
)
def test_a_host_that_cannot_be_one_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        make(base_url=f"https://{host}/api/v1")
    with pytest.raises(InvalidInput) as caught:
        make(proxy=f"http://me:proxy-password@{host}:3128")
    assert caught.value.field == "proxy"
    assert "proxy-password" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("application", [" ", " app", "app ", ""])
def test_a_blank_around_the_application_is_refused(application: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(application=application)
    assert caught.value.field == "application"
    assert make(application="my app/1").application == "my app/1"


def test_a_proxy_s_user_without_a_password_is_a_token() -> None:
    make(proxy="http://t%6Fken-of-the-proxy@127.0.0.1:1")
    sent = base64.b64encode(b"token-of-the-proxy:").decode()
    assert redact(f"{sent} t%6Fken-of-the-proxy token-of-the-proxy") == "******** ******** ********"


def test_the_proxy_s_password_is_masked_in_every_form() -> None:
    make(proxy="http://svc:p%40ss-of-the-proxy@127.0.0.1:1")
    sent = base64.b64encode(b"svc:p@ss-of-the-proxy").decode()
    text = f"Proxy-Authorization: Basic {sent} p%40ss-of-the-proxy p@ss-of-the-proxy {sent}"
    assert redact(text) == f"Proxy-Authorization: Basic {MASK} {MASK} {MASK} {MASK}"
