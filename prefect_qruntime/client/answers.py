"""Distinguish the service's own answers from those of proxies and other intermediaries.

Proxies, gateways, load balancers and login pages answer in the service's place, with any status and any body. Such an
answer says nothing about a job, a session or a key. An answer is the service's own only if its status is one that the
service itself gives, and its body has the service's form:

- a success: the model that belongs to the request (a job with the id that was asked for, a list of jobs, ...);
- a refusal: the error container `{"errors": [{"code": ..., "message": ...}], "trace": ...}` of both dialects, or the
  single `{"error": {"code": ..., "message": ...}}` of the oldest legacy hosts;
- from IAM: a usable token, or `{"errorCode": "BXNIM...", "errorMessage": ...}`.

Pure: no clock and no network. `failures` decides what an answer means once its owner is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from prefect_qruntime.client.failures import CREATES, Owner, Phase

__all__ = ["Question", "is_page", "read_json", "read_text", "whose"]

_BOM = b"\xef\xbb\xbf"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype|html|head|body|\?xml|title)\b", re.IGNORECASE | re.DOTALL)
_PAGE_HEAD = 4096
# Statuses of intermediaries: the service documents none of them, and what it means by a 5xx is an outage as well.
_IN_BETWEEN = frozenset({407, 408, 425, 499})


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked.

    Attributes:
        phase: What the request is for.
        method: HTTP method.
        path: Below the base URL, without the query.
    """

    phase: Phase
    method: str = "GET"
    path: str = ""


def read_text(content: bytes) -> bytes:
    """The body without a byte order mark in front."""
    return content[3:] if content[:3] == _BOM else content


def read_json(content: bytes) -> Any:
    """The body as JSON, with or without a byte order mark.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
    """
    return orjson.loads(read_text(content))


def is_page(content: bytes) -> bool:
    """Whether a body is an HTML or XML page: neither a model, nor the text of a failed job."""
    return _PAGE.match(read_text(content[:_PAGE_HEAD])) is not None


def whose(question: Question, status: int, content: bytes) -> Owner:
    """Decide whether the service (or IAM, for a token) gave this answer itself.

    Args:
        question: What was asked.
        status: HTTP status.
        content: The body.

    Returns:
        `service` for an answer of its own, else `other`.

    Example:
        ```python
        from prefect_qruntime.client.answers import Question, whose

        question = Question("wait", "GET", "/jobs/d1")
        assert whose(question, 200, b'{"id": "d1", "state": {"status": "Queued"}}') == "service"
        assert whose(question, 404, b"default backend - 404") == "other"
        ```
    """
    if 200 <= status < 300:
        fits = _fits_model(question, status, content)
    elif 400 <= status < 600 and status not in _IN_BETWEEN:
        fits = _fits_error(question, content)
    else:
        fits = False
    return "service" if fits else "other"


# ---- refusals ------------------------------------------------------------------------------------


def _fits_error(question: Question, content: bytes) -> bool:
    body = _object(content)
    if body is None:
        return False
    if question.phase == "token":
        code = body.get("errorCode")
        return isinstance(code, str) and code.upper().startswith("BXNIM")
    errors = body.get("errors")
    if isinstance(errors, list):
        return bool(errors) and isinstance(errors[0], dict) and _is_error(errors[0])
    single = body.get("error")
    return isinstance(single, dict) and _is_error(single)


def _is_error(item: dict[str, Any]) -> bool:
    # A number below 1000 is an HTTP status, by which gateways name their own errors; the service's codes are
    # numbers of four digits, or words.
    code, message = item.get("code"), item.get("message")
    if isinstance(code, bool) or not isinstance(code, int | str) or not isinstance(message, str | None):
        return False
    text = str(code)
    return text != "" and not (text.lstrip("-").isdigit() and int(text[:20]) < 1000)


# ---- successes -----------------------------------------------------------------------------------


def _fits_model(question: Question, status: int, content: bytes) -> bool:
    body = read_text(content).strip()
    if question.phase in CREATES:
        return _created(_object(body))
    if question.phase == "token":
        return status == 200 and _token(_object(body))
    if question.phase == "change":
        return not body or _object(body) is not None
    if question.path.endswith("/logs"):
        return not is_page(body)
    if question.phase == "fetch":
        return _result(status, body)
    found = _object(body)
    if found is None:
        return False
    for pattern, fits in _MODELS:
        match = pattern.fullmatch(question.path)
        if match is not None:
            return fits(found, match)
    return bool(found) and "errors" not in found


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        body = read_json(content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _created(body: dict[str, Any] | None) -> bool:
    value = None if body is None else body.get("id")
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _token(body: dict[str, Any] | None) -> bool:
    if body is None:
        return False
    value, life = body.get("access_token"), body.get("expires_in", 3600)
    usable = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and value != ""
    return usable and isinstance(life, int | float) and not isinstance(life, bool) and life > 0


def _result(status: int, body: bytes) -> bool:
    # Only the beginning of a result is examined: it may be large, and that of a failed job is plain text.
    if status != 200 or not body:
        return True
    if is_page(body) or body in (b"null", b"[]", b"{}"):
        return False
    # An error container or another model, small as they are, is no result.
    found = _object(body) if len(body) < _PAGE_HEAD else None
    return found is None or "errors" not in found


def _is_job(body: dict[str, Any], match: re.Match[str]) -> bool:
    state = body.get("state")
    said = (state.get("status") if isinstance(state, dict) else None) or body.get("status")
    return isinstance(said, str) and said != "" and body.get("id") in (match["id"], None, "")


def _is_session(body: dict[str, Any], match: re.Match[str]) -> bool:
    return body.get("id") == match["id"]


def _has_list(*names: str) -> Callable[[Mapping[str, Any], re.Match[str]], bool]:
    return lambda body, match: any(isinstance(body.get(name), list) for name in names)


def _has(*names: str) -> Callable[[Mapping[str, Any], re.Match[str]], bool]:
    return lambda body, match: any(name in body for name in names)


def _no_error(body: Mapping[str, Any], match: re.Match[str]) -> bool:
    return "errors" not in body


_MODELS: tuple[tuple[re.Pattern[str], Callable[[dict[str, Any], re.Match[str]], bool]], ...] = tuple(
    (re.compile(path), fits)
    for path, fits in (
        (r"/jobs", _has_list("jobs")),
        (r"/jobs/(?P<id>[^/]+)", _is_job),
        (r"/sessions/(?P<id>[^/]+)", _is_session),
        (r"/workloads", _has_list("workloads")),
        (r"/backends", _has_list("devices", "backends")),
        (r"/versions", _has_list("versions")),
        # All their fields are optional.
        (r"/jobs/[^/]+/metrics|/instances/configuration|/backends/[^/]+/properties", _no_error),
        (r"/instances/usage", _has("usage_consumed_seconds", "usage_limit_seconds", "instance_id", "plan_id")),
    )
)
