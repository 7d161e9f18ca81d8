"""Error bodies of every shape, Retry-After, answers that are not JSON."""

from __future__ import annotations

import tracemalloc
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.client.failures import Question
from prefect_qruntime.client.transport import replies
from prefect_qruntime.client.transport.replies import (
    ErrorBody,
    Reply,
    accepted,
    error_for,
    no_answer,
    parse_error,
    refuses_token,
    retry_after_seconds,
    unreadable_create,
)
from prefect_qruntime.errors import AuthenticationError, NotFound, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.redact import MASK, register_secret

WAIT = Question("wait", "GET", "/jobs/d1")
SUBMIT = Question("submit", "POST", "/jobs")
USAGE = Question("read", "GET", "/instances/usage")
TOKEN_ = Question("token", "POST", "/identity/token")
SECRET = "tok-Zk39vQx1-not-a-real-one"

BODIES: list[tuple[str, Any, ErrorBody]] = [
    (
        "code as int",
        {
            "errors": [
                {"code": 1291, "message": "Job not found.", "solution": "Check it.", "more_info": "https://x.example/e"}
            ],
            "trace": "t1",
        },
        ErrorBody("Job not found.", 1291, "Check it. See https://x.example/e", "t1"),
    ),
    (
        "code as text",
        {"errors": [{"code": "not_found", "message": "device not found", "more_info": "ask"}], "trace": "t2"},
        ErrorBody("device not found", "not_found", None, "t2"),
    ),
    ("digits as text", {"errors": [{"code": "1291", "message": "m"}]}, ErrorBody("m", 1291)),
    (
        "old platform",
        {"errors": [{"message": "m", "code": 1208, "more_info": "https://y.example"}]},
        ErrorBody("m", 1208, "See https://y.example"),
    ),
    ("single error", {"error": {"message": "m", "code": 5}}, ErrorBody("m", 5)),
    ("error as text", {"error": "boom", "code": 7}, ErrorBody("boom", 7)),
    ("errors of text", {"errors": ["boom"]}, ErrorBody("boom")),
    ("several", {"errors": [{"message": "first"}, {"message": "second"}]}, ErrorBody("first")),
    ("no message", {"errors": [{"code": 1291}]}, ErrorBody("1291", 1291)),
    ("nothing in it", {"errors": [{}]}, ErrorBody("the service gave no message")),
    (
        "IAM",
        {
            "errorCode": "BXNIM0415E",
            "errorMessage": "Provided API key could not be found.",
            "context": {"requestId": "r1"},
        },
        ErrorBody("Provided API key could not be found.", "BXNIM0415E", None, "r1"),
    ),
    ("IAM, bare", {"errorCode": "BXNIM0109E"}, ErrorBody("BXNIM0109E", "BXNIM0109E")),
    ("message only", {"message": "m", "code": True}, ErrorBody("m")),
    ("other JSON", {"detail": "x"}, ErrorBody('{"detail":"x"}')),
    ("list", [1, 2], ErrorBody("[1,2]")),
    ("errors empty", {"errors": [], "trace": "t"}, ErrorBody('{"errors":[],"trace":"t"}')),
    ("HTML", b"<html><h1>503 Service Temporarily Unavailable</h1></html>", None),  # type: ignore[list-item]
    ("empty", b"", ErrorBody("the answer has no body")),
    ("blank", b" \r\n", ErrorBody("the answer has no body")),
    ("no UTF-8", b"\xff\xfe", ErrorBody("��")),
]


@pytest.mark.parametrize(("name", "body", "expected"), BODIES, ids=[b[0] for b in BODIES])
def test_error_bodies(name: str, body: Any, expected: ErrorBody | None) -> None:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    assert parse_error(content) == (expected or ErrorBody(content.decode()))


@pytest.mark.parametrize(
    "body",
    [
        {"errors": [{"code": SECRET, "message": SECRET, "solution": SECRET, "more_info": f"https://h/{SECRET}"}]},
        {"errors": [SECRET], "trace": SECRET},
        {"errorCode": SECRET, "errorMessage": SECRET, "context": {"requestId": SECRET}},
        {"message": SECRET, "code": SECRET, "trace_id": SECRET},
        {"other": SECRET},
    ],
)
def test_an_echoed_secret_is_masked(body: Any) -> None:
    register_secret(SECRET)
    found = parse_error(orjson.dumps(body))
    assert SECRET not in repr(found)
    assert MASK in repr(found)


def test_long_texts_are_cut_after_masking() -> None:
    register_secret(SECRET)
    html = parse_error((b"x" * 490) + SECRET.encode() + b"y" * 10_000)
    assert len(html.message) == 500
    assert "tok-" not in html.message
    whole = parse_error(orjson.dumps({"errors": [{"message": "x" * 10**6, "code": "9" * 5000}]}))
    assert len(whole.message) == 2000
    assert isinstance(whole.code, str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["errors", "error", "code", "message", "errorCode", "context", "trace", "solution", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(body=JSON)
def test_no_body_breaks_the_reader(body: Any) -> None:
    found = parse_error(orjson.dumps(body))
    assert found.message
    assert isinstance(found.code, int | str | None)


@given(content=st.binary(max_size=60))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    assert parse_error(content).message
    with_error = error_for(Reply(400, {}, content), SUBMIT)
    assert isinstance(with_error, QuantumRuntimeError)


@pytest.mark.parametrize("date", ["Fri, 01 May 2026 10:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", None, "odd"])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        ("0", 0.0),
        (" 3 ", 3.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("Fri, 01 May 2026 10:00:30 GMT", "30 s later"),
        ("Fri, 01 May 2026 10:00:30 -0000", "30 s later"),
        ("Fri, 01 May 2026 12:00:30 +0200", "30 s later"),
        ("Fri, 01 May 2026 09:59:00 GMT", "earlier"),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("Fri, 99 Foo 2026", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_counts_from_the_answers_own_date(value: str | None, seconds: Any, date: str | None) -> None:
    headers = {name: text for name, text in (("retry-after", value), ("date", date)) if text is not None}
    if isinstance(seconds, str):
        own = {"30 s later": 30.0, "earlier": 0.0}[seconds]
        long_ago = {"30 s later": 1777629630.0, "earlier": 1777629540.0}[seconds]
        seconds = {"F": own, "T": long_ago}.get((date or "")[:1])
    assert retry_after_seconds(headers) == seconds


def test_errors_name_what_was_refused_and_how_to_go_on() -> None:
    body = b'{"errors":[{"code":1291,"message":"Job not found"}],"trace":"t1"}'
    error = error_for(Reply(404, {}, body), WAIT, job_id="d1", job_url="https://host/d1")
    assert isinstance(error, NotFound)
    assert (error.code, error.trace_id, error.status, error.job_id) == (1291, "t1", 404, "d1")
    assert "the job's state could not be read: Job not found" in str(error)

    iam = error_for(Reply(400, {}, b'{"errorCode":"BXNIM0415E","errorMessage":"x"}'), TOKEN_)
    assert isinstance(iam, AuthenticationError)
    assert iam.message == "API key not found."
    assert "api_key" in str(iam.solution)

    moved = error_for(Reply(302, {"location": f"https://evil.example/{SECRET}"}, b""), USAGE)
    assert "redirects" in moved.message
    assert "evil" not in str(moved)
    assert "base_url" in str(moved.solution)
    assert "iam_url" in str(error_for(Reply(302, {}, b""), TOKEN_).solution)
    assert "proxy" in str(error_for(Reply(407, {}, b""), USAGE).solution)

    plan = error_for(
        Reply(400, {}, b'{"errors":[{"code":1352,"message":"no"}]}'), Question("open", "POST", "/sessions")
    )
    assert "batch" in str(plan.solution)

    late = error_for(Reply(429, {"retry-after": "7"}, b""), SUBMIT)
    assert str(late.advice) == "after 7 s"


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"<html><title>Attention\nRequired</title></html>", "a page titled 'Attention"),
        (b"<html>tired</html>", "a page: '<html>tired"),
        (b"default backend - 404", "reads 'default backend - 404'"),
        (b'{"message":"Forbidden"}', "Forbidden"),
        (b" ", "has no body"),
    ],
)
def test_a_foreign_answer_is_shown_as_what_it_is(content: bytes, seen: str) -> None:
    register_secret(SECRET)
    for question, advice in ((WAIT, "same-request"), (SUBMIT, "search-first"), (TOKEN_, "same-request")):
        error = error_for(Reply(403, {}, content + SECRET.encode()), question)
        assert isinstance(error, ServiceUnavailable)
        assert (str(error.advice), error.foreign, error.code) == (advice, True, None)
        assert "in between" in str(error)
        assert SECRET not in str(error)
    assert seen in str(error_for(Reply(403, {}, content), WAIT))


def test_what_a_create_tells_of_itself() -> None:
    strange = error_for(Reply(302, {}, b""), SUBMIT)
    assert (strange.sent, strange.details.get("accepted")) == (True, None)
    unreadable = error_for(Reply(200, {}, b"<html>ok"), SUBMIT)
    assert (unreadable.sent, unreadable.accepted, str(unreadable.advice)) == (True, True, "search-first")
    assert "it was accepted" in str(unreadable)


@pytest.mark.parametrize(("own", "create"), [(True, True), (False, False)])
def test_a_fresh_token_for_a_create_only_if_the_service_refused_the_old_one(own: bool, create: bool) -> None:
    body = b'{"errors":[{"code":1200,"message":"no"}]}' if own else b"<html>log in</html>"
    assert refuses_token(Reply(401, {}, body), SUBMIT) is create
    assert refuses_token(Reply(401, {}, body), WAIT)
    assert not refuses_token(Reply(403, {}, body), WAIT)


def test_only_the_services_own_refusal_is_handed_back() -> None:
    question = Question("change", "DELETE", "/sessions/s1/close")
    gone = Reply(404, {}, b'{"errors":[{"code":"not_found","message":"unknown session"}]}')
    assert accepted(gone, question, accept=(404,)) is gone
    with pytest.raises(ServiceUnavailable):
        accepted(Reply(404, {}, b"default backend - 404"), question, accept=(404,))


def test_a_byte_order_mark_is_skipped() -> None:
    reply = Reply(200, {}, b'\xef\xbb\xbf{"id": "d1", "status": "Queued"}')
    assert accepted(reply, WAIT).object()["id"] == "d1"
    assert parse_error(b'\xef\xbb\xbf{"errors":[{"code":1291,"message":"m"}]}').code == 1291


def test_an_answer_that_is_no_json_says_nothing_about_the_job() -> None:
    register_secret(SECRET)
    reply = Reply(200, {}, (f'{{"access_token": "{SECRET}", ' + "x" * 5000).encode())
    for read in (reply.json, reply.object):
        with pytest.raises(ServiceUnavailable) as caught:
            read()
        assert caught.value.advice.kind == "same-request"
        assert SECRET not in str(caught.value)
        assert len(str(caught.value)) < 400
        assert caught.value.__context__ is None
    with pytest.raises(QuantumRuntimeError, match="not a JSON object"):
        Reply(200, {}, b"[1]").object()
    assert unreadable_create(reply, caught.value).advice.kind == "search-first"


@pytest.mark.parametrize(
    ("exc", "sent"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
        (httpx.PoolTimeout("busy"), False),
        (httpx.ProxyError("403 Forbidden"), False),
        (httpx.ReadTimeout(""), True),
        (httpx.WriteTimeout(""), True),
        (httpx.ReadError("reset"), True),
        (httpx.WriteError("broken pipe"), True),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), True),
        # Texts of whatever answered, which say nothing of this side.
        (httpx.RemoteProtocolError("illegal status line: bytearray(b'CERTIFICATE_VERIFY_FAILED')"), True),
        (httpx.RemoteProtocolError("illegal header line: bytearray(b'Illegal header value')"), True),
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_no_answer(exc: httpx.HTTPError, sent: bool, trusted: bool) -> None:
    for phase, lost in (("submit", "search-first"), ("open", "search-first"), ("wait", "same-request")):
        error = no_answer(exc, phase, "host:1", "d1", trusted=trusted)  # type: ignore[arg-type]
        assert str(error.advice) == (lost if sent else "same-request")
        assert (error.sent, error.job_id) == (sent, "d1")
        assert "host:1" in str(error)


def test_an_untrusted_certificate_is_not_tried_again() -> None:
    exc = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer")
    error = no_answer(exc, "token", "iam.cloud.ibm.com")
    assert str(error.advice) == "never"
    assert "ca_file" in str(error.solution)


@pytest.mark.parametrize(
    "exc", [httpx.LocalProtocolError("Illegal header value b'nightly '"), httpx.UnsupportedProtocol("no http")], ids=str
)
def test_a_request_that_cannot_be_made_was_not_sent_and_is_not_repeated(exc: httpx.HTTPError) -> None:
    for phase in ("submit", "wait"):
        error = no_answer(exc, phase, "host:1")  # type: ignore[arg-type]
        assert (str(error.advice), error.sent) == ("never", False)


@pytest.mark.parametrize("status", [200, 302, 404, 500])
@pytest.mark.parametrize(
    "question", [Question("submit", "POST", "/jobs"), Question("wait", "GET", "/jobs/d1")], ids=str
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("before", ["{blank}", "<html><title>{blank}", "<html>{blank}"])
def test_no_part_of_a_secret_is_shown_wherever_a_page_is_cut(
    before: str, encoding: str, question: Question, status: int
) -> None:
    key = "Zq7Kx-0123456789abcdefghijklmnopqrstuvwxyz-99"
    register_secret(key)
    for length in (0, 150, 480, 4_970, 9_970, 19_970, 24_070, 39_960):
        body = f"{before.format(blank=' ' * length)}{key}{' rest' * 9_000}".encode(encoding)
        shown = str(error_for(Reply(status, {}, body), question)) + repr(parse_error(body))
        assert key[:8] not in shown.replace("\\x00", "").replace("\0", ""), length


def test_of_a_large_page_only_the_beginning_is_copied() -> None:
    page = b" " * 1000 + b"x" * (16 << 20)
    tracemalloc.start()
    try:
        assert replies._beginning(page).startswith("xxx")
        assert tracemalloc.get_traced_memory()[1] < len(page) / 4
    finally:
        tracemalloc.stop()
