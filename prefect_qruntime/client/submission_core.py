"""Decide whether to submit, search, attach, wait or give up: a state machine without clock and network.

The service has no idempotency key. What it has are job tags that can be listed, so each intent carries a tag of its
own (its key; one for each generation), and every doubt is resolved by searching the list. A `Submission` is fed with
events and answers each with the next action; `submission` carries the actions out. The rules:

- A 2xx is proof of acceptance, readable or not. After it nothing is posted under that key again, however long the
  list lags.
- A request whose answer was lost is not repeated before a query that began a grace period later found nothing, and at
  most `attempts` times; a refusal by something in between that would only come again (413) is then believed. If the
  search fails, the submission ends with `SubmissionUncertain`; so does one whose repeated request is refused.
- A process knows what it submitted (`SubmissionMemory`): one caller of a key searches and submits, the others wait and
  get its job. If it ends without acceptance, the next one continues; if it gives up in doubt, the others fail too.
- A job found in the list must be what was asked for. A tag can be copied, so the payload is compared.
- A failed or cancelled job is replaced (generation + 1) only if the caller asks for it; the caller compares the
  service's own times.

How long to search before the *first* POST of a key is a question of its own. An explicit key may have been used by
another process a moment ago, and no lag seen so far bounds the lag of the next listing, so a window learnt from
experience would be a guess that risks money. The window therefore stays the whole grace period, counted from when
the caller holds the lock that excludes other processes. It is cut to a single query only on proof: the caller
may offer to answer `AskHistory` from marks that each process writes under the lock, before it sends ("no process has
ever sent this key") and after the service accepted (which job it is, so that even a list that lags for longer than the
grace period leads to no second one).

Every event takes the time at which it arrived, in seconds of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_qruntime.client.submission_keys import Payload, SubmissionMemory
from prefect_qruntime.errors import NEVER, InvalidInput, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import Job, JobRef, JobStatus

__all__ = [
    "Action",
    "Admit",
    "Ask",
    "AskHistory",
    "Attach",
    "AwaitOther",
    "Bought",
    "Compare",
    "Fetch",
    "GiveUp",
    "History",
    "Look",
    "Pause",
    "Post",
    "Read",
    "Submission",
]


@dataclass(frozen=True, slots=True)
class Ask:
    """A caller's request, as far as the decision needs it.

    Attributes:
        key_tag: Gives the key's tag for a generation (0 is the first).
        scope: The instance; keys of two instances have nothing to do with each other.
        payload: What is to be computed, for comparison with what other callers of the process submitted.
        renew_failed: Whether an earlier job that failed or was cancelled is replaced by a new one.
        search_until: Search for an earlier job until this moment, at least once.
        search_seconds: Search for an earlier job for this long, counted from the start. With both None no earlier
            attempt can exist, and there is no search.
        knows_history: Whether `AskHistory` may be asked.
        grace: Seconds within which an accepted job shows up in the list.
        attempts: Most POSTs for one generation.
        first_pause: Seconds between the first two queries; later pauses grow up to `longest_pause`.
    """

    key_tag: Callable[[int], str]
    scope: Hashable = ""
    payload: Payload = field(default_factory=Payload)
    renew_failed: Callable[[Job], bool] = field(default=lambda job: False)
    search_until: float | None = None
    search_seconds: float | None = None
    knows_history: bool = False
    grace: float = 30.0
    attempts: int = 3
    first_pause: float = 0.25
    longest_pause: float = 3.0


@dataclass(frozen=True, slots=True)
class AwaitOther:
    """Wait until the caller that owns the key is done; answer with `other_settled`."""

    key: str


@dataclass(frozen=True, slots=True)
class History:
    """What the processes that share a store of marks did with a key.

    Attributes:
        never_sent: It is certain that none of them has sent it.
        accepted: The service answered one of them with a 2xx.
        job_id: The job, if that answer could be read.
    """

    never_sent: bool = False
    accepted: bool = False
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class AskHistory:
    """Ask what other processes did with this key; answer with `history`."""

    key: str


@dataclass(frozen=True, slots=True)
class Look:
    """List the jobs with this tag; answer with `listed` or `list_failed`."""

    key: str


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare a listed job's input with what was asked for.

    Answer with `compared`, `compare_missing` or `compare_failed`.
    """

    job: Job


@dataclass(frozen=True, slots=True)
class Read:
    """Read a job that this process knows; answer with `read`, `read_missing` or `read_failed`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read a job that another process submitted; answer with `fetched`, `fetch_missing` or `fetch_failed`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; answer with `waited`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Admit:
    """Ask budget and rate limit for permission to send; answer with `admitted`, or with `refused` to stop."""

    key: str


@dataclass(frozen=True, slots=True)
class Post:
    """Send the request; answer with `posted`, `unreadable`, `lost` or `refused`."""

    key: str


@dataclass(frozen=True, slots=True)
class Bought:
    """The end: this caller submitted the job."""

    ref: JobRef


@dataclass(frozen=True, slots=True)
class Attach:
    """The end: the job existed already. `job` is its last known state; None right after another caller submitted it."""

    key: str
    ref: JobRef
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The end: raise the error."""

    error: QuantumRuntimeError


Action = AwaitOther | AskHistory | Look | Compare | Read | Fetch | Pause | Admit | Post | Bought | Attach | GiveUp

_Doubt = Literal["earlier", "lost", "accepted"]
"""Which job a search is for: one of an earlier attempt, of a request without an answer, of an accepted request."""


class Submission:
    """The submission of one job for one caller, as a state machine.

    Args:
        ask: The request.
        memory: What this process knows; shared by all its submissions.
        owner: Names this caller in the memory; must be unique there.
    """

    def __init__(self, ask: Ask, memory: SubmissionMemory, owner: Hashable) -> None:
        self.ask, self.memory, self.owner = ask, memory, owner
        self.generation = 0
        self.key = ask.key_tag(0)
        self.search_until: float | None = None  # this caller's window before its first POST
        self.posts = 0  # of this generation
        self.posting = False  # a request is out, and its outcome is not known
        self.doubt: _Doubt = "earlier"
        self.until = 0.0  # the search continues until a query began at this time or later
        self.looked = 0.0
        self.pause = 0.0
        self.found: Job | None = None
        self.unread_until: float | None = None  # a listed job that cannot be read is read again until then
        self.lost_error: QuantumRuntimeError | None = None
        self.lost_before: float | None = None  # when an earlier request of the key ended without an answer

    # ---- what this process knows ------------------------------------------------------------------

    @property
    def memory_key(self) -> Hashable:
        """The key of the present generation, as the memory files it."""
        return self.ask.scope, self.key

    def _owns(self) -> bool:
        record = self.memory.get(self.memory_key)
        return record is not None and record.owner == self.owner

    def start(self, now: float) -> Action:
        """Begin; the caller holds the lock that excludes other processes."""
        windows = [self.ask.search_until] if self.ask.search_until is not None else []
        if self.ask.search_seconds is not None:
            windows.append(now + self.ask.search_seconds)
        self.search_until = max(windows, default=None)
        return self._begin(now)

    def other_settled(self, now: float) -> Action:
        """The caller that owned the key is done."""
        record = self.memory.get(self.memory_key)
        if record is not None and record.owner is None:
            if record.uncertain is not None:
                return GiveUp(type(record.uncertain)(record.uncertain.message, **record.uncertain.fields))
            if record.ref is not None:
                return self._known(now, record.ref, record.job, record.payload)
        return self._begin(now)

    def _begin(self, now: float) -> Action:
        record = self.memory.get(self.memory_key)
        if record is not None and record.owner is not None:
            return AwaitOther(self.key)
        if record is not None and record.ref is not None:
            return Read(record.ref.id)
        record = self.memory.claim(self.memory_key, self.owner)
        self.found, self.unread_until = None, None
        if record.accepted is not None:
            return self._search(now, "accepted", now + self.ask.grace)
        if record.sent is None and self.search_until is None:
            return Admit(self.key)
        if self.ask.knows_history:
            return AskHistory(self.key)
        return self._search(now, "earlier", self._window(now))

    def _window(self, now: float) -> float:
        """The time until which an earlier job, of this process or of another, must be searched for."""
        record, until = self.memory.note(self.memory_key), self.search_until or now
        return until if record.sent is None else max(until, record.sent + self.ask.grace)

    def history(self, now: float, known: History) -> Action:
        """What other processes did with this key. If none of them has sent it, one query is enough."""
        if known.job_id is not None:
            self.doubt = "accepted"
            return Fetch(known.job_id)
        if known.accepted:
            return self._search(now, "accepted", now + self.ask.grace)
        unsent = known.never_sent and self.memory.note(self.memory_key).sent is None
        return self._search(now, "earlier", now if unsent else self._window(now))

    def fetched(self, now: float, job: Job) -> Action:
        """The present state of the job that another process submitted."""
        if job.tags and self.key not in job.tags:  # a user took the tag off it, to free the key
            return self._search(now, "earlier", self._window(now))
        self.found = job
        return Compare(job)

    def fetch_missing(self, now: float) -> Action:
        """The service says that the job does not exist: it may be too new."""
        return self._search(now, "accepted", now + self.ask.grace)

    def fetch_failed(self, now: float, error: QuantumRuntimeError) -> Action:
        """The job could not be read: nothing is submitted in doubt."""
        del now
        return self._give_up(error)

    # ---- a job this process knows ------------------------------------------------------------------

    def read(self, now: float, job: Job) -> Action:
        """The state of the job that this process knows."""
        record = self.memory.get(self.memory_key)
        return self._known(now, job.ref(), job, record.payload if record is not None else None)

    def read_failed(self, now: float) -> Action:
        """The job's state could not be read. The job is known nevertheless, and nothing is submitted in doubt."""
        record = self.memory.get(self.memory_key)
        if record is None or record.ref is None:  # forgotten meanwhile
            return self._begin(now)
        return self._known(now, record.ref, record.job, record.payload)

    def read_missing(self, now: float) -> Action:
        """The service says that the job does not exist: a new job may be invisible for a while."""
        record = self.memory.get(self.memory_key)
        if record is None or record.ref is None:
            return self._begin(now)
        if record.owner is not None:
            return AwaitOther(self.key)
        if record.accepted is not None and now < record.accepted + self.ask.grace:
            return self._known(now, record.ref, record.job, record.payload)
        self.memory.claim(self.memory_key, self.owner)
        return self._search(now, "accepted", now + self.ask.grace)

    def _known(self, now: float, ref: JobRef, job: Job | None, payload: Payload | None) -> Action:
        difference = self.ask.payload.difference(payload) if payload is not None else None
        if difference is not None:
            return GiveUp(self._mismatch(ref.id, difference))
        if job is not None and self._renews(job):
            return self._next_generation(now)
        return Attach(self.key, ref, job)

    def _renews(self, job: Job) -> bool:
        # A job that this caller itself has sent is its answer, in any state.
        dead = job.status in (JobStatus.FAILED, JobStatus.CANCELLED)
        return dead and not self.posts and self.ask.renew_failed(job)

    def _next_generation(self, now: float) -> Action:
        self.generation += 1
        self.key = self.ask.key_tag(self.generation)
        return self._begin(now)

    # ---- the search ----------------------------------------------------------------------------------

    def _search(self, now: float, doubt: _Doubt, until: float) -> Action:
        self.doubt, self.until = doubt, until
        self.pause = min(self.ask.first_pause, self.ask.grace / 4)
        return self.waited(now)

    def waited(self, now: float) -> Action:
        """A pause is over."""
        self.looked = now
        return Look(self.key)

    def _search_is_over(self, now: float) -> bool:
        # What counts is when the query began: its answer may be late, and shows what was listed before.
        del now
        return self.looked >= self.until

    def listed(self, now: float, jobs: list[Job]) -> Action:
        """The jobs that the service lists for the key."""
        found = [job for job in jobs if self.key in job.tags]
        if len(found) > 1:
            return self._give_up(self._surplus([job.id for job in found]))
        if found:
            self.found = found[0]
            return Compare(self.found)
        if self._search_is_over(now):
            return self._nothing_listed(now)
        return self._pause(now, self.until)

    def _pause(self, now: float, until: float) -> Action:
        seconds = max(0.0, min(self.pause, until - now))
        self.pause = min(self.pause * 1.5, self.ask.longest_pause)
        return Pause(seconds)

    def _nothing_listed(self, now: float) -> Action:
        learnt = self._learnt(now)
        if learnt is not None:
            return learnt
        if self.doubt == "accepted":
            return self._give_up(self._unseen())
        if self.doubt == "lost":
            if isinstance(error := self.lost_error, InvalidInput):  # it would be so again
                record = self.memory.note(self.memory_key)
                if record.sent is not None and record.sent + self.ask.grace == self.until:  # else one was lost since
                    record.sent = self.lost_before
                return self.refused(now, InvalidInput(error.message, **{**error.fields, "advice": NEVER}))
            if self.posts >= self.ask.attempts:
                return self._give_up(self._unanswered())
        return Admit(self.key)

    def _learnt(self, now: float) -> Action | None:
        """Use what arrived meanwhile: the answer to a request whose caller was cancelled."""
        record = self.memory.note(self.memory_key)
        if self.doubt == "accepted" or record.accepted is None:
            return None
        if record.ref is None:
            return self._search(now, "accepted", now + self.ask.grace)
        self.memory.release(self.memory_key)
        return self._known(now, record.ref, record.job, record.payload)

    def list_failed(self, now: float, error: QuantumRuntimeError) -> Action:
        """The list could not be read: nothing is submitted in doubt."""
        del now
        record = self.memory.note(self.memory_key)
        return self._give_up(error if self.doubt == "earlier" and record.sent is None else self._unasked(error))

    def compared(self, now: float, difference: str | None) -> Action:
        """How the listed job differs from what was asked for; None if it does not, as far as can be read."""
        job = self.found
        assert job is not None  # noqa: S101  # it was handed out with `Compare`
        if difference is not None:
            return self._give_up(self._mismatch(job.id, difference))
        record = self.memory.note(self.memory_key)
        record.accepted, record.ref, record.job, record.payload = now, job.ref(), job, self.ask.payload
        self.memory.release(self.memory_key)
        if self._renews(job):
            return self._next_generation(now)
        return Attach(self.key, record.ref, job)

    def compare_missing(self, now: float) -> Action:
        """The service lists the job, and says that it does not exist: it may be too new."""
        self.doubt = "accepted"  # if the next list shows no job, that does not permit a submission
        if self.unread_until is None:
            self.unread_until = now + self.ask.grace
            self.until = max(self.until, self.unread_until)
        if now < self.unread_until:
            return self._pause(now, self.unread_until)
        assert self.found is not None  # noqa: S101  # it was handed out with `Compare`
        return self._give_up(self._unreadable_job(self.found.id))

    def compare_failed(self, now: float, error: QuantumRuntimeError) -> Action:
        """The listed job could not be read."""
        return self.list_failed(now, error)

    # ---- the purchase ----------------------------------------------------------------------------------

    def admitted(self, now: float) -> Action:
        """Budget and rate limit allow one request."""
        learnt = self._learnt(now)
        if learnt is not None:
            return learnt
        self.posts += 1
        self.posting = True
        return Post(self.key)

    def posted(self, now: float, ref: JobRef) -> Action:
        """The service accepted the job and sent its id."""
        self.posting = False
        record = self.memory.note(self.memory_key)
        record.accepted, record.ref, record.job, record.payload = now, ref, None, self.ask.payload
        if self._owns():
            self.memory.release(self.memory_key)
        return Bought(ref)

    def unreadable(self, now: float) -> Action:
        """The service answered with a 2xx that cannot be read: it accepted the job."""
        self.posting = False
        self.memory.note(self.memory_key).accepted = now
        return self._search(now, "accepted", now + self.ask.grace)

    def lost(self, now: float, error: QuantumRuntimeError) -> Action:
        """No answer, or an ambiguous one: the job may exist."""
        self.posting = False
        self.lost_error = error
        record = self.memory.note(self.memory_key)
        self.lost_before, record.sent = record.sent, now
        return self._search(now, "lost", now + self.ask.grace)

    def refused(self, now: float, error: QuantumRuntimeError) -> Action:
        """The service did not accept the job, the request never reached it, or budget or rate limit stopped it.

        That says nothing about an earlier request of the key whose answer was lost. The list has not shown its job, but
        may be late; and the job may be the reason for the refusal, for instance of the last seconds of a limit.
        """
        del now
        self.posting = False
        record = self.memory.get(self.memory_key)
        return self._give_up(error if record is None or record.sent is None else self._refused_later(error))

    def withdrawn(self) -> None:
        """The caller is gone, and the request was not sent, or it was refused and would have been sent again."""
        self.posting = False

    def abandoned(self, now: float) -> None:
        """The caller is gone: the next caller of the key continues."""
        if self.posting:
            self.posting = False
            self.memory.note(self.memory_key).sent = now
        if self._owns():
            self.memory.release(self.memory_key)

    # ---- the end -----------------------------------------------------------------------------------------

    def _give_up(self, error: QuantumRuntimeError) -> GiveUp:
        if self._owns():  # not if the answer came too late for a caller that is gone
            self.memory.release(self.memory_key, error if isinstance(error, SubmissionUncertain) else None)
        return GiveUp(error)

    def _uncertain(self, what: str, solution: str, candidates: list[str], **fields: Any) -> SubmissionUncertain:
        return SubmissionUncertain(
            f"{what} Nothing more is sent.",
            solution=solution,
            submission_key=self.key,
            candidates=candidates,
            job_id=candidates[0] if len(candidates) == 1 else None,
            **fields,
        )

    def _where(self) -> str:
        return (
            f"Look for the tag {self.key} in the instance's workloads. If a job is there, pass its id on instead of "
            "submitting, or run the flow again: it attaches to it."
        )

    def _unknown(self, why: str, about: str = "") -> SubmissionUncertain:
        return self._uncertain(
            f"it is not known whether the job was accepted: {why}.",
            f"{self._where()} If none is, run the flow again: it searches first.{about}",
            [],
        )

    def _unanswered(self) -> SubmissionUncertain:
        error = self.lost_error
        times = "1 answer was lost" if self.posts == 1 else f"{self.posts} answers were lost"
        return self._unknown(f"{times} ({error.message if error else 'no answer'})")

    def _refused_later(self, error: QuantumRuntimeError) -> SubmissionUncertain:
        why = (
            "the answer to an earlier request was lost, and after no job was listed, another request was refused: "
            f"{error.message.removesuffix('.')}"
        )
        found = self._unknown(why, f" About the refusal: {error.solution}" if error.solution else "")
        found.__cause__ = error
        return found

    def _unasked(self, error: QuantumRuntimeError) -> SubmissionUncertain:
        return self._unknown(f"searching for it failed: {error.message.removesuffix('.')}")

    def _unseen(self) -> SubmissionUncertain:
        record = self.memory.get(self.memory_key)
        known = [record.ref.id] if record is not None and record.ref is not None else []
        whose = f"job {known[0]}" if known else "a job"
        what = (
            f"the service accepted {whose} under this key, but does not list it after {self.ask.grace:g} s. "
            "The job most likely exists."
        )
        return self._uncertain(
            what, f"{self._where()} If none appears, submit with another submission_key to create a new job.", known
        )

    def _surplus(self, candidates: list[str]) -> SubmissionUncertain:
        return self._uncertain(
            f"it is not known which job is the right one: several carry its key ({', '.join(candidates)}).",
            "Pass the id of the right one on instead of submitting. To free the key, take the tag "
            f"{self.key} off the others (client.replace_tags) or delete them, and run the flow again.",
            candidates,
        )

    def _mismatch(self, job_id: str, difference: str) -> SubmissionUncertain:
        return self._uncertain(
            f"job {job_id} carries this submission's key but is not what was asked for: {difference}.",
            f"If the job is not yours, take the tag {self.key} off it (client.replace_tags) or delete it, and run the "
            "flow again; or submit with another submission_key.",
            [job_id],
        )

    def _unreadable_job(self, job_id: str) -> SubmissionUncertain:
        return self._uncertain(
            f"job {job_id} carries this submission's key, but the service does not show it, so that it cannot be "
            "compared with what was asked for.",
            f"{self._where()} It may take a while until the service shows it.",
            [job_id],
        )
