"""What all tasks have in common: names of their runs, and log lines that go where they can."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest
from prefect.exceptions import ParameterBindError
from prefect.settings import PREFECT_TASKS_DEFAULT_RETRIES, temporary_settings
from prefect.utilities.callables import get_call_parameters

import prefect_qruntime
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef, SessionRef
from prefect_qruntime.prefect_api import NotAwaited
from prefect_qruntime.tasks.definitions import (
    InFlowTask,
    Submission,
    _reaches_prefect,
    blocking,
    creates,
    defaults_of,
    digest_fields,
    repeats,
    run_name_of,
    spec_fields,
)
from prefect_qruntime.tasks.jobs import wait_for_completion
from prefect_qruntime.tasks.submit import asubmit_numbered, submit_numbered


class Unprintable:
    """Stands for a credentials block, which Prefect prints slowly."""

    def __str__(self) -> str:
        raise AssertionError("printed for nothing")


def test_handles_are_shortened_and_the_rest_is_left_alone():
    name = run_name_of("wait for {job} in {session}")
    handle = JobRef(id="d1abc")
    parameters = {"credentials": Unprintable(), "job": handle, "session": SessionRef(backend="b", mode="dedicated")}
    assert name(parameters) == "wait for d1abc in session on b"
    assert run_name_of("submit {program_id} → {backend}")({"program_id": "sampler", "backend": "b"}) == (
        "submit sampler → b"
    )


@pytest.mark.parametrize("submit", [asubmit_numbered, submit_numbered])
@pytest.mark.parametrize("name", [*Submission.__annotations__])
def test_prefect_sees_only_the_given_parameters_of_a_submission(submit: Any, name: str) -> None:
    given = {"backend": "b", name: "given"}
    seen = get_call_parameters(submit.fn, ("credentials", ["pub"]), given)
    assert seen == {
        **{"credentials": "credentials", "pubs": ["pub"], "call_index": None, "replaces": None, "by_route": False},
        "submission": given,
    }
    program = given.get("program_id", "sampler")
    assert submit.task_run_name(seen) == f"submit {program} → {given['backend']}"
    assert submit.isasync is (submit is asubmit_numbered)
    assert isinstance(submit, InFlowTask)


@pytest.mark.parametrize("submit", [asubmit_numbered, submit_numbered])
def test_a_submission_takes_what_prefect_adds_to_each_task(submit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_job(..., wait_for=[...])` reaches Prefect; an unknown parameter is refused before anything is run."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("prefect.task_engine.run_task", lambda **given: seen.update(given))
    submit("credentials", ["pub"], backend="b", wait_for=["f"], return_state=True)
    assert (seen["wait_for"], seen["return_type"]) == (["f"], "state")
    assert seen["parameters"]["submission"] == {"backend": "b"}
    seen.clear()
    with pytest.raises(ParameterBindError, match="shotz"):
        submit("credentials", ["pub"], backend="b", shotz=5)
    assert not seen


def test_parameters_that_are_not_given_mean_what_their_defaults_say():
    """A submission has the same key whether its defaults are spelled out, as in `submit_job`, or left out."""
    left_out = inspect.signature(make_spec).parameters
    declared = spec_fields(Submission(backend="b", **defaults_of(Submission)))
    assert spec_fields(Submission(backend="b"))["route"] == declared["route"]
    for name, default in declared.items() - {("backend", "b"), ("route", declared["route"])}:
        assert left_out[name].default == default, name


@pytest.mark.parametrize(
    ("task_name", "flow_run_id", "sent"),
    [
        (wait_for_completion.name, None, False),
        (wait_for_completion.name, "a-flow-run", True),
        ("a user's own task", None, True),
    ],
)
def test_only_our_own_tasks_outside_flows_keep_their_lines_from_prefect(
    task_name: str, flow_run_id: str | None, sent: bool
) -> None:
    record = logging.makeLogRecord({"name": "prefect.task_runs", "task_name": task_name, "flow_run_id": flow_run_id})
    (ours,) = [one for one in logging.getLogger("prefect.task_runs").filters if one is _reaches_prefect]
    assert ours(record)  # type: ignore[operator]
    assert getattr(record, "send_to_api", True) is sent


TASKS = [name for name in prefect_qruntime.__all__ if isinstance(getattr(prefect_qruntime, name), InFlowTask)]


@pytest.mark.parametrize("given", ["a-key-or-a-name", None, 7, {"api_key": "a-key-or-a-name"}], ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_refuses_what_is_no_credentials_block_and_does_not_show_it(name: str, given: Any) -> None:
    one = getattr(prefect_qruntime, name)
    with pytest.raises(InvalidInput, match="Load it by its name") as caught:
        asyncio.run(one.fn(given)) if inspect.iscoroutinefunction(one.fn) else one.fn(credentials=given)
    assert caught.value.field == "credentials"
    assert "a-key-or-a-name" not in str(caught.value)


def test_a_block_that_is_not_awaited_yet_says_what_to_write() -> None:
    async def load() -> None:
        return None

    with pytest.raises(InvalidInput, match="Write `await"):
        prefect_qruntime.submit_job.fn(NotAwaited(load(), "Write `await …`."))  # type: ignore[arg-type]


def test_a_number_of_retries_in_prefects_settings_changes_no_task():
    async def body(credentials: Any) -> None: ...

    def retries() -> list[int]:
        return [kind("a", "b")(body).retries for kind in (creates, repeats)]

    without = retries()
    with temporary_settings({PREFECT_TASKS_DEFAULT_RETRIES: 7}):
        assert retries() == without
    assert without[0] == 0


@pytest.mark.parametrize("route", [None, "service", "executor", "auto"])
def test_the_digest_of_pubs_needs_no_quantum_program(route: str | None) -> None:
    # What the executor's preparation refuses before a transpilation may be all right behind it.
    text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; u0(1) q[0]; measure q -> c;'
    given: dict[str, Any] = {"backend": "b", "options": {"twirling": {"enable_gates": True}}, "route": route}
    digests = {
        make_spec([text], **digest_fields(spec_fields({**given, "program_id": program}))).digest()
        for program in ("sampler", "executor")
    }
    assert len(digests) == 1
    raw = digest_fields({"backend": "b", "program_id": "executor", "params": {"a": 1}})
    assert raw["program_id"] == "executor"


def test_hooks_on_one_of_the_twins_are_not_on_the_other() -> None:
    @creates("made", "made")
    async def atwin() -> None: ...

    twin = blocking(atwin)
    for one, other in ((twin, atwin), (atwin, twin)):
        for adds in (one.on_completion, one.on_failure, one.on_running, one.on_commit, one.on_rollback):
            adds(lambda *_: None)
        for name in vars(one):
            if name.endswith("_hooks"):
                assert not set(getattr(one, name)) & set(getattr(other, name)), name
