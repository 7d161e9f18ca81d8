"""Every call as it leaves: method, address, query, headers, body; both dialects."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.transport import http as http_module
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import JobStatus, SessionRef
from tests.support.mock_client import CRN, TOKEN, connection, sent

CLOUD = "https://quantum.cloud.ibm.com/api/v1"
LEGACY = "https://us-east.quantum-computing.cloud.ibm.com"
BASES = {"cloud": CLOUD, "legacy": LEGACY}
DIALECTS = pytest.mark.parametrize("dialect", ["cloud", "legacy"])
Connect = Callable[..., QuantumRuntimeClient]
GONE = {"errors": [{"code": 1291, "message": "not there, or over"}], "trace": "t"}
JOB = {"id": "d1", "status": "Running", "state": {"status": "Running"}, "created": "2026-05-01T10:00:00Z"}
BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'

Call = Callable[[QuantumRuntimeClient], Any]
CALLS: list[tuple[str, Call, str, str, dict[str, Any], Any]] = [
    ("versions", lambda c: c.versions(), "GET", "/versions", {"json": {"versions": ["2024-01-01"]}}, ("2024-01-01",)),
    (
        "versions as objects",
        lambda c: c.versions(),
        "GET",
        "/versions",
        {"json": {"versions": [{"version": "2026-02-15", "status": "deprecated"}, {"version": "2026-03-15"}]}},
        ("2026-02-15", "2026-03-15"),
    ),
    ("instance", lambda c: c.instance(), "GET", "/instance", {"json": {"plan_id": "p"}}, {"plan_id": "p"}),
    (
        "instance configuration",
        lambda c: c.instance_configuration(),
        "GET",
        "/instances/configuration",
        {"json": {"instance_limit": 600}},
        {"instance_limit": 600},
    ),
    ("status", lambda c: c.backend_status("b.1"), "GET", "/backends/b.1/status", {"json": {"a": 1}}, {"a": 1}),
    (
        "configuration",
        lambda c: c.backend_configuration("b"),
        "GET",
        "/backends/b/configuration",
        {"json": {"n_qubits": 5}},
        {"n_qubits": 5},
    ),
    (
        "properties",
        lambda c: c.backend_properties("b"),
        "GET",
        "/backends/b/properties",
        {"json": {"qubits": []}},
        {"qubits": []},
    ),
    ("metrics", lambda c: c.metrics("d1"), "GET", "/jobs/d1/metrics", {"json": {"caller": "x"}}, {"caller": "x"}),
    ("logs", lambda c: c.logs("d1"), "GET", "/jobs/d1/logs", {"text": "line"}, "line"),
    ("no logs", lambda c: c.logs("d1"), "GET", "/jobs/d1/logs", {"status_code": 404, "json": GONE}, ""),
    ("empty logs", lambda c: c.logs("d1"), "GET", "/jobs/d1/logs", {"status_code": 204}, ""),
    ("delete", lambda c: c.delete_job("d1"), "DELETE", "/jobs/d1", {"status_code": 204}, None),
    (
        "stop accepting",
        lambda c: c.stop_accepting("s1"),
        "PATCH",
        "/sessions/s1",
        {"status_code": 204, "match_json": {"accepting_jobs": False}},
        None,
    ),
    ("drop", lambda c: c.drop_session("s1"), "DELETE", "/sessions/s1/close", {"status_code": 204}, None),
    (
        "tags",
        lambda c: c.replace_tags("d1", ("a", "b")),
        "PUT",
        "/jobs/d1/tags",
        {"status_code": 204, "match_json": {"tags": ["a", "b"]}},
        None,
    ),
    (
        "input",
        lambda c: c.job_input("d1"),
        "GET",
        "/jobs/d1?exclude_params=false",
        {"json": {**JOB, "params": {"version": 2}}},
        {"version": 2},
    ),
]


@DIALECTS
@pytest.mark.parametrize(("name", "call", "method", "path", "answer", "result"), CALLS, ids=[c[0] for c in CALLS])
def test_calls(
    iam: HTTPXMock,
    connect: Connect,
    dialect: str,
    name: str,
    call: Call,
    method: str,
    path: str,
    answer: Any,
    result: Any,
) -> None:
    iam.add_response(method=method, url=BASES[dialect] + path, **answer)
    client = connect(dialect)
    assert client.run(call(client)) == result
    assert len(sent(iam)) == 1


@DIALECTS
def test_headers(iam: HTTPXMock, connect: Connect, dialect: str) -> None:
    iam.add_response(json={"jobs": []})
    client = connect(dialect, application="my-app/1")
    client.run(client.jobs())
    headers = sent(iam)[0].headers
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["service-crn"] == CRN
    assert headers["accept"] == "application/json"
    if dialect == "cloud":
        assert headers["ibm-api-version"] == "2026-04-15"
        assert headers["x-qx-client-application"] == "my-app/1"
    else:
        assert "ibm-api-version" not in headers
        assert headers["x-qx-client-application"] == "qiskit-version-2/0.39.2/my-app/1"


def test_the_token_request(iam: HTTPXMock, connect: Connect) -> None:
    client = connect(api_key="Key_with+odd/chars=1")
    assert 3000 < client.run(client.authenticate()) <= 3600
    request = iam.get_requests()[0]
    assert str(request.url) == "https://iam.cloud.ibm.com/identity/token"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.content == (
        b"grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=Key_with%2Bodd%2Fchars%3D1"
    )
    assert "authorization" not in request.headers


@DIALECTS
def test_create(iam: HTTPXMock, connect: Connect, dialect: str) -> None:
    iam.add_response(method="POST", url=f"{BASES[dialect]}/jobs", json={"id": "d1", "backend": "real_b"})
    client = connect(dialect)
    spec = make_spec([(BELL, None, 100)], backend="b", max_execution_time=30, private=True)
    ref = client.run(client.post_job(spec, ("qr-key:1", "mine"), None))
    assert (ref.id, ref.backend, ref.program_id, ref.tags) == ("d1", "real_b", "sampler", ("qr-key:1", "mine"))
    assert (ref.private, ref.attached, ref.widths, ref.session) == (True, False, (2,), None)
    assert ref.url is not None
    assert ref.url.endswith("d1")
    body = json.loads(sent(iam)[0].content)
    params = body.pop("params")
    assert body == {
        "program_id": "sampler",
        "backend": "b",
        "tags": ["qr-key:1", "mine"],
        "cost": 30,
        "private": True,
    }
    if dialect == "cloud":
        assert params["version"] == 2
        assert params["pubs"] == [[BELL, None, 100]]
    else:
        assert "pubs" not in params
        assert params["circuits"] == [BELL]


@DIALECTS
def test_create_in_a_session(iam: HTTPXMock, connect: Connect, dialect: str) -> None:
    iam.add_response(method="POST", json={"id": "d2", "session_id": "s1"})
    client = connect(dialect)
    ref = client.run(client.post_job(make_spec([BELL], backend="b"), (), SessionRef(id="s1")))
    body = json.loads(sent(iam)[0].content)
    assert body["session_id"] == "s1"
    assert "start_session" not in body
    assert "cost" not in body
    assert ref.session == SessionRef(id="s1")


def test_a_legacy_session_begins_with_its_first_job(iam: HTTPXMock, connect: Connect) -> None:
    client = connect("legacy")
    session = client.run(client.open_session("b", max_ttl=600))
    assert (session.id, session.max_ttl, session.backend) == (None, 600, "b")
    assert not sent(iam)
    iam.add_response(method="POST", url=f"{LEGACY}/jobs", json={"id": "cn9", "backend": "b", "session_id": "cn9"})
    ref = client.run(client.post_job(make_spec([BELL], backend="b"), (), session))
    body = json.loads(sent(iam)[0].content)
    assert (body["start_session"], body["session_time"]) == (True, 600)
    assert ref.session is not None
    assert ref.session.id == "cn9"


@pytest.mark.parametrize(("mode", "ttl"), [("dedicated", 28800), ("batch", None)])
def test_sessions(iam: HTTPXMock, connect: Connect, mode: str, ttl: int | None) -> None:
    wanted = {"mode": mode, "backend": "b"} | ({"max_ttl": ttl} if ttl else {})
    iam.add_response(
        method="POST",
        url=f"{CLOUD}/sessions",
        match_json=wanted,
        json={"id": "s1", "backend_name": "b", "mode": mode, "state": "open", "accepting_jobs": True, "max_ttl": ttl},
    )
    client = connect()
    session = client.run(client.open_session("b", mode=mode, max_ttl=ttl))
    assert session == SessionRef(id="s1", mode=mode, backend="b", max_ttl=ttl, state="open", accepting_jobs=True)
    iam.add_response(
        url=f"{CLOUD}/sessions/s1", json={"id": "s1", "state": "active", "started_at": "2026-05-01T10:00:00Z"}
    )
    read = client.run(client.session("s1"))
    assert (read.state, read.started_at) == ("active", datetime(2026, 5, 1, 10, tzinfo=UTC))


@DIALECTS
@pytest.mark.parametrize("call", ["open_session", "post_session"])
@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("mode", wrong) for wrong in ("forever", "", None, 1, ["batch"], "Batch")),
        *(("max_ttl", wrong) for wrong in (0, -1, 2**31, 2**63, 10**30, True, 60.0, "60", float("nan"), [60])),
    ],
)
def test_a_session_of_wrong_parameters(
    iam: HTTPXMock, connect: Connect, dialect: str, call: str, field: str, wrong: Any
) -> None:
    client = connect(dialect)
    with pytest.raises(InvalidInput) as caught:
        client.run(getattr(client, call)("b", **{"mode": "dedicated", "max_ttl": 60, field: wrong}))
    assert caught.value.field == field
    assert not sent(iam)


@DIALECTS
def test_get_job_without_its_input(iam: HTTPXMock, connect: Connect, dialect: str) -> None:
    iam.add_response(url=f"{BASES[dialect]}/jobs/d1?exclude_params=true", json=JOB)
    client = connect(dialect)
    job = client.run(client.job("d1"))
    assert (job.id, job.status) == ("d1", JobStatus.RUNNING)


@DIALECTS
@pytest.mark.parametrize("status", [204, 409])
def test_cancel_reads_back_until_it_is_over(iam: HTTPXMock, connect: Connect, dialect: str, status: int) -> None:
    base = BASES[dialect]
    iam.add_response(
        method="POST", url=f"{base}/jobs/d1/cancel", status_code=status, json=GONE if status == 409 else None
    )
    iam.add_response(method="GET", url=f"{base}/jobs/d1?exclude_params=true", json=JOB)
    iam.add_response(
        method="GET", url=f"{base}/jobs/d1?exclude_params=true", json={"id": "d1", "state": {"status": "Cancelled"}}
    )
    client = connect(dialect)
    assert client.run(client.cancel("d1")).status is JobStatus.CANCELLED
    assert sent(iam)[0].content == b""
    assert [r.method for r in sent(iam)] == ["POST", "GET", "GET"]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_cancel_that_was_accepted_is_told_apart_from_one_that_failed(
    iam: HTTPXMock, connect: Connect, status: int
) -> None:
    base = BASES["cloud"]
    iam.add_response(method="POST", url=f"{base}/jobs/d1/cancel", status_code=204)
    iam.add_response(method="GET", status_code=status, json=GONE, is_reusable=True)
    client = connect("cloud")
    with pytest.raises(QuantumRuntimeError, match="was accepted, but its state could not be read") as caught:
        client.run(client.cancel("d1"))
    assert (caught.value.requested, caught.value.status) == (True, status)
    iam.add_response(method="POST", url=f"{base}/jobs/d2/cancel", status_code=status, json=GONE, is_reusable=True)
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.cancel("d2"))
    assert "requested" not in caught.value.fields
    assert "was accepted" not in str(caught.value)


def test_usage(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(
        url=f"{CLOUD}/instances/usage",
        json={
            "instance_id": "i",
            "plan_id": "p",
            "usage_consumed_seconds": 12.5,
            "usage_limit_seconds": 600,
            "usage_period": {"start_time": "2026-05-01T00:00:00Z", "end_time": "2026-05-29T00:00:00Z"},
        },
    )
    client = connect()
    usage = client.run(client.usage())
    assert (usage.consumed_seconds, usage.remaining_seconds, usage.limit_reached) == (12.5, 587.5, False)
    assert usage.period_start == datetime(2026, 5, 1, tzinfo=UTC)


def test_backends_as_objects(iam: HTTPXMock, connect: Connect) -> None:
    device = {
        "name": "ibm_torino",
        "status": {"name": "online", "reason": "available"},
        "is_simulator": False,
        "qubits": 133,
        "clops": {"type": "hardware", "value": 210000},
        "processor_type": {"family": "Heron", "revision": "1", "segment": None},
        "queue_length": 12,
        "performance_metrics": {"two_q_error_median": {"value": 0.003}, "readout_error_median": {"value": 0.02}},
        "wait_time_seconds": {"average": 120, "p50": 60},
    }
    bare = {"name": "new_one", "status": {"name": "paused"}, "qubits": None, "clops": None, "processor_type": None}
    # Without `fields` the service leaves the wait out (and says nothing of it).
    iam.add_response(
        url=f"{CLOUD}/backends?fields=wait_time_seconds", json={"devices": [device, bare, {"no": "name"}, 7]}
    )
    client = connect()
    torino, new = client.run(client.backends())
    assert (torino.num_qubits, torino.clops, torino.queue_length, torino.wait_time_seconds) == (133, 210000, 12, 120)
    assert (torino.processor, torino.two_qubit_error, torino.readout_error) == ("Heron 1", 0.003, 0.02)
    assert (torino.is_online, new.is_online, new.num_qubits, new.processor) == (True, False, None, None)


def test_backends_as_names(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=f"{LEGACY}/backends", json={"devices": ["a", "b", "c"]})
    said = {
        "a": {"state": True, "status": "active", "message": "", "length_queue": 3, "backend_version": "1"},
        "b": {"state": True, "status": "internal", "message": "calibrating", "length_queue": 0},
        "c": {"state": False, "status": "active", "length_queue": 0},
    }
    for name, status in said.items():
        iam.add_response(url=f"{LEGACY}/backends/{name}/status", json=status)
        iam.add_response(
            url=f"{LEGACY}/backends/{name}/configuration", json={"n_qubits": 127, "simulator": name == "c"}
        )
    client = connect("legacy")
    a, b, c = client.run(client.backends())
    assert (a.status, a.num_qubits, a.queue_length, a.simulator) == ("online", 127, 3, False)
    assert (b.status, b.status_reason) == ("internal", "calibrating")
    assert (c.status, c.simulator) == ("offline", True)


@pytest.mark.parametrize("bad", ["../x", "a/b", "d1?x=1", "", "d 1", "é"])
def test_ids_are_checked_before_they_leave(iam: HTTPXMock, connect: Connect, bad: str) -> None:
    client = connect()
    calls = [client.job, client.cancel, client.delete_job, client.logs, client.metrics, client.job_input, client.wait]
    calls += [client.session, client.stop_accepting, client.drop_session, client.backend_status, client.result]
    for call in calls:
        with pytest.raises(InvalidInput):
            client.run(call(bad))
    assert not iam.get_requests()


def _numeric() -> list[tuple[str, str]]:
    """Each numeric parameter of each public call of the client; limits of a wait by their fields."""
    calls = inspect.getmembers(QuantumRuntimeClient, inspect.iscoroutinefunction)
    found = [
        (name, field)
        for name, call in calls
        if not name.startswith("_")
        for field, parameter in inspect.signature(call).parameters.items()
        if {"int", "float"} & set(re.findall(r"\w+", str(parameter.annotation)))
    ]
    return found + [(name, field.name) for name in ("look", "wait") for field in fields(Deadlines)]


WRONG_NUMBERS: tuple[Any, ...] = (-1, -0.5, True, "1", math.nan, -math.inf, [1])


@pytest.mark.parametrize(("name", "field"), _numeric())
def test_wrong_numbers_are_refused_by_name_before_anything_is_sent(
    iam: HTTPXMock, connect: Connect, name: str, field: str
) -> None:
    client = connect()
    call = getattr(client, name)
    here = inspect.signature(call).parameters
    needed = {key: "b" for key, one in here.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    for wrong in WRONG_NUMBERS:
        given: dict[str, Any] = {**needed, **({"mode": "dedicated"} if "mode" in here else {})}
        given |= {field: wrong} if field in here else {"deadlines": Deadlines(**{field: wrong})}
        with pytest.raises(InvalidInput) as caught:
            client.run(call(**given))
        assert caught.value.field == {"total": "timeout", "queue": "queue_timeout"}.get(field, field)
    assert not iam.get_requests()


NO_PROXIES = [
    ("", True),
    ("fd00::/8", True),
    ("fd00::/8,10.0.0.0/8, other.example", True),
    ("*", False),
    ("quantum.cloud.ibm.com", False),
    (".ibm.com", False),
    ("*.ibm.com", False),
    ("cloud.ibm.com:443", False),
    ("ibm.co", True),
]


@pytest.mark.parametrize(("no_proxy", "expected"), NO_PROXIES)
def test_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch, no_proxy: str, expected: bool) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert http_module.proxy_of(connection(), CLOUD) == ("http://proxy.example:3128" if expected else None)
    assert http_module.proxy_of(connection(), "http://127.0.0.1:1") is None
    given = connection(proxy="http://own.example:1")
    assert http_module.proxy_of(given, CLOUD) == "http://own.example:1"
    urls = {"base_url": "https://[2001:db8::1]:8443/api/v1", "iam_url": "https://[2001:db8::2]"}
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        for one in (connection(), given, connection(proxy="http://own.example:1", **urls)):
            loop.run_until_complete(http_module.http_client(one).aclose())


WRONG_PROXIES = [
    *(f"http://me:pass-word{letter}x@127.0.0.1:9" for letter in "/#?[ "),
    *(f"{scheme}://me:pass-word@127.0.0.1:9" for scheme in ("socks4", "socks5", "socks5h", "ftp", "'http")),
    *(f"http://me:pass-word@{where}" for where in ("127.0.0.1:99999", "127.0.0.1:port", "[::1:9", "")),
]


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("wrong", WRONG_PROXIES)
def test_a_wrong_proxy_of_the_environment_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, wrong: str
) -> None:
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(variable, wrong)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as in a plain install
    with pytest.raises(InvalidInput, match=variable) as caught:
        http_module.http_client(connection(base_url=CLOUD))
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("path", ["/", "/proxy.pac"])
def test_a_path_of_the_environment_s_proxy_is_ignored(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://proxy.example:3128{path}")
    proxy = http_module.proxy_of(connection(base_url=CLOUD), CLOUD)
    assert proxy == f"http://proxy.example:3128{path}"
    http_module.http_client(connection(base_url=CLOUD))


# What an entry of NO_PROXY names, and hosts that it does and does not include.
NAMED = {
    "ibm.com": ("quantum.cloud.ibm.com", "xibm.com"),
    ".ibm.com": ("quantum.cloud.ibm.com", "ibm.com.example"),
    "*.ibm.com": ("quantum.cloud.ibm.com", "ibm.example"),
    "Quantum.Cloud.IBM.com": ("quantum.cloud.ibm.com", "eu-de.cloud.ibm.com"),
    "10.1.2.3": ("10.1.2.3", "110.1.2.3"),
    "10.0.0.0/8": ("10.1.2.3", "11.1.2.3"),
    "FD00::1": ("fd00::1", "fd00::2"),
    "[fd00::1]": ("fd00::1", "fd00::11"),
    "fd00:0:0:0:0:0:0:1": ("fd00::1", "fd00::2"),
    "fd00::/8": ("fd00::1", "fe00::1"),
    "[fd00::]/8": ("fd00::1", "fe00::1"),
}


@pytest.mark.parametrize(
    "form", ["{}", " {} ", "{}:443", "https://{}", "https://{}:8443/", "{}/", "{}.", "x.example,{}"]
)
@pytest.mark.parametrize("name", NAMED)
def test_an_entry_of_no_proxy_in_each_of_its_forms(name: str, form: str) -> None:
    if form in ("{}:443", "https://{}:8443/", "{}.") and ((name.count(":") > 1 and name[-1] != "]") or "/" in name):
        return  # such an address has no port
    inside, outside = NAMED[name]
    assert http_module._is_direct(inside, form.format(name))
    assert not http_module._is_direct(outside, form.format(name))
