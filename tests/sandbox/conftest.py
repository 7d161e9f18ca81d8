"""Callers of the sandbox's REST API, and a sandbox whose jobs take no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from prefect_qruntime.sandbox import Sandbox
from tests.support.sandbox_api import Api


@pytest.fixture
def fast(qruntime_sandbox: Sandbox) -> Sandbox:
    """The sandbox with jobs that take no time of their own."""
    qruntime_sandbox.control.set_times(queue_time=0, run_time=0)
    return qruntime_sandbox


@pytest.fixture
def make(qruntime_sandbox: Sandbox) -> Iterator[Callable[..., Api]]:
    """Make callers; their connections are closed after the test."""
    made: list[Api] = []

    def one(dialect: str = "cloud", user: int = 0) -> Api:
        made.append(Api(qruntime_sandbox, dialect, user))
        return made[-1]

    yield one
    for api in made:
        api.http.close()


@pytest.fixture
def cloud(make: Callable[..., Api]) -> Api:
    return make()


@pytest.fixture
def legacy(make: Callable[..., Api]) -> Api:
    return make("legacy")
