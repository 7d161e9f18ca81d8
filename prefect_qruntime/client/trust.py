"""Whether the job list may be asked, and whether it can be believed: pure, the clock is passed in."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from prefect_qruntime.errors import QuantumRuntimeError

__all__ = ["ListTrust"]

log = logging.getLogger("prefect_qruntime.waiting")

_REMEMBERED = 32
_LONGEST_PAUSE = 60.0
_DOWN = 3  # looks without an answer in a row: the service, not a job


@dataclass(slots=True)
class ListTrust:
    """What was learned of the list, and of the service behind it.

    Attributes:
        relist: Seconds for which a list that is refused or behind is left alone.
        behind: How many seconds later than the job itself the list may show its end.
        again: When the list may be asked again.

    Example:
        ```python
        from prefect_qruntime.client.trust import ListTrust
        from prefect_qruntime.errors import PermissionDenied

        trust = ListTrust()
        trust.list_failed(PermissionDenied("no right to list jobs"), now=0.0)
        assert not trust.may_list(now=599.0) and trust.may_list(now=600.0)
        ```
    """

    relist: float = 600.0
    behind: float = 5.0
    again: float = -math.inf
    failures: int = 0
    unanswered: int = 0
    ended: dict[str, float] = field(default_factory=dict)

    def may_list(self, now: float) -> bool:
        """Whether to ask the list."""
        return now >= self.again

    @property
    def is_down(self) -> bool:
        """Whether the service as a whole gives no answers."""
        return self.unanswered >= _DOWN

    def answered(self, now: float) -> None:
        """The service answered something."""
        if self.is_down and self.failures:
            self.again = now  # it is back: one list brings everybody up to date
        self.unanswered = 0

    def list_worked(self, now: float) -> None:
        """A page was read."""
        self.answered(now)
        self.failures = 0

    def list_failed(self, error: Exception, now: float) -> None:
        """A page was not to be had: for a while if refused, with growing pauses in an outage."""
        advice = error.advice if isinstance(error, QuantumRuntimeError) else None
        refused = advice is not None and not advice.may_repeat
        self.failures += 1
        if self.failures == 1:
            log.info("the job list is of no use now (%s): jobs are looked at one by one", error)
        if refused:
            pause = self.relist
            self.answered(now)
        else:
            self.unanswered += 1
            asked = min((advice.seconds if advice else None) or 0.0, self.relist)
            pause = max(min(2.0 ** min(self.failures, 6), _LONGEST_PAUSE), asked)
        self.again = now + pause

    def job_ended(self, job_id: str, now: float) -> None:
        """A look at the job itself showed its end."""
        self.ended[job_id] = now
        if len(self.ended) > _REMEMBERED:
            del self.ended[next(iter(self.ended))]

    def listed_alive(self, job_id: str, asked: float, now: float) -> None:
        """The list, asked for at `asked`, shows the job as not over yet."""
        ended = self.ended.get(job_id)
        if ended is not None and asked > ended + self.behind:
            log.warning("the service's job list is behind: jobs are looked at one by one for a while")
            self.again = now + self.relist
            self.ended.clear()
