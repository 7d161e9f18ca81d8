"""Names of task runs are made of ids and names, and of nothing that is not named."""

from __future__ import annotations

from prefect_qruntime.models import JobRef, SessionRef
from prefect_qruntime.tasks.decorators import run_name_of


class Unprintable:
    """Stands for a credentials block, which Prefect prints slowly."""

    def __str__(self) -> str:
        raise AssertionError("printed for nothing")


def test_handles_are_shortened_and_the_rest_is_left_alone():
    name = run_name_of("wait for {job} in {session}")
    handle = JobRef(id="d1abc")
    parameters = {"credentials": Unprintable(), "job": handle, "session": SessionRef(backend="b", mode="dedicated")}
    assert name(parameters) == "wait for d1abc in unbound session"
    assert run_name_of("submit {program_id} → {backend}")({"program_id": "sampler", "backend": "b"}) == (
        "submit sampler → b"
    )
