"""Whose answer is this? Every form of the service's own answers, and what stands in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.client.failures import CREATES, MOST_LEVELS, Question, is_page, read_json, read_text, whose
from prefect_qruntime.client.transport.replies import Reply, error_for
from prefect_qruntime.errors import SEARCH_FIRST, ServiceUnavailable

PAGE = b"<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>"
TOKEN = Question("token", "POST", "/identity/token")
SUBMIT = Question("submit", "POST", "/jobs")
OPEN = Question("open", "POST", "/sessions")
JOB = Question("wait", "GET", "/jobs/d1")
LIST = Question("wait", "GET", "/jobs")
RESULT = Question("fetch", "GET", "/jobs/d1/results")
LOGS = Question("read", "GET", "/jobs/d1/logs")
CLOSE = Question("change", "DELETE", "/sessions/s1/close")
QUESTIONS = [
    TOKEN,
    SUBMIT,
    OPEN,
    JOB,
    LIST,
    RESULT,
    LOGS,
    CLOSE,
    *(
        Question("read", "GET", path)
        for path in (
            "/jobs/d1/metrics",
            "/sessions/s1",
            "/workloads",
            "/backends",
            "/backends/b/status",
            "/versions",
            "/instances/usage",
            "/instance",
        )
    ),
]

OWN: list[tuple[Question, int, Any]] = [
    (TOKEN, 200, {"access_token": "abc", "expires_in": 3600}),
    (TOKEN, 200, {"access_token": "abc"}),
    (TOKEN, 400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}),
    (TOKEN, 503, {"errorCode": "bxnim0101e"}),
    (SUBMIT, 200, {"id": "d1"}),
    (OPEN, 201, {"id": "0aa-11_b", "mode": "batch"}),
    (SUBMIT, 400, {"errors": [{"code": 1208, "message": "bad"}], "trace": "t"}),
    (SUBMIT, 400, {"error": {"code": 1208, "message": "bad"}}),
    (JOB, 200, {"id": "d1", "state": {"status": "Queued"}}),
    (JOB, 200, {"id": "d1", "status": "Paused-By-Magic", "state": {}}),
    (JOB, 200, {"status": "Queued"}),
    (JOB, 404, {"errors": [{"code": "not_found", "message": "no"}]}),
    (JOB, 404, {"errors": [{"code": "1291", "message": None}]}),
    (JOB, 500, {"errors": [{"code": 1000, "message": "no"}]}),
    (LIST, 200, {"jobs": []}),
    (RESULT, 200, {"results": []}),
    (RESULT, 200, [1]),
    (RESULT, 200, {"results": [{"data": "x" * 5000}], "errors": []}),
    (RESULT, 200, b"Traceback (most recent call last): <html>"),
    (RESULT, 200, b""),
    (RESULT, 204, b""),
    (LOGS, 200, b"plain text"),
    (LOGS, 204, b""),
    (CLOSE, 204, b""),
    (CLOSE, 200, {}),
    (Question("read", "GET", "/sessions/s1"), 200, {"id": "s1"}),
    (Question("read", "GET", "/workloads"), 200, {"workloads": []}),
    (Question("read", "GET", "/backends"), 200, {"devices": ["a"]}),
    (Question("read", "GET", "/backends"), 200, {"backends": []}),
    (Question("read", "GET", "/versions"), 200, {"versions": []}),
    (Question("read", "GET", "/instances/usage"), 200, {"usage_consumed_seconds": 0}),
    (Question("read", "GET", "/instance"), 200, {"plan_id": "p"}),
    (Question("read", "GET", "/jobs/d1/metrics"), 200, {}),
    (Question("read", "GET", "/instances/configuration"), 200, {}),
]
OTHER: list[tuple[Question, int, Any]] = [
    (TOKEN, 201, {"access_token": "abc"}),
    (TOKEN, 200, {"access_token": "a b"}),
    (TOKEN, 200, {"access_token": 5}),
    (TOKEN, 200, {"access_token": "abc", "expires_in": True}),
    (TOKEN, 200, {"access_token": "abc", "expires_in": 0}),
    (TOKEN, 200, []),
    (TOKEN, 400, {"errorCode": 5}),
    (TOKEN, 400, {"errorCode": "GW-17"}),
    (TOKEN, 401, {"errors": [{"code": 1200, "message": "no"}]}),
    (SUBMIT, 200, {"id": 5}),
    (SUBMIT, 200, {"id": "../../etc"}),
    (SUBMIT, 200, {"id": ""}),
    (SUBMIT, 204, b""),
    (JOB, 200, {"id": "d2", "state": {"status": "Failed"}}),
    (JOB, 200, {"id": "d1"}),
    (JOB, 200, {"id": "d1", "state": {"status": 5}}),
    (JOB, 204, b""),
    (JOB, 200, b"null"),
    (JOB, 404, {"errors": []}),
    (JOB, 404, {"errors": ["no"]}),
    (JOB, 404, {"errors": [{"message": "no"}]}),
    (JOB, 404, {"errors": [{"code": "", "message": "no"}]}),
    (JOB, 404, {"errors": [{"code": True, "message": "no"}]}),
    (JOB, 404, {"errors": [{"code": 1291, "message": 5}]}),
    (JOB, 403, {"errors": [{"code": 403, "message": "Forbidden"}]}),
    (JOB, 403, {"error": {"code": 403, "message": "The caller does not have permission"}}),
    (JOB, 404, {"error": "Not Found", "status": 404}),
    (JOB, 404, {"message": "no Route matched with those values"}),
    (LIST, 200, {"jobs": {}}),
    (RESULT, 200, {"errors": []}),
    (RESULT, 200, b" null\n"),
    (RESULT, 200, []),
    (RESULT, 200, {}),
    (RESULT, 200, PAGE),
    (RESULT, 206, {"results": []}),
    (RESULT, 202, {"message": "later"}),
    (LOGS, 200, PAGE),
    (CLOSE, 200, PAGE),
    (CLOSE, 200, []),
    (Question("read", "GET", "/sessions/s1"), 200, {"id": "s2"}),
    (Question("read", "GET", "/instances/usage"), 200, {"errors": []}),
    (Question("read", "GET", "/instance"), 200, {}),
    (Question("read", "GET", "/jobs/d1/metrics"), 200, {"errors": []}),
    (Question("read", "GET", "/instance"), 200, {"errors": [], "trace": "t"}),
]


def raw(body: Any) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)


@pytest.mark.parametrize(("question", "status", "body"), OWN, ids=str)
def test_the_services_own(question: Question, status: int, body: Any) -> None:
    assert whose(question, status, raw(body)) == "service"
    assert whose(question, status, b"\xef\xbb\xbf" + raw(body)) == "service"


@pytest.mark.parametrize(("question", "status", "body"), OTHER, ids=str)
def test_anything_else(question: Question, status: int, body: Any) -> None:
    assert whose(question, status, raw(body)) == "other"


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@pytest.mark.parametrize("body", [PAGE, b"oops", b"null", b"true", b"5", b'"x"', b"[]", b"{}", b'{"ok": true}'])
def test_no_refusal_is_read_into_a_foreign_body(question: Question, body: bytes) -> None:
    for status in (*range(100, 200), *range(300, 600)):
        assert whose(question, status, body) == "other"


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@pytest.mark.parametrize("status", [*range(300, 309), 407, 408, 425, 499])
def test_some_statuses_are_never_the_services(question: Question, status: int) -> None:
    container = {"errors": [{"code": 1291, "message": "x"}], "errorCode": "BXNIM0415E"}
    assert whose(question, status, orjson.dumps(container)) == "other"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["errors", "error", "code", "message", "errorCode", "id", "state", "status", "jobs", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    question=st.sampled_from(QUESTIONS),
    status=st.integers(100, 999),
    content=JSON.map(orjson.dumps) | st.binary(max_size=60),
)
def test_no_answer_breaks_the_judge(question: Question, status: int, content: bytes) -> None:
    assert whose(question, status, content) in ("service", "other")


NESTS = {
    "lists": (b"[", b"]"),
    "objects": (b'{"a":', b"}"),
    "both": (b'[0,{"b":[],"a":', b"}]"),
}
# Up to 1,024 levels orjson reads; `str` and `pickle` end before, at a depth that the caller's own stack decides.
LEVELS = [MOST_LEVELS + 1, 950, 1010, 1024, 1025, 100_000]


def nest(kind: str, levels: int) -> bytes:
    opening, closing = NESTS[kind]
    count = -(-levels // (opening.count(b"[0") + opening.count(b"{") or 1))
    return opening * count + (b"1" if b":" in opening else b"") + closing * count


def nested_answers(body: Any, inner: bytes) -> Iterator[bytes]:
    """The nest alone, beside the fields of an answer, and in place of each value in it."""
    yield inner
    if not isinstance(body, dict):
        return
    yield orjson.dumps({**body, "other": "HERE"}).replace(b'"HERE"', inner)
    for name, value in body.items():
        yield orjson.dumps({**body, name: "HERE"}).replace(b'"HERE"', inner)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for field in (*value[0], "solution", "more_info"):
                yield orjson.dumps({**body, name: [{**value[0], field: "HERE"}]}).replace(b'"HERE"', inner)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("kind", NESTS)
def test_an_answer_that_is_nested_deeply_is_none(kind: str, levels: int) -> None:
    """On every kind of request: a typed error of bearable length, and neither a crash nor a RecursionError."""
    inner = nest(kind, levels)
    for question, status, body in OWN:
        for content in nested_answers(body, inner):
            reply = Reply(status, {}, content)
            # May be anything, and is read as JSON later, if at all.
            text = (question == RESULT and status == 200) or (question == LOGS and status < 300)
            assert whose(question, status, content) == ("service" if text else "other")
            with pytest.raises(ServiceUnavailable) as unread:
                reply.json()
            error = unread.value if text else error_for(reply, question)
            assert len(str(error)) < 2_000
            assert error.advice.kind != "never"
            if question.phase in CREATES and status < 300:
                assert error.advice == SEARCH_FIRST


@pytest.mark.parametrize("kind", NESTS)
def test_what_is_nested_as_far_as_allowed_is_read_and_shown(kind: str) -> None:
    inner = nest(kind, MOST_LEVELS - 10)
    for question, status, body in OWN:
        if isinstance(body, dict):
            content = orjson.dumps({**body, "other": "HERE"}).replace(b'"HERE"', inner)
            assert whose(question, status, content) == "service"
            assert str(read_json(content)["other"])


@pytest.mark.parametrize(
    ("content", "page"),
    [
        (PAGE, True),
        (b"\xef\xbb\xbf \n<HTML>", True),
        (b"<!-- edge --><html>", True),
        (b"<!-- a --> <!-- b -->\n<!-- c --><title>", True),
        (b"<!-- a --> <!-- b -->" * 90 + b"<div>", False),
        (b'<?xml version="1.0"?><Error/>', True),
        (b"<lambda> failed", False),
        (b"Traceback: <html>", False),
        (b"{}", False),
    ],
)
def test_pages(content: bytes, page: bool) -> None:
    assert is_page(content) is page


def test_a_byte_order_mark() -> None:
    assert read_text(b"\xef\xbb\xbfx") == read_text(b"x") == b"x"
    assert read_json(b"\xef\xbb\xbf[1]") == [1]


CODES = [
    "--5",
    "-5",
    "-5000",
    "²",
    "٣",
    "0x1f",
    "5 ",
    "0404",
    "404",
    "9999",
    "1" * 40,
    "0" * 40,
    "",
    "x-1",
    "nan",
    "1e3",
]


@pytest.mark.parametrize("code", [*CODES, 0, -1, 404, 1000, 2**63, 1.5, True, None, [1], {"a": 1}])
def test_an_error_is_judged_whatever_its_code(code: object) -> None:
    own = {1000, 2**63, "9999", "x-1", "--5", "²", "٣", "0x1f", "5 ", "1" * 40, "nan", "1e3"}
    for body in ({"error": {"code": code, "message": "m"}}, {"errors": [{"code": code, "message": "m"}]}):
        found = whose(Question("wait", "GET", "/jobs/d1"), 502, orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS))
        expected = isinstance(code, int | str) and not isinstance(code, bool) and code in own
        assert found == ("service" if expected else "other")


@pytest.mark.parametrize(
    ("reason", "read"),
    [
        (rb'"cut \ud83d"', "cut ?"),
        (rb'"\udc80 cut"', "? cut"),
        (b'"cut x\xc3"', "cut x\ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'"a\nb"', "a\nb"),
        (rb'"\\ud800"', "\\ud800"),
        (b"NaN", None),
        (b"-Infinity", None),
        (b"1e999", None),
    ],
)
def test_one_odd_text_or_number_leaves_the_rest_of_an_answer_readable(reason: bytes, read: str | None) -> None:
    body = b'{"id": "d1", "status": "Failed", "reason": ' + reason + rb', "backend": "x\u00e9"}'
    assert read_json(body) == {"id": "d1", "status": "Failed", "reason": read, "backend": "x\u00e9"}
    assert whose(Question("wait", "GET", "/jobs/d1"), 200, body) == "service"


DEEP = b'{"a": NaN, "b": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize("body", [b'{"a": NaN', b'{"a": 1,}', b"NaN", DEEP], ids=["cut", "comma", "bare", "deep"])
def test_what_is_cut_or_no_json_stays_unreadable(body: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        read_json(body)
