"""The names of blocks and other lists that operators give: wrong ones are refused by name before anything is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations import doctor, job_listing, session_listing, sweep, usage
from prefect_qruntime.suspend import watcher

TAKES_BLOCKS: dict[str, Callable[[Any], Any]] = {
    "doctor": doctor.run_doctor,
    "jobs": job_listing.list_jobs,
    "sessions": session_listing.list_sessions,
    "close": lambda blocks: session_listing.close_by_id("session-1", blocks),
    "sweep": sweep.run_sweep,
    "usage": usage.report_usage,
    "watch": lambda blocks: watcher.run_watch(blocks, once=True),
}


@pytest.mark.parametrize(
    "blocks", ["ibm", b"ibm", 7, [None], [3, "ibm"], [b"ibm"], [["ibm"]], [""], ["ibm", ""]], ids=repr
)
@pytest.mark.parametrize("command", TAKES_BLOCKS)
def test_what_is_no_list_of_names_is_refused(command: str, blocks: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        TAKES_BLOCKS[command](blocks)
    assert refused.value.field == "blocks"


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("state", lambda: job_listing.list_jobs(states="queued")),
        ("state", lambda: job_listing.list_jobs(states=[3])),  # type: ignore[list-item]
        ("state", lambda: job_listing.list_jobs(states=3)),  # type: ignore[arg-type]
        ("since", lambda: job_listing.list_jobs(since=5)),  # type: ignore[arg-type]
        ("since", lambda: usage.report_usage(since=None)),  # type: ignore[arg-type]
        ("until", lambda: usage.report_usage(until=b"7d")),  # type: ignore[arg-type]
        ("by", lambda: usage.report_usage(by="deployment")),
        ("by", lambda: usage.report_usage(by=3)),  # type: ignore[arg-type]
        ("drain", lambda: session_listing.close_by_id("session-1", drain="no")),  # type: ignore[arg-type]
        ("once", lambda: watcher.run_watch(once="no")),  # type: ignore[arg-type]
    ],
)
def test_other_arguments_of_the_wrong_type_are_refused(field: str, call: Callable[[], Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        call()
    assert refused.value.field == field
