"""`prefect-qruntime server`: what its collector of garbage looks at."""

from __future__ import annotations

import gc

import pytest

from prefect_qruntime.cli import local


class Enough(Exception):
    """The thread has been watched for long enough."""


def test_the_collector_looks_once_at_what_the_start_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def sleep(seconds: float) -> None:
        if done.count("sleep") > 2 * local._START:
            raise Enough
        done.append("sleep")

    monkeypatch.setattr(local.time, "sleep", sleep)
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(gc, "freeze", lambda: done.append("freeze"))
    with pytest.raises(Enough):
        local._collect_for_ever()
    start = ["sleep", "collect", "freeze"] * local._START
    assert done[: len(start)] == start
    assert set(done[len(start) :]) == {"sleep", "collect"}
