"""Choose the pages of the job list that show certain jobs, and decide when the list may be read: pure.

Facts (IBM's OpenAPI document 0.45.3): `GET /jobs` is sorted by creation, newest first, shows at most 200
jobs a page and takes `created_before` and `offset`. Nothing is said about filtering by several ids, so
a page is requested if it shows enough wanted jobs together; the others are left for single lookups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cachetools import LRUCache

from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import get_logger

__all__ = ["LARGEST_PAGE", "JobListBreaker", "JobListPager", "Page"]

LARGEST_PAGE = 200
_SMALLEST_PAGE = 20
_POOR = 2  # a page that shows fewer wanted jobs is no better than single lookups
_POOR_PAGES = 3
_RICH = 10  # a page is rich if one job in this many was wanted


@dataclass(frozen=True, slots=True)
class Page:
    """One list call: at most `limit` jobs created before a moment, from `offset` on."""

    limit: int
    offset: int = 0
    created_before: datetime | None = None


class JobListPager:
    """Walks through the list, newest first, and skips stretches without wanted jobs.

    Args:
        wanted: Ids with the moment of creation as the service gave it; None if it is not known
            yet, which is looked for on the newest page, and on further ones while they show many.

    Example:
        ```python
        from prefect_qruntime.client.waiting.job_list import JobListPager

        walk = JobListPager([("d1", None), ("d2", None)])
        page = walk.next()
        assert page is not None and page.created_before is None
        walk.took(["d2", "d1"], oldest=None)
        assert walk.next() is None and not walk.left
        ```
    """

    def __init__(self, wanted: Iterable[tuple[str, datetime | None]]) -> None:
        known: dict[str, datetime] = {}
        fresh: set[str] = set()
        for job_id, created in wanted:
            if created is None:
                fresh.add(job_id)
            else:
                known[job_id] = created
        self._known = dict(sorted(known.items(), key=lambda item: item[1], reverse=True))
        self._fresh = fresh
        self._unseen: set[str] = set()
        size = len(known) + len(fresh)
        self._limit = min(LARGEST_PAGE, max(_SMALLEST_PAGE, 2 * size + 10))
        self._pages_left = 4 + 4 * size // self._limit
        self._poor = 0
        self._span: timedelta | None = None  # the time that a page covered
        self._page: Page | None = self._jump() if size else None

    @property
    def left(self) -> set[str]:
        """Ids that no page has shown so far."""
        return self._unseen | self._fresh | self._known.keys()

    def next(self) -> Page | None:
        """The page to read now, or None when the list has no more to give."""
        return self._page

    def took(self, ids: Iterable[str], *, oldest: datetime | None, newest: datetime | None = None) -> None:
        """Record what the page showed.

        Args:
            ids: All ids on it.
            oldest: When its last job was created; None if unknown.
            newest: When its first job was created.
        """
        page, shown = self._page, list(ids)
        if page is None:
            return
        before = len(self._known) + len(self._fresh)
        for job_id in shown:
            self._known.pop(job_id, None)
            self._fresh.discard(job_id)
            self._unseen.discard(job_id)
        found = before - len(self._known) - len(self._fresh)
        ended = len(shown) < page.limit or oldest is None
        if ended or len(self._fresh) < _POOR or found < page.limit // _RICH:
            # A new job is on the newest page, or not listed yet. Only if many were created at one moment, and the
            # pages are full of them, do the next ones show more.
            self._unseen |= self._fresh
            self._fresh = set()
        self._poor = 0 if found >= _POOR else self._poor + 1
        self._pages_left -= 1
        if oldest is not None:
            # The page covered their time and did not show them.
            passed = [job_id for job_id, created in self._known.items() if created > oldest + _grain(created)]
            for job_id in passed:
                del self._known[job_id]
                self._unseen.add(job_id)
        if newest is not None and oldest is not None:
            self._span = newest - oldest
        if ended or not (self._known or self._fresh) or self._poor >= _POOR_PAGES or self._pages_left <= 0:
            self._page = None
        elif not self._fresh and oldest is not None and self._first() < oldest - 2 * _grain(self._first()):
            self._leave_lonely()
            self._page = self._jump() if self._known else None
        else:  # many jobs of one moment: only the offset leads on
            self._page = Page(page.limit, page.offset + len(shown), page.created_before)

    def _first(self) -> datetime:
        return next(iter(self._known.values()))

    def _leave_lonely(self) -> None:
        """Pass over jobs that would be alone on their page, if the list is as thick there as where it was read."""
        if self._span is None:
            return
        known = list(self._known.items())
        for place, (job_id, created) in enumerate(known):
            if place + 1 < len(known) and created - known[place + 1][1] <= self._span:
                return
            del self._known[job_id]
            self._unseen.add(job_id)

    def _jump(self) -> Page:
        if self._fresh:
            return Page(self._limit)
        return Page(self._limit, 0, self._first() + _grain(self._first()))


def _grain(moment: datetime) -> timedelta:
    """How far apart two moments with the same text may be."""
    return timedelta(milliseconds=1) if moment.microsecond else timedelta(seconds=1)


log = get_logger(__name__)

_REMEMBERED = 32
_LONGEST_PAUSE = 60.0
_DOWN = 3  # requests without an answer in a row: it is the service, not one job


@dataclass(slots=True)
class JobListBreaker:
    """Circuit breaker for the job list.

    Attributes:
        relist: Seconds for which a list that is refused or stale is not read again.
        behind: How many seconds later than the job itself the list may show its end.
        again: When the list may be read again.

    Example:
        ```python
        from prefect_qruntime.client.waiting.job_list import JobListBreaker
        from prefect_qruntime.errors import PermissionDenied

        breaker = JobListBreaker()
        breaker.list_failed(PermissionDenied("no right to list jobs"), now=0.0)
        assert not breaker.may_list(now=599.0) and breaker.may_list(now=600.0)
        ```
    """

    relist: float = 600.0
    behind: float = 5.0
    again: float = -math.inf
    failures: int = 0
    unanswered: int = 0
    ended: LRUCache[str, float] = field(default_factory=lambda: LRUCache(_REMEMBERED))

    def may_list(self, now: float) -> bool:
        """Whether the list may be read."""
        return now >= self.again

    @property
    def is_down(self) -> bool:
        """Whether the service as a whole gives no answers."""
        return self.unanswered >= _DOWN

    def answered(self, now: float) -> None:
        """The service answered something."""
        if self.is_down and self.failures:
            self.again = now  # it is back: one list call brings all waits up to date
        self.unanswered = 0

    def list_worked(self, now: float) -> None:
        """A page was read."""
        self.answered(now)
        self.failures = 0

    def list_failed(self, error: Exception, now: float) -> None:
        """A page could not be read: wait for long if refused, with growing pauses in an outage."""
        advice = error.advice if isinstance(error, QuantumRuntimeError) else None
        refused = advice is not None and not advice.may_repeat
        self.failures += 1
        if self.failures == 1:
            log.info("The job list cannot be used now (%s). Jobs are polled one by one.", error)
        if refused:
            pause = self.relist
            self.answered(now)
        else:
            self.unanswered += 1
            asked = min((advice.seconds if advice else None) or 0.0, self.relist)
            pause = max(min(2.0 ** min(self.failures, 6), _LONGEST_PAUSE), asked)
        self.again = now + pause

    def job_ended(self, job_id: str, now: float) -> None:
        """A lookup of the job itself showed its end."""
        self.ended[job_id] = now

    def listed_alive(self, job_id: str, asked: float, now: float) -> None:
        """The list, requested at `asked`, shows a job as not over yet."""
        ended = self.ended.get(job_id)
        if ended is not None and asked > ended + self.behind:
            log.warning("The service's job list lags behind. Jobs are polled one by one for a while.")
            self.again = now + self.relist
            self.ended.clear()
