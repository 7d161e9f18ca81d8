"""Submission keys: one tag per intent, the same in every repetition of the flow run that has it; and those in use.

The derived key holds: key version, CRN, the flow run, how many equal submissions came before it, the
canonical payload's digest, and a generation. What is *not* in it decides whether money is safe:

- Equal submissions are counted per payload, not per position, so a flow that submits in another
  order the second time still finds its jobs.
- The flow run is the topmost one in this process: Prefect gives a repeated subflow a new id.
- Neither backend nor session is in it: "least busy" may differ the second time.

Two callers of one process that share a key must not both submit. The list of the service cannot distinguish them,
because it may show a new job late; so the process remembers what it sent and what was accepted. The first caller
of a key owns it, the others wait for its outcome.

Pure: no clock and no loop. All calls of a `SubmissionMemory` come from one thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from cachetools import LRUCache

from prefect_qruntime.errors import InvalidInput, SubmissionUncertain
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, Job, JobRef

__all__ = ["Payload", "Record", "SubmissionMemory", "explicit_identity", "flow_tag", "key_tag", "next_generation"]


KEY_VERSION = "k1"


_MOST_GENERATIONS = 100

_KEEP = 8192


def flow_tag(flow_run_id: str) -> str:
    """The tag that all jobs of a flow run carry.

    Example:
        ```python
        from prefect_qruntime.client.submission_keys import flow_tag

        assert flow_tag("0b9f").startswith("qr-flow:")
        ```
    """
    return f"{FLOW_TAG}{flow_run_id}"


def key_tag(crn: str, identity: str, digest: str, *, index: int = 0, generation: int = 0) -> str:
    """The submission key's tag: `qr-key:` and 32 hex digits."""
    parts = (KEY_VERSION, crn, identity, "submit_job", str(index), digest, str(generation))
    return KEY_TAG + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def next_generation(
    replaces: JobRef, crn: str, identity: str, digest: str, *, submitted_so_far: int
) -> tuple[int, int]:
    """Find which of the equal submissions so far a job belongs to, and the generation after the job's.

    Raises:
        InvalidInput: It belongs to none of them; nothing is submitted on a guess.
    """
    for generation in range(_MOST_GENERATIONS):
        for index in range(submitted_so_far):
            if key_tag(crn, identity, digest, index=index, generation=generation) == replaces.submission_key:
                return index, generation + 1
    raise InvalidInput(f"job {replaces.id} does not belong to this submission", field="replaces")


def explicit_identity(submission_key: str) -> str:
    """Check a caller's explicit key, which replaces flow run and count.

    Raises:
        InvalidInput: Empty, too long, or not printable.
    """
    if not isinstance(submission_key, str) or not submission_key.strip():
        raise InvalidInput("must be a text that is not empty", field="submission_key")
    if len(submission_key) > 1000 or not submission_key.isprintable():
        raise InvalidInput("must be at most 1000 printable characters", field="submission_key")
    return f"explicit:{submission_key}"


@dataclass(frozen=True, slots=True)
class Payload:
    """What a job computes, short enough to be kept.

    Attributes:
        shape: Program, number of PUBs, and shots.
        digest: The payload's digest; None if it was not computed or cannot be compared.
    """

    shape: Hashable = None
    digest: str | None = None

    def difference(self, other: Payload) -> str | None:
        """How the other payload differs; None if it does not, as far as is known."""
        if self.shape != other.shape:
            return "it has another program, number of PUBs or shots"
        if self.digest is not None and other.digest is not None and self.digest != other.digest:
            return "it has another payload"
        return None


@dataclass(slots=True)
class Record:
    """What is known about one key.

    Attributes:
        owner: The caller that searches or submits now; None if no caller does.
        sent: When a request ended without an answer for the last time: the job may exist.
        accepted: When the service accepted the job, or showed it.
        ref: The job, once its id is known.
        job: The job as it was listed, if this process found it instead of buying it.
        payload: What was asked for.
        uncertain: Why the last owner gave up, if it did not know whether the job exists.
    """

    owner: Hashable | None = None
    sent: float | None = None
    accepted: float | None = None
    ref: JobRef | None = None
    job: Job | None = None
    payload: Payload | None = None
    uncertain: SubmissionUncertain | None = None
    waiting: list[Callable[[], None]] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        """Whether forgetting it would lose knowledge."""
        return self.sent is not None or self.accepted is not None


class SubmissionMemory:
    """The records of all keys, bounded: owned ones are never dropped, settled ones least recently used first.

    Args:
        keep: Most settled records.
    """

    def __init__(self, keep: int = _KEEP) -> None:
        self._owned: dict[Hashable, Record] = {}
        self._settled: LRUCache[Hashable, Record] = LRUCache(keep)

    def get(self, key: Hashable) -> Record | None:
        """The record of a key, if there is one."""
        return self._owned.get(key) or self._settled.get(key)

    def claim(self, key: Hashable, owner: Hashable) -> Record:
        """Make `owner` the one caller that searches and submits. The key must not be owned."""
        record = self._settled.pop(key, None) or Record()
        record.owner, record.uncertain = owner, None
        self._owned[key] = record
        return record

    def note(self, key: Hashable) -> Record:
        """Return the record of a key, made if there is none, to record the outcome of a request."""
        record = self.get(key)
        if record is None:
            record = self._settled[key] = Record()
        return record

    def release(self, key: Hashable, uncertain: SubmissionUncertain | None = None) -> None:
        """End the ownership and wake the callers that wait for it."""
        record = self._owned.pop(key)
        record.owner, record.uncertain = None, uncertain
        waiting, record.waiting = record.waiting, []
        if record.says_something or waiting:
            self._settled[key] = record
        for wake in waiting:
            wake()

    def when_released(self, key: Hashable, wake: Callable[[], None]) -> None:
        """Call `wake` when the key has no owner any more; at once if it has none."""
        record = self._owned.get(key)
        if record is None:
            wake()
        else:
            record.waiting.append(wake)

    def forget(self) -> None:
        """Drop all settled records, for tests that reset the service."""
        self._settled.clear()

    def __len__(self) -> int:
        return len(self._owned) + len(self._settled)
