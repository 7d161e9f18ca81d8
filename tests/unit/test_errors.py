"""Errors are data: they pickle whole, say what to do, and hold nothing of a library."""

from __future__ import annotations

import copy
import pickle
import re
import traceback
from typing import Any

import pytest
from hypothesis import given, strategies as st

import prefect_qruntime.client.connection  # noqa: F401 - what holds keys sets how texts are cleaned
from prefect_qruntime import errors
from prefect_qruntime.errors import (
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    JobTimeout,
    QuantumRuntimeError,
    RetryAdvice,
    ServiceUnavailable,
    SubmissionUncertain,
    after,
)
from prefect_qruntime.redact import register_secret

CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "RetryAdvice"]
FIELDS: dict[str, Any] = {
    "code": 1291,
    "reason": "because",
    "solution": "do this",
    "trace_id": "t-1",
    "job_id": "d1",
    "session_id": "s1",
    "job_url": "https://host/d1",
    "status": 404,
    "advice": after(2.5),
}


def test_the_tree() -> None:
    assert all(issubclass(cls, QuantumRuntimeError) for cls in CLASSES)
    assert not any(issubclass(cls, TimeoutError | OSError) for cls in CLASSES)
    assert issubclass(JobRanTooLong, JobFailed)
    assert not issubclass(JobCancelled, JobFailed)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_every_error_survives_copying_whole(cls: type[QuantumRuntimeError], copied: Any) -> None:
    error = cls("what happened", **FIELDS, candidates=["a", "b"])
    again = copied(error)
    assert type(again) is cls
    assert again.fields == error.fields
    assert (str(again), again.args, again.advice) == (str(error), error.args, error.advice)
    assert again.candidates == ["a", "b"]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("field", ["message", "code", "reason", "solution", "trace_id", "results_text"])
def test_no_text_of_an_error_holds_a_secret_or_a_terminal_sequence(cls: type[QuantumRuntimeError], field: str) -> None:
    register_secret("a-token-of-ours")
    words = {"message": "it broke", field: "line 1\n\x1b[31m\x1b]0;t\x07\u202e\0a-token\x1b[0m-of-ours"}
    error = cls(**words)  # type: ignore[arg-type]
    for shown in (error, pickle.loads(pickle.dumps(error))):
        for text in (str(shown), repr(shown), *shown.args, *traceback.format_exception(shown), *shown.fields.values()):
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]|a-token", str(text))
        assert "line 1\n" in (shown.message if field == "message" else getattr(shown, field))


def test_words_of_our_own_are_not_taken_for_a_key() -> None:
    assert str(InvalidInput("Field required.", field="api_key")) == "api_key: Field required."


@given(
    message=st.text(max_size=30),
    code=st.none() | st.integers() | st.text(max_size=8),
    reason=st.none() | st.text(max_size=20),
    details=st.dictionaries(st.sampled_from(["limit", "field_x", "candidates"]), st.none() | st.integers()),
)
def test_any_fields_survive_pickling(message: str, code: Any, reason: Any, details: Any) -> None:
    error = SubmissionUncertain(message, code=code, reason=reason, **details)
    again = pickle.loads(pickle.dumps(error))
    assert (again.fields, str(again)) == (error.fields, str(error))


def test_the_text_says_what_why_what_to_do_and_where() -> None:
    text = str(QuantumRuntimeError("it broke", **FIELDS))
    for part in ("it broke", "because", "do this", "HTTP 404", "code 1291", "trace t-1", "https://host/d1"):
        assert text.count(part) == 1
    assert str(QuantumRuntimeError("it broke because of x", reason="because of x")) == "it broke because of x."


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("it broke", "it broke."),
        ("it broke.", "it broke."),
        ("why?", "why?"),
        ("see https://host/errors#1", "see https://host/errors#1"),
        ("", ""),
    ],
)
def test_each_part_of_the_text_is_a_sentence_and_no_address_grows_a_stop(said: str, shown: str) -> None:
    assert str(QuantumRuntimeError(said)) == shown
    assert str(QuantumRuntimeError("x", solution=said)) == (f"x. {shown}" if shown else "x.")


def test_the_field_of_invalid_input_is_named_once() -> None:
    error = InvalidInput("is empty", field="tags[0]")
    assert (str(error), error.field) == ("tags[0]: is empty.", "tags[0]")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == ("tags[0]: is empty.", "tags[0]")
    assert InvalidInput("is empty").field is None


def test_unknown_attributes_are_refused() -> None:
    with pytest.raises(AttributeError, match="candidates"):
        _ = QuantumRuntimeError("x").candidates
    # What copy and pickle do before __init__ has run must not recurse.
    with pytest.raises(AttributeError):
        _ = QuantumRuntimeError.__new__(QuantumRuntimeError).anything


@pytest.mark.parametrize(
    ("cls", "advice"),
    [(ServiceUnavailable, "same-request"), (SubmissionUncertain, "search-first"), (JobTimeout, "never")],
)
def test_advice_by_default(cls: type[QuantumRuntimeError], advice: str) -> None:
    assert str(cls("x").advice) == advice


def test_advice_reads_as_in_the_published_table() -> None:
    assert [str(a) for a in (RetryAdvice("never"), after(12), after(0.5))] == ["never", "after 12 s", "after 0.5 s"]
    assert [a.may_repeat for a in (RetryAdvice("search-first"), after(1), RetryAdvice("same-request"))] == [
        False,
        True,
        True,
    ]


def test_retryable() -> None:
    assert JobFailed("x", retryable=True).retryable is True
    assert pickle.loads(pickle.dumps(JobFailed("x", retryable=True))).retryable is True
    assert JobFailed("x").retryable is None


def through_json(error: QuantumRuntimeError) -> QuantumRuntimeError:
    """What a JSON result serializer keeps of an exception: its class and its text."""
    return type(error)(str(error))


@given(
    cls=st.sampled_from(CLASSES),
    code=st.none() | st.integers(1000, 9999) | st.sampled_from(["not_found", "BXNIM0415E"]),
    status=st.none() | st.integers(100, 599),
    trace=st.none() | st.just("a1b2-c3d4"),
    url=st.none() | st.just("https://host/workloads/d1"),
    retryable=st.none() | st.booleans(),
)
def test_what_json_keeps_of_an_error_is_true(
    cls: type[QuantumRuntimeError], code: Any, status: int | None, trace: Any, url: Any, retryable: bool | None
) -> None:
    details = {"retryable": retryable} if issubclass(cls, JobFailed) else {}
    error = cls("It broke.", reason="Because.", code=code, status=status, trace_id=trace, job_url=url, **details)
    again = through_json(error)
    assert str(again) == str(error)
    marked = any(value is not None for value in (code, status, trace, details.get("retryable")))
    assert (again.code, again.status, again.trace_id) == (code, status, trace)
    assert again.job_url == (url if marked else None)
    if isinstance(again, JobFailed) and isinstance(error, JobFailed):
        assert again.retryable is error.retryable


def test_prefects_json_serializer_keeps_the_facts_of_a_failed_job() -> None:
    from prefect.serializers import JSONSerializer

    serializer = JSONSerializer()
    error = JobFailed("job d1 failed", code=1006, reason="Internal error", retryable=True, job_id="d1")
    again = serializer.loads(serializer.dumps(error))
    assert (type(again), again.retryable, again.code) == (JobFailed, True, 1006)
    assert "Internal error" in str(again)


def test_a_loss_is_not_stated_as_a_fact() -> None:
    assert through_json(JobFailed("job d1 failed")).retryable is None
    assert JobRanTooLong("x").retryable is False


def test_outages_are_told_from_facts() -> None:
    outages = {cls.__name__ for cls in CLASSES if cls("x").is_outage}
    assert outages == {"ServiceUnavailable", "RateLimited", "SubmissionUncertain"}
    assert JobTimeout("x", limit="outage").is_outage
    assert not JobTimeout("x", limit="timeout").is_outage
