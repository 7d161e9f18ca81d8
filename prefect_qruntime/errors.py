"""The errors of this package, and what each one means for money.

```
QuantumRuntimeError
├─ InvalidInput            refused here, nothing was sent
├─ AuthenticationError     API key unknown, or a fresh token refused
├─ PermissionDenied        no right on this instance, job or plan
├─ NotFound                no such job, session or backend in this instance
├─ UsageLimitReached       the instance has no QPU time left
├─ BudgetExhausted         your own budget has no QPU time left
├─ PolicyRefused           the installation's policy does not allow it, this request was not sent
├─ RateLimited             429; the request was not accepted
├─ SubmissionUncertain     a create may or may not have been accepted: search before going on
├─ ServiceUnavailable      no answer, or a 5xx, until the deadline
├─ SessionClosed           the session takes no more jobs
├─ JobFailed
│  └─ JobRanTooLong        the job hit its QPU time limit (code 1305)
├─ JobCancelled
├─ JobTimeout              our wait ended; the job lives on
└─ ResultNotReady          no final result yet
```

Every error carries data, never an httpx or websockets object, and pickles with all its fields,
so that Dask, Ray and Prefect's result storage hand it on whole and without a secret. Its texts may be the service's
words: they are masked, and hold no terminal sequence and no invisible character. Prefect's JSON
serializer keeps the text of an error only; what the text says of code, status, trace and `retryable`
is read back from it, and everything else is then unset.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ApprovalDenied",
    "AuthenticationError",
    "BackendOffline",
    "BudgetExhausted",
    "InvalidInput",
    "JobCancelled",
    "JobFailed",
    "JobRanTooLong",
    "JobTimeout",
    "NotFound",
    "PermissionDenied",
    "PolicyRefused",
    "QuantumRuntimeError",
    "RateLimited",
    "ResultNotReady",
    "RetryAdvice",
    "ServiceUnavailable",
    "SessionClosed",
    "SubmissionUncertain",
    "UsageLimitReached",
]

_clean: Callable[[str], str] = str


def clean_texts_with(function: Callable[[str], str]) -> None:
    """Pass each text of the errors made from now on through a function. What registers secrets sets it."""
    global _clean
    _clean = function


@dataclass(frozen=True, slots=True)
class RetryAdvice:
    """What a caller may do next: `never`, `same-request`, `after n s` or `search-first`."""

    kind: Literal["never", "same-request", "after", "search-first"] = "never"
    seconds: float | None = None

    def __str__(self) -> str:
        """The advice as the published failure table words it."""
        return f"after {self.seconds:g} s" if self.kind == "after" and self.seconds is not None else self.kind

    @property
    def may_repeat(self) -> bool:
        """Whether the same request may be sent again without searching the service first."""
        return self.kind in ("same-request", "after")


NEVER = RetryAdvice("never")
SAME_REQUEST = RetryAdvice("same-request")
SEARCH_FIRST = RetryAdvice("search-first")


def after(seconds: float) -> RetryAdvice:
    """Advice to send the same request again, `seconds` from now at the earliest."""
    return RetryAdvice("after", seconds)


# What `__str__` writes after the sentences of an error.
_MARK = r"(?:HTTP \d{3}|(?:code|trace) [^\s,()]+|(?:not )?retryable)"
_MARKS = re.compile(rf" \((?P<marks>{_MARK}(?:, {_MARK})*)\)(?: (?P<url>https?://\S+))?\Z")


def _read_marks(text: str) -> tuple[str, dict[str, Any]]:
    """Take an error's text apart into the message and the fields that it names."""
    match = _MARKS.search(text)
    if match is None:
        return text, {}
    found: dict[str, Any] = {"job_url": match["url"]} if match["url"] else {}
    for mark in match["marks"].split(", "):
        name, _, value = mark.rpartition(" ")
        if value == "retryable":
            found["retryable"] = name != "not"
        else:
            plain = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else value
            found[{"HTTP": "status", "code": "code", "trace": "trace_id"}[name]] = value if name == "trace" else plain
    return text[: match.start()], found


_ADDRESS_LAST = re.compile(r"https?://\S+\Z")


def _sentence(text: str) -> str:
    """End a text with a stop, unless it has one or ends with an address, which a stop would break."""
    return text if not text or text.endswith((".", "!", "?", ":", "…")) or _ADDRESS_LAST.search(text) else f"{text}."


_PLAIN = ("code", "reason", "solution", "trace_id", "job_id", "session_id", "job_url", "status", "advice")


def _plain(value: Any) -> Any:
    return _clean(value) if isinstance(value, str) else value


def _rebuild(cls: type[QuantumRuntimeError], message: str, fields: dict[str, Any]) -> QuantumRuntimeError:
    return cls(message, **fields)


class QuantumRuntimeError(Exception):
    """Base of all errors of this package.

    Args:
        message: What happened, in one sentence.
        code: The service's own code, an int or a string, if it gave one.
        reason: The service's reason text.
        solution: What to do about it.
        trace_id: The service's trace id, for a support case.
        job_id: The job concerned.
        session_id: The session concerned.
        job_url: Address of the job for people.
        status: The HTTP status, if there was one.
        advice: Whether repeating can help.
        details: Fields of single subclasses, for instance `field` of `InvalidInput`.

    Example:
        ```python
        from prefect_qruntime import JobFailed, QuantumRuntimeError

        error = JobFailed("job d1 failed", job_id="d1", reason_code=1006, retryable=True)
        assert isinstance(error, QuantumRuntimeError) and error.job_id == "d1"
        ```
    """

    default_advice: RetryAdvice = NEVER
    _outage = False

    def __init__(
        self,
        message: str,
        *,
        code: int | str | None = None,
        reason: str | None = None,
        solution: str | None = None,
        trace_id: str | None = None,
        job_id: str | None = None,
        session_id: str | None = None,
        job_url: str | None = None,
        status: int | None = None,
        advice: RetryAdvice | None = None,
        **details: Any,
    ) -> None:
        message, reason, solution = _plain(message), _plain(reason), _plain(solution)
        code, trace_id = _plain(code), _plain(trace_id)
        details = {name: _plain(value) for name, value in details.items()}
        given = (code, reason, solution, trace_id, job_id, session_id, job_url, status, advice)
        if all(value is None for value in (*given, *details.values())):
            # The message may be the text of another error, which is all that JSON keeps of it.
            message, told = _read_marks(message)
            code, status, trace_id = told.pop("code", None), told.pop("status", None), told.pop("trace_id", None)
            job_url = told.pop("job_url", None)
            details |= told
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.solution = solution
        self.trace_id = trace_id
        self.job_id = job_id
        self.session_id = session_id
        self.job_url = job_url
        self.status = status
        self.advice = advice if advice is not None else self.default_advice
        self.details = details

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no plain attribute: the extra fields of a subclass.
        details = self.__dict__.get("details")
        if details is not None and name in details:
            return details[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    @property
    def is_outage(self) -> bool:
        """Whether the error only means that the service was unreachable: it says nothing about a job or an input.

        Work in flight continues: nothing may be dropped or given up because of such an error.
        """
        return self._outage

    @property
    def fields(self) -> dict[str, Any]:
        """All fields that are set, as plain data."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {name: value for name, value in {**plain, **self.details}.items() if value is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields)

    def __str__(self) -> str:
        """What happened. Why. What to do. (Marks for support) and the job's address."""
        parts = [self.message]
        if self.reason and self.reason not in self.message:
            parts.append(self.reason)
        if self.solution and self.solution not in self.message:
            parts.append(self.solution)
        parts = [_sentence(part) for part in parts]
        marks = [
            f"{label} {value}"
            for label, value in (("HTTP", self.status), ("code", self.code), ("trace", self.trace_id))
            if value is not None
        ]
        if isinstance(retryable := self.details.get("retryable"), bool):
            marks.append("retryable" if retryable else "not retryable")
        if marks:
            parts.append(f"({', '.join(marks)})")
        if self.job_url and self.job_url not in self.message:
            parts.append(self.job_url)
        return " ".join(parts)


class InvalidInput(QuantumRuntimeError):
    """An input is wrong; nothing was submitted. `field` names it.

    Found here, nothing was sent; found by the service, `status` is its HTTP status (400).
    """

    field: str | None = None

    def __init__(self, message: str, *, field: str | None = None, **fields: Any) -> None:
        text = message if field is None or message.startswith(f"{field}:") else f"{field}: {message}"
        super().__init__(text, field=field, **fields)
        self.field = field


class AuthenticationError(QuantumRuntimeError):
    """The API key is unknown, or the service refused a token that was just issued."""


class PermissionDenied(QuantumRuntimeError):
    """The key is valid but lacks a right on this instance, job or plan."""


class NotFound(QuantumRuntimeError):
    """The job, session or backend does not exist in this instance."""


class UsageLimitReached(QuantumRuntimeError):
    """The instance's QPU time is used up."""


class BudgetExhausted(QuantumRuntimeError):
    """Your own budget leaves no QPU time for this job or session, which was not sent."""


class PolicyRefused(QuantumRuntimeError):
    """The installation's policy does not allow it; this request was not sent. `policy` names the block."""


class BackendOffline(QuantumRuntimeError):
    """The backend is paused or offline, and the submission requires an online one; it was not sent."""

    default_advice = SAME_REQUEST


class ApprovalDenied(QuantumRuntimeError):
    """A person declined to approve the cost, or did not answer in time; nothing was sent."""


class RateLimited(QuantumRuntimeError):
    """The service asked for a slower pace until the deadline; nothing was accepted."""

    default_advice = SAME_REQUEST
    _outage = True


class SubmissionUncertain(QuantumRuntimeError):
    """A create may or may not have been accepted, and searching for it did not decide that.

    `submission_key` is the tag to look for, `candidates` the job ids found so far.
    """

    default_advice = SEARCH_FIRST
    _outage = True


class ServiceUnavailable(QuantumRuntimeError):
    """No usable answer until the deadline. Says nothing about the job."""

    default_advice = SAME_REQUEST
    _outage = True


class SessionClosed(QuantumRuntimeError):
    """The session does not take jobs any more (codes 1217 and 4001)."""


class JobFailed(QuantumRuntimeError):
    """The service ended the job as failed. `retryable` says whether a new job could succeed."""

    @property
    def retryable(self) -> bool | None:
        """Whether the failure was the service's own, so that a new job may succeed; None if that is not known."""
        found: bool | None = self.details.get("retryable")
        return found


class JobRanTooLong(JobFailed):
    """The job reached its QPU time limit (`max_execution_time`, code 1305)."""

    @property
    def retryable(self) -> bool:
        """Whether a new job may succeed: not with the same limit."""
        return bool(self.details.get("retryable"))


class JobCancelled(QuantumRuntimeError):
    """The job was cancelled, by this package or by someone else."""


class JobTimeout(QuantumRuntimeError):
    """Our own deadline passed. The job lives on unless `cancelled` is set."""

    @property
    def is_outage(self) -> bool:
        """Whether the error only means that the service was unreachable."""
        return self.details.get("limit") == "outage"


class ResultNotReady(QuantumRuntimeError):
    """The service has no final result for the job yet."""

    default_advice = SAME_REQUEST
