"""Submission keys: one tag per intent, the same in every repetition of the flow run that has it.

The derived key holds: key version, CRN, the flow run, how many equal submissions came before it, the
canonical payload's digest, and a generation. What is *not* in it decides whether money is safe:

- Equal submissions are counted per payload, not per position, so a flow that submits in another
  order the second time still finds its jobs.
- The flow run is the topmost one in this process: Prefect gives a repeated subflow a new id.
- Neither backend nor session is in it: "least busy" may differ the second time.
"""

from __future__ import annotations

import hashlib

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, JobRef

__all__ = ["explicit_identity", "flow_tag", "key_tag", "next_generation"]

KEY_VERSION = "k1"


_MOST_GENERATIONS = 100


def flow_tag(flow_run_id: str) -> str:
    """The tag that all jobs of a flow run carry.

    Example:
        ```python
        from prefect_qruntime.admission.keys import flow_tag

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
