"""Decide how a session is opened once and closed verifiably: state machines without clock and network.

Opening has no idempotency and a session carries no tag, so after a lost answer the workloads are searched for an
unused session with equal parameters before another one is opened:

- A 2xx is proof of acceptance, readable or not: after it no other session is opened.
- A session that this process handed out, or that another opening of this process may still turn out to own, is not
  taken. Another process that opens an equal session at the same moment cannot be distinguished.
- If the search fails, or more sessions are found than this process is missing, the opening ends with
  `SubmissionUncertain`.

Closing drops queued jobs only if that was asked for, or if none is left: a question that could not be answered is not
an answer, and ends the closing with the error.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from prefect_qruntime.errors import (
    AuthenticationError,
    JobTimeout,
    QuantumRuntimeError,
    ResultNotReady,
    SubmissionUncertain,
)
from prefect_qruntime.models import Session, SessionRef

__all__ = [
    "Close",
    "Closed",
    "Closing",
    "Drop",
    "Fail",
    "FindSessions",
    "HasWork",
    "Open",
    "Opened",
    "Opening",
    "Pause",
    "ReadBack",
    "SessionMemory",
    "StopAccepting",
    "Wanted",
    "says_nothing_about_jobs",
]

_KEEP = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Parameters that distinguish a session from others."""

    backend: str
    mode: str
    max_ttl: int | None = None
    scope: Hashable = ""

    def fits(self, session: Session) -> bool:
        """Whether the session is unused and was opened with these parameters."""
        return (
            session.state == "open"
            and session.mode == self.mode
            and session.backend == self.backend
            and (self.max_ttl is None or session.max_ttl == self.max_ttl)
        )


class SessionMemory:
    """Sessions that this process has handed out, and openings whose outcome is not known yet."""

    def __init__(self, keep: int = _KEEP) -> None:
        self.ours: LRUCache[str, None] = LRUCache(keep)
        self.posting: dict[Hashable, Wanted] = {}
        self.missing: dict[Hashable, Wanted] = {}

    def note(self, session_id: str) -> None:
        """Remember a session that was handed out."""
        self.ours[session_id] = None

    def others_posting(self, wanted: Wanted, owner: Hashable) -> bool:
        """Whether another opening with equal parameters still waits for its answer."""
        return any(one == wanted and name != owner for name, one in self.posting.items())

    def count_missing(self, wanted: Wanted) -> int:
        """How many openings with equal parameters look for their session."""
        return sum(one == wanted for one in self.missing.values())

    def forget_opening(self, owner: Hashable) -> None:
        """The opening is over."""
        self.posting.pop(owner, None)
        self.missing.pop(owner, None)


@dataclass(frozen=True, slots=True)
class Open:
    """Send the request; answer with `opened`, `unreadable`, `lost` or `refused`."""


@dataclass(frozen=True, slots=True)
class FindSessions:
    """Look for sessions with the wanted parameters; answer with `found` or `find_failed`."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; answer with `waited`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The end: the session."""

    ref: SessionRef


@dataclass(frozen=True, slots=True)
class Fail:
    """The end: raise the error."""

    error: QuantumRuntimeError


OpeningAction = Open | FindSessions | Pause | Opened | Fail


class Opening:
    """The opening of one session for one caller, as a state machine.

    Args:
        wanted: What to open.
        memory: What this process knows; shared by all its openings.
        owner: Names this caller in the memory.
        grace: Seconds within which an accepted session shows up in the workloads.
        attempts: Most requests.
    """

    def __init__(
        self, wanted: Wanted, memory: SessionMemory, owner: Hashable, *, grace: float = 10.0, attempts: int = 2
    ) -> None:
        self.wanted, self.memory, self.owner = wanted, memory, owner
        self.grace, self.attempts = grace, attempts
        self.posts = 0
        self.accepted = False
        self.until = 0.0
        self.looked = 0.0
        self.pause = 0.0

    def start(self) -> OpeningAction:
        """Begin."""
        self.posts += 1
        self.memory.missing.pop(self.owner, None)
        self.memory.posting[self.owner] = self.wanted
        return Open()

    def opened(self, ref: SessionRef) -> OpeningAction:
        """The service opened the session and sent its id; None if its first job opens it."""
        self.memory.forget_opening(self.owner)
        if ref.id is not None:
            self.memory.note(ref.id)
        return Opened(ref)

    def unreadable(self, now: float) -> OpeningAction:
        """The service answered with a 2xx that cannot be read: a session is open."""
        self.accepted = True
        return self._search(now)

    def lost(self, now: float) -> OpeningAction:
        """No answer, or an ambiguous one: a session may be open."""
        return self._search(now)

    def refused(self, error: QuantumRuntimeError) -> OpeningAction:
        """This request opened nothing. An earlier one whose answer was lost may have: the list may be late."""
        if self.posts == 1:
            return self._end(error)
        why = f"an answer was lost, and after no new session was listed, another request was refused: {error.message}"
        about = f" About the refusal: {error.solution}" if error.solution else ""
        uncertain = self._uncertain(why.removesuffix("."), [], about)
        uncertain.__cause__ = error
        return self._end(uncertain)

    def abandoned(self) -> None:
        """The caller is gone."""
        self.memory.forget_opening(self.owner)

    def _search(self, now: float) -> OpeningAction:
        self.memory.posting.pop(self.owner, None)
        self.memory.missing[self.owner] = self.wanted
        self.until = now + self.grace
        self.pause = min(0.25, self.grace / 4)
        return self.waited(now)

    def waited(self, now: float) -> OpeningAction:
        """A pause is over."""
        self.looked = now
        return FindSessions()

    def found(self, now: float, sessions: Sequence[Session]) -> OpeningAction:
        """The sessions that the service lists."""
        fitting = [one for one in sessions if self.wanted.fits(one) and one.id not in self.memory.ours]
        if fitting and self._may_belong_to_another():
            return self._wait(now, now + self.grace)
        if len(fitting) > self.memory.count_missing(self.wanted):
            return self._end(self._uncertain("more than one new session could be it", [one.id for one in fitting]))
        if fitting:
            return self.opened(fitting[0].ref())
        if self.looked < self.until:
            return self._wait(now, self.until)
        if self._may_repeat():
            return self.start()
        why = "the service accepted the request" if self.accepted else f"{self.posts} answers were lost"
        return self._end(self._uncertain(f"{why}, and no new session is listed", []))

    def _may_belong_to_another(self) -> bool:
        return self.memory.others_posting(self.wanted, self.owner)

    def _may_repeat(self) -> bool:
        return not self.accepted and self.posts < self.attempts

    def _wait(self, now: float, until: float) -> OpeningAction:
        seconds = max(0.0, min(self.pause, until - now))
        self.pause = min(self.pause * 1.5, 3.0)
        return Pause(seconds)

    def find_failed(self, error: QuantumRuntimeError) -> OpeningAction:
        """The search failed: nothing is opened in doubt."""
        return self._end(self._uncertain(f"searching for it failed: {error.message}", []))

    def _end(self, error: QuantumRuntimeError) -> OpeningAction:
        self.memory.forget_opening(self.owner)
        return Fail(error)

    def _uncertain(self, why: str, candidates: list[str], about: str = "") -> SubmissionUncertain:
        return SubmissionUncertain(
            f"it is not known whether a session was opened on {self.wanted.backend}: {why}.",
            solution=(
                "Check the instance's workloads, and close a session that no flow uses. An unused session costs "
                f"nothing and closes by itself. Then open a session again.{about}"
            ),
            candidates=candidates,
        )


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Let queued jobs run and take no new ones; answer with `stopped`, `missing` or `failed`."""


@dataclass(frozen=True, slots=True)
class HasWork:
    """Find out whether a job of the session may still be waiting; answer with `work` or `failed`."""


@dataclass(frozen=True, slots=True)
class Drop:
    """End the session now; answer with `dropped`, `missing` or `failed`."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Read the session; answer with `read`, `missing` or `failed`."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The end: the session as read back; None if the service does not know it any more."""

    session: Session | None


Close = StopAccepting | HasWork | Drop | ReadBack | Pause | Closed | Fail


class Closing:
    """Close one session and read back that it is closed.

    That the service does not know the session is believed only if it says so for a while: a service that restarts, or
    loses its database for a moment, says the same of a session that goes on charging.

    Args:
        drain: Let queued jobs run first.
        patience: Seconds to wait for the service to say `closed`, or that it does not know the session.
    """

    def __init__(self, *, drain: bool, patience: float = 20.0) -> None:
        self.drain, self.patience = drain, patience
        self.asked: Close = StopAccepting() if drain else Drop()
        self.until: float | None = None
        self.unknown_since: float | None = None
        self.runs_on = False
        self.refused = False
        self.doubted: QuantumRuntimeError | None = None

    def start(self) -> Close:
        """Begin."""
        return self.asked

    def stopped(self) -> Close:
        """The session takes no more jobs."""
        return self._ask(HasWork())

    def work(self, waiting: bool) -> Close:
        """Whether a job may still be waiting. If none is, an idle session would only go on charging."""
        self.runs_on = waiting
        return self._ask(ReadBack() if waiting else Drop())

    def dropped(self, now: float) -> Close:
        """The service took the request."""
        self.until = now + self.patience
        return self._ask(ReadBack())

    def read(self, now: float, session: Session) -> Close:
        """The session as the service sees it."""
        self.unknown_since = None
        doubted, self.doubted = self.doubted, None
        if doubted is not None and not session.ref().is_closed:
            return self.stopped() if self.drain and session.accepting_jobs is False else Fail(doubted)
        over = self.until is None or now >= self.until
        return Closed(session) if self.runs_on or over or session.ref().is_closed else Pause(0.3)

    def waited(self) -> Close:
        """A pause is over."""
        return self.asked

    def missing(self, now: float) -> Close:
        """The service says that it does not know the session."""
        if self.unknown_since is None:
            self.unknown_since = now
        return Closed(None) if now - self.unknown_since >= self.patience else Pause(1.0)

    def failed(self, error: QuantumRuntimeError) -> Close:
        """A request was not answered or refused: nothing is dropped in doubt.

        A session that is closed already, at its limit or by someone else, may refuse to be closed: it is read.
        """
        if not self.refused and isinstance(self.asked, StopAccepting | Drop) and not error.is_outage:
            self.refused, self.doubted = True, error
            return self._ask(ReadBack())
        return Fail(error)

    def _ask(self, action: Close) -> Close:
        self.asked, self.unknown_since = action, None
        return action


_SILENT = (AuthenticationError, ResultNotReady, TimeoutError)  # beside outages; Prefect's time limits are the last


def says_nothing_about_jobs(error: BaseException | None) -> bool:
    """Whether an error that ended a session's block says nothing about the jobs in it.

    This holds for an outage, an answer that is not understood, an unknown outcome and a wait that was given up: the
    jobs live on, and a repeated run attaches to them. It does not hold for the flow's own errors and for what the
    service says about a job.
    """
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _SILENT) or type(one) is QuantumRuntimeError:
            return True
        if isinstance(one, QuantumRuntimeError) and one.is_outage:
            return True
        if isinstance(one, JobTimeout) and not one.fields.get("cancelled"):
            return True
        left += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return False
