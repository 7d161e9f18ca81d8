"""Results: late, failed, private, kept elsewhere, and never with our token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.transport.spool import BodyStore
from prefect_qruntime.errors import (
    JobCancelled,
    JobFailed,
    JobRanTooLong,
    NotFound,
    QuantumRuntimeError,
    ResultNotReady,
    ServiceUnavailable,
)
from prefect_qruntime.models import JobRef
from prefect_qruntime.redact import redact
from tests.support.mock_client import TOKEN, sent

BASE = "https://quantum.cloud.ibm.com/api/v1"
RESULTS = f"{BASE}/jobs/d1/results"
LOOK = f"{BASE}/jobs/d1?exclude_params=true"
RESULT = {"results": [{"data": {"c": {"samples": ["0x3", "0x0"], "num_bits": 2}}, "metadata": {}}], "metadata": {}}
Connect = Callable[..., QuantumRuntimeClient]


GONE = {"errors": [{"code": 1291, "message": "Job not found"}], "trace": "t"}


def job(status: str = "Completed", **fields: Any) -> dict[str, Any]:
    return {"id": "d1", "status": status, "state": {"status": status, **fields.pop("state", {})}, **fields}


def test_a_result_is_one_request(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, json=RESULT)
    client = connect()
    assert client.run(client.result("d1")).counts() == {"11": 1, "00": 1}
    assert len(sent(iam)) == 1


def test_a_late_result_is_waited_for(iam: HTTPXMock, connect: Connect) -> None:
    for _ in range(2):
        iam.add_response(url=RESULTS, status_code=204)
    iam.add_response(url=RESULTS, json=RESULT)
    iam.add_response(url=LOOK, json=job(), is_reusable=True)
    client = connect()
    assert client.run(client.result("d1")).counts() == {"11": 1, "00": 1}


@pytest.mark.parametrize("private", [False, True])
def test_a_part_of_a_result_is_no_result_and_is_asked_for_again(
    iam: HTTPXMock, connect: Connect, private: bool
) -> None:
    iam.add_response(url=RESULTS, status_code=206, content=b'{"results": [{"da')
    iam.add_response(url=RESULTS, json=RESULT)
    iam.add_response(url=LOOK, json=job(private=private), is_optional=True)
    client = connect()
    assert client.run(client.result("d1", grace=0.0)).counts() == {"11": 1, "00": 1}


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_result_that_a_proxy_marks_as_passed_on_is_taken_the_first_time(
    iam: HTTPXMock, connect: Connect, tmp_path: Path, private: bool, in_file: bool
) -> None:
    iam.add_response(url=RESULTS, status_code=203, json=RESULT)
    iam.add_response(url=LOOK, json=job(private=private), is_optional=True)
    client, shelf = connect(), BodyStore(tmp_path, memory_limit=1) if in_file else None
    assert client.run(client.result("d1", shelf=shelf)).counts() == {"11": 1, "00": 1}
    assert len(sent(iam, "results")) == 1


@pytest.mark.parametrize("status", [204, 404])
def test_a_result_that_does_not_come(iam: HTTPXMock, connect: Connect, status: int) -> None:
    iam.add_response(url=RESULTS, status_code=status, json=GONE if status == 404 else None, is_reusable=True)
    iam.add_response(url=LOOK, json=job(), is_reusable=True)
    client = connect()
    with pytest.raises(ResultNotReady) as caught:
        client.run(client.result("d1", grace=0.3))
    assert caught.value.advice.kind == "same-request"
    assert 1 < len(sent(iam, "results")) <= 3


@pytest.mark.parametrize("status", ["Queued", "Running", "Odd"])
def test_a_job_that_is_not_over_is_not_waited_for(iam: HTTPXMock, connect: Connect, status: str) -> None:
    iam.add_response(url=RESULTS, status_code=204)
    iam.add_response(url=LOOK, json=job(status))
    client = connect()
    with pytest.raises(ResultNotReady, match=status):
        client.run(client.result("d1"))


FAILED = job("Failed", state={"reason": "it broke", "reason_code": 1006})
TOO_LONG = {**job("Cancelled", state={"reason": "Ran too long"}), "status": "Cancelled - Ran too long"}


@pytest.mark.parametrize(
    "answer", [{"status_code": 204}, {"status_code": 404, "json": GONE}, {"text": "Traceback: boom"}], ids=str
)
@pytest.mark.parametrize(
    ("body", "error"),
    [(FAILED, JobFailed), (TOO_LONG, JobRanTooLong), (job("Cancelled"), JobCancelled)],
    ids=["failed", "too long", "cancelled"],
)
def test_results_of_jobs_that_have_none(
    iam: HTTPXMock, connect: Connect, answer: dict[str, Any], body: Any, error: type[QuantumRuntimeError]
) -> None:
    iam.add_response(url=RESULTS, **answer)
    iam.add_response(url=LOOK, json=body)
    client = connect()
    with pytest.raises(error) as caught:
        client.run(client.result("d1"))
    assert type(caught.value) is error
    assert caught.value.job_id == "d1"
    if "text" in answer and isinstance(caught.value, JobFailed):
        assert caught.value.results_text == "Traceback: boom"
    if error is JobFailed:
        assert caught.value.retryable
        assert "it broke" in str(caught.value)


def test_the_text_of_a_failed_job_is_its_reason_where_there_is_none(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, text=f"Traceback\nsaid {TOKEN}\n" + "x" * 20_000 + "\nRuntimeError: boom")
    iam.add_response(url=LOOK, json=job("Failed"))
    client = connect()
    with pytest.raises(JobFailed, match="RuntimeError: boom") as caught:
        client.run(client.result("d1"))
    assert len(caught.value.results_text) == 10_000
    assert len(str(caught.value)) < 3000


WHOLE = b'{"results":[{"data":{"c":{"samples":["0x3","0x0"],"num_bits":2}},"metadata":{}}],"metadata":{}}'
ODD = {
    "page": b"<!DOCTYPE html><html><title>Just a moment...</title></html>",
    "text": b"oops",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "errors": b'{"errors": []}',
    **{f"cut at {n}": WHOLE[: n + 1] for n, byte in enumerate(WHOLE[:-1]) if byte in b"{}[]"},
}


def shelf_of(folder: Path, in_file: bool) -> BodyStore | None:
    """A store that keeps every body in a file, or none."""
    return BodyStore(directory=folder, memory_limit=0) if in_file else None


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_what_is_not_the_whole_result_is_fetched_again(
    iam: HTTPXMock, connect: Connect, body: bytes, in_file: bool, tmp_path: Path
) -> None:
    iam.add_response(url=RESULTS, content=body)
    iam.add_response(url=RESULTS, content=b"\xef\xbb\xbf" + WHOLE)
    iam.add_response(url=LOOK, json=job(), is_optional=True)
    client = connect(patience=RetryDeadlines())
    assert client.run(client.result("d1", shelf=shelf_of(tmp_path, in_file))).counts() == {"11": 1, "00": 1}
    assert len(sent(iam, "results")) == 2


NO_RESULT: dict[str, Any] = {
    "a gateway's": {"message": "Forbidden", "requestid": "1"},
    "an error": {"error": {"code": 403, "message": "denied"}},
    "an error's text": {"error": "Unauthorized"},
    "the job": job(),
    "a list": [1, 2],
    "results without any": {"results": None},
}


@pytest.mark.parametrize(("program", "in_file"), [("sampler", True), ("estimator", False), ("executor", False)])
@pytest.mark.parametrize("body", NO_RESULT.values(), ids=NO_RESULT.keys())
def test_json_in_no_form_of_a_result_is_fetched_again(
    iam: HTTPXMock, connect: Connect, body: Any, program: str, in_file: bool, tmp_path: Path
) -> None:
    iam.add_response(url=RESULTS, json=body)
    iam.add_response(url=RESULTS, json=RESULT)
    iam.add_response(url=LOOK, json=job(program={"id": program}))
    client = connect(patience=RetryDeadlines())
    assert client.run(client.result("d1", shelf=shelf_of(tmp_path, in_file))).counts() == {"11": 1, "00": 1}


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("body", NO_RESULT.values(), ids=NO_RESULT.keys())
def test_other_programs_may_return_any_json(
    iam: HTTPXMock, connect: Connect, body: Any, in_file: bool, tmp_path: Path
) -> None:
    iam.add_response(url=RESULTS, json=body)
    iam.add_response(url=LOOK, json=job(program={"id": "noise-learner"}))
    client = connect()
    assert client.run(client.result("d1", shelf=shelf_of(tmp_path, in_file))).raw == body


@pytest.mark.parametrize("body", NO_RESULT.values(), ids=NO_RESULT.keys())
@pytest.mark.parametrize(
    ("end", "error"), [(FAILED, JobFailed), (TOO_LONG, JobRanTooLong), (job("Cancelled"), JobCancelled)]
)
def test_json_of_a_job_that_did_not_complete_is_no_result(
    iam: HTTPXMock, connect: Connect, body: Any, end: Any, error: type[QuantumRuntimeError]
) -> None:
    iam.add_response(url=RESULTS, json=body)
    iam.add_response(url=LOOK, json={**end, "program": {"id": "noise-learner"}})
    client = connect()
    with pytest.raises(error) as caught:
        client.run(client.result("d1"))
    assert type(caught.value) is error


@pytest.mark.parametrize("program", ["sampler", "executor"])
@pytest.mark.parametrize("body", [{"schema_version": "v9.0", "items": [1]}, {"__type__": "NewResult", "__value__": {}}])
def test_a_form_of_a_later_version_is_a_result(iam: HTTPXMock, connect: Connect, body: Any, program: str) -> None:
    iam.add_response(url=RESULTS, json=body)
    client = connect()
    assert client.run(client.result(JobRef(id="d1", program_id=program))).raw == body


@pytest.mark.parametrize("body", [{"noise": [1]}, [1, 2]])
def test_an_only_copy_that_arrives_before_the_job_is_shown_as_over_is_not_lost(
    iam: HTTPXMock, connect: Connect, body: Any, tmp_path: Path
) -> None:
    iam.add_response(url=RESULTS, json=body)
    for state in ("Running", "Completed"):
        iam.add_response(url=LOOK, json=job(state, program={"id": "noise-learner"}, private=True))
    client, shelf = connect(), BodyStore(directory=tmp_path).for_only_copy()
    assert client.run(client.result(JobRef(id="d1", private=True), shelf=shelf)).raw == body


def test_an_only_copy_in_no_form_of_a_result_is_kept_and_named(
    iam: HTTPXMock, connect: Connect, tmp_path: Path
) -> None:
    iam.add_response(url=RESULTS, json=NO_RESULT["a gateway's"])
    iam.add_response(url=LOOK, json=job(program={"id": "sampler"}, private=True), is_reusable=True)
    client, ref = connect(), JobRef(id="d1", private=True)
    shelf = BodyStore(directory=tmp_path).for_only_copy()
    for _ in range(2):  # it is neither returned nor asked for again
        with pytest.raises(ServiceUnavailable, match=str(tmp_path)) as caught:
            client.run(client.result(ref, shelf=shelf))
        assert caught.value.advice.kind == "never"
    (kept,) = tmp_path.iterdir()
    assert b"Forbidden" in kept.read_bytes()
    kept.unlink()
    iam.add_response(url=RESULTS, json=RESULT)
    assert client.run(client.result(ref, shelf=shelf)).counts() == {"11": 1, "00": 1}


@pytest.mark.parametrize("left", [ODD[name] for name in ("page", "null", "list", "object", "errors")])
def test_what_a_dead_process_left_is_judged_as_any_answer(
    iam: HTTPXMock, connect: Connect, left: bytes, tmp_path: Path
) -> None:
    client, shelf = connect(), BodyStore(directory=tmp_path).for_only_copy()
    iam.add_response(url=RESULTS, json=RESULT, is_reusable=True)
    ref = JobRef(id="d1", private=True)
    client.run(client.result(ref, shelf=shelf))
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(left)
    assert client.run(client.result(ref, shelf=shelf)).counts() == {"11": 1, "00": 1}


def test_brackets_in_a_text_do_not_make_a_result_incomplete(iam: HTTPXMock, connect: Connect, tmp_path: Path) -> None:
    body = WHOLE[:-3] + b'{"note":"[{[","bad":NaN}}'
    iam.add_response(url=RESULTS, content=body)
    client = connect()
    result = client.run(client.result("d1", shelf=BodyStore(directory=tmp_path, memory_limit=0)))
    assert result.raw["metadata"]["note"] == "[{["


def test_an_answer_that_never_is_the_result_is_an_outage(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, text="<html>gateway</html>", is_reusable=True)
    client = connect()
    with pytest.raises(ServiceUnavailable, match="something in between") as caught:
        client.run(client.result("d1"))
    assert caught.value.is_outage


def test_a_page_is_not_the_reason_of_a_failed_job(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, text="<html>gateway</html>")
    iam.add_response(url=RESULTS, text="Traceback: boom")
    iam.add_response(url=LOOK, json=job("Failed"))
    client = connect()
    with pytest.raises(JobFailed, match="boom"):
        client.run(client.result("d1"))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_about_a_known_job_is_not_believed_at_once(iam: HTTPXMock, connect: Connect, status: int) -> None:
    refusal = {"errors": [{"code": "odd", "message": "not for you"}]}
    for _ in range(4 if status == 401 else 2):
        iam.add_response(url=RESULTS, status_code=status, json=refusal)
    iam.add_response(url=RESULTS, content=WHOLE)
    iam.add_response(url=LOOK, json=job(), is_reusable=True)
    client = connect()
    client.run(client.wait("d1"))
    assert client.run(client.result("d1")).counts() == {"11": 1, "00": 1}


@pytest.mark.parametrize("answer", [{"status_code": 404, "json": GONE}, {"status_code": 200}, {"status_code": 204}])
def test_a_private_result_that_was_read_before(iam: HTTPXMock, connect: Connect, answer: dict[str, Any]) -> None:
    iam.add_response(url=RESULTS, **answer)  # once: it is not asked for again
    iam.add_response(url=LOOK, json=job(private=True))
    client = connect()
    with pytest.raises(NotFound, match="read before") as caught:
        client.run(client.result(JobRef(id="d1", private=True), grace=0))
    assert caught.value.advice.kind == "never"


def test_an_unknown_job(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, status_code=404, json=GONE)
    iam.add_response(url=LOOK, status_code=404, json={"errors": [{"code": 1291, "message": "Job not found"}]})
    client = connect()
    with pytest.raises(NotFound) as caught:
        client.run(client.result("d1"))
    assert caught.value.code == 1291


STORED = "https://store.example/bucket/r.json?X-Amz-Signature=0123456789abcdef&X-Amz-Expires=60"


@pytest.mark.parametrize("status", [200, 203])
def test_a_result_kept_elsewhere_is_fetched_without_our_token(iam: HTTPXMock, connect: Connect, status: int) -> None:
    iam.add_response(url=RESULTS, json={"url": STORED})
    iam.add_response(url=STORED, status_code=status, json=RESULT)
    client = connect()
    assert client.run(client.result("d1")).counts() == {"11": 1, "00": 1}
    request = next(r for r in iam.get_requests() if r.url.host == "store.example")
    assert "authorization" not in request.headers
    assert "service-crn" not in request.headers
    assert TOKEN not in str(request.headers)
    assert "0123456789abcdef" not in redact(STORED)


@pytest.mark.parametrize(
    "url",
    [
        "http://store.example/r.json?sig=0123456789",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://bad\x00/x?sig=012345",
        "",
        "/relative",
        "https://a:99999999/x",
        "http://127.0.0.1.evil.example/",
    ],
)
def test_addresses_nobody_should_fetch(iam: HTTPXMock, connect: Connect, url: str) -> None:
    iam.add_response(url=RESULTS, json={"url": url})
    client = connect()
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.result("d1"))
    assert "sig" not in str(caught.value)
    assert len(iam.get_requests()) == 2


@pytest.mark.parametrize("trouble", [302, 403, httpx.ConnectError("to https://store.example/?X-Amz-Signature=0123")])
def test_trouble_at_the_store_shows_no_signature(iam: HTTPXMock, connect: Connect, trouble: Any) -> None:
    iam.add_response(url=RESULTS, json={"url": STORED})
    if isinstance(trouble, int):
        iam.add_response(
            url=STORED, status_code=trouble, headers={"Location": "https://evil.example/"}, is_reusable=True
        )
    else:
        iam.add_exception(trouble, url=STORED, is_reusable=True)  # repeated, as nothing can be lost by it
    client = connect()
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.result("d1"))
    assert isinstance(caught.value, ServiceUnavailable)
    assert "Amz" not in f"{caught.value} {caught.value.fields}"
    assert caught.value.__context__ is None


def test_a_small_result_with_the_word_url_is_a_result(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(url=RESULTS, json={**RESULT, "url": "https://x.example"})
    client = connect()
    assert client.run(client.result("d1")).counts() == {"11": 1, "00": 1}
