"""What cannot be right is refused by name before anything is sent, whichever task gets it."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from prefect import Task, flow, task, unmapped
from prefect.states import Completed

import prefect_qruntime
from prefect_qruntime import (
    InvalidInput,
    JobRef,
    QuantumRuntimeCredentials,
    QuantumRuntimeError,
    SessionRef,
    asubmit_job,
    cancel_job,
    close_session,
    fetch_results,
    list_backends,
    open_session,
    select_backend,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.operations.job_listing import list_jobs
from prefect_qruntime.operations.session_listing import close_by_id, list_sessions
from prefect_qruntime.operations.sweep import resume_flow_run, run_sweep
from prefect_qruntime.operations.usage import report_usage
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.watcher import run_watch
from prefect_qruntime.tasks.definitions import check_depth
from tests.support.flow_runs import BACKEND, FLIP, ran, run

pytestmark = pytest.mark.server

INJECTIONS = ["../instance", "d1/cancel", "d1?x=1", "d1#", "d1\r\nX-Evil: 1", "", "d1 d2", "%2e%2e", "d" * 300]

SUBMISSIONS: list[tuple[str, dict[str, Any]]] = [
    ("pubs", {"pubs": None}),
    ("pubs", {"pubs": []}),
    ("pubs[0]", {"pubs": ["print('no circuit')"]}),
    ("pubs[0]", {"pubs": [42]}),
    ("pubs[1]", {"pubs": [FLIP, ""]}),
    ("pubs[0]", {"pubs": [(FLIP, None, 0)]}),
    ("shots", {"shots": 0}),
    ("shots", {"shots": "many"}),
    ("shots", {"shots": True}),
    ("tags[0]", {"tags": ["x" * 87]}),
    ("tags[6]", {"tags": [f"t{number}" for number in range(7)]}),
    ("tags[0]", {"tags": ["qr-key:0123"]}),
    ("tags", {"tags": "one"}),
    ("max_execution_time", {"max_execution_time": 0}),
    ("max_execution_time", {"max_execution_time": 10_801}),
    ("backend", {"backend": "a/b"}),
    ("backend", {"backend": ""}),
    ("program_id", {"program_id": "../x"}),
    ("program_id", {"program_id": "noise-learner"}),
    ("options", {"options": {"no_such_option": 1}}),
    ("params", {"params": [1], "pubs": None}),
    ("pubs", {"params": {"a": 1}}),
    ("private", {"private": "yes"}),
    ("submission_key", {"submission_key": " "}),
    ("submission_key", {"submission_key": "x" * 1001}),
    *(("session", {"session": text}) for text in INJECTIONS),
    ("session", {"session": 7}),
    ("session", {"session": SessionRef(id="../x")}),
    ("session", {"session": SessionRef(token="of-another-process")}),
]


@pytest.mark.parametrize(("field", "wrong"), SUBMISSIONS)
def test_a_submission_that_cannot_be_right(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, field: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        submit_job.fn(credentials, **{"pubs": [FLIP], "backend": BACKEND, **wrong})
    assert caught.value.field is not None
    assert caught.value.field.startswith(field), str(caught.value)
    assert field.split("[")[0] in str(caught.value)
    assert sandbox.control.journal() == []


def test_the_async_twin_and_mapped_calls_refuse_the_same(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(asubmit_job.fn(credentials, [FLIP], backend=BACKEND, shots=0))
    assert caught.value.field == "shots"

    from prefect import flow, unmapped

    @flow
    def mapped() -> Any:
        return submit_job.map(unmapped(credentials), [FLIP, "nonsense"], backend=BACKEND, shots=0).result()

    _, state = ran(mapped)
    with pytest.raises(InvalidInput):
        run(state.aresult())
    assert sandbox.control.journal() == []


@pytest.mark.parametrize("job", [*INJECTIONS, None, 7, JobRef(id="../x")])
@pytest.mark.parametrize("task", [wait_for_completion, fetch_results, cancel_job])
def test_what_names_no_job(sandbox: Sandbox, credentials: QuantumRuntimeCredentials, task: Any, job: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        task.fn(credentials, job)
    assert caught.value.field == "job"
    assert sandbox.control.journal() == []


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("mode", lambda c: open_session.fn(c, BACKEND, mode="forever")),
        ("max_ttl", lambda c: open_session.fn(c, BACKEND, max_ttl=0)),
        ("max_ttl", lambda c: open_session.fn(c, BACKEND, max_ttl=True)),
        *(("max_ttl", lambda c, ttl=ttl: open_session.fn(c, BACKEND, max_ttl=ttl)) for ttl in (2**31, 2**63, 10**30)),
        ("backend", lambda c: open_session.fn(c, "a/b")),
        ("backend", lambda c: open_session.fn(c, None)),
        ("session", lambda c: close_session.fn(c, "../jobs")),
        ("session", lambda c: close_session.fn(c, None)),
        ("timeout", lambda c: wait_for_completion.fn(c, "d1", timeout=0)),
        ("timeout", lambda c: wait_for_completion.fn(c, "d1", timeout=float("nan"))),
        ("queue_timeout", lambda c: wait_for_completion.fn(c, "d1", queue_timeout=-1)),
        ("on_timeout", lambda c: wait_for_completion.fn(c, "d1", on_timeout="panic")),
        ("stream", lambda c: wait_for_completion.fn(c, "d1", stream="maybe")),
        *(
            ("min_qubits", lambda c, task=task, wrong=wrong: task.fn(c, min_qubits=wrong))
            for task in (list_backends, select_backend)
            for wrong in ("5", 1.5, True, [5])
        ),
        *(
            ("simulator", lambda c, task=task, wrong=wrong: task.fn(c, simulator=wrong))
            for task in (list_backends, select_backend)
            for wrong in ("false", 1, [])
        ),
        *(
            ("status", lambda c, wrong=wrong: list_backends.fn(c, status=wrong))
            for wrong in ("onlin", "Online", "", True, ["online"])
        ),
    ],
)
def test_other_arguments(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, field: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(credentials)
    assert caught.value.field == field
    assert sandbox.control.journal() == []


def fields_of(one: Any) -> set[str]:
    """The parameters of a function or a task, or the fields of a block."""
    return set(one.model_fields if isinstance(one, type) else inspect.signature(one).parameters)


WITH_CREDENTIALS = {
    name: one
    for name in prefect_qruntime.__all__
    if (isinstance(one := getattr(prefect_qruntime, name), Task) or inspect.isfunction(one))
    and "credentials" in fields_of(one)
}
"""Every public function and task that takes a credentials block."""


@pytest.mark.parametrize("name", WITH_CREDENTIALS)
@pytest.mark.parametrize("wrong", ["ibm", None, {"api_key": "not-shown"}], ids=["name", "None", "dict"])
def test_what_is_no_credentials_block_is_refused(sandbox: Sandbox, name: str, wrong: Any) -> None:
    one = WITH_CREDENTIALS[name]
    others = {"pubs": [FLIP], "backend": BACKEND, "job": "d1", "session": "s1"}
    parameters = inspect.signature(one).parameters
    given = {
        field: value
        for field, value in others.items()
        if field in parameters and (field == "pubs" or parameters[field].default is inspect.Parameter.empty)
    }

    async def entered(block: Any) -> None:
        async with block:
            pass

    def call() -> None:
        made = getattr(one, "fn", one)(wrong, **given)
        if inspect.isawaitable(made):
            run(made)
        elif hasattr(made, "__aenter__"):
            run(entered(made))
        elif hasattr(made, "__enter__"):
            made.__enter__()

    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == "credentials"
    assert "load_credentials" in str(caught.value)
    assert "not-shown" not in str(caught.value)
    assert sandbox.control.journal() == []


WAITS: dict[str, list[Any]] = {
    "timeout": [0, -1, "60", float("nan"), True, [5]],
    "queue_timeout": [0, -0.5, "soon", float("nan"), True, {}],
    "on_timeout": ["kill", "", None, True, ["leave"]],
    "stream": ["sometimes", "", None, False, ("auto",)],
}
"""Wrong values of what a wait takes."""

AFTERWARDS = {"resubmit": [-1, 11, True, "1", None], "require_approval_above": [-1, float("nan"), "1", True]}
"""Wrong values of what else says how a whole job goes on."""

BUY_AND_WAIT = {
    name: one
    for name in prefect_qruntime.__all__
    if callable(one := getattr(prefect_qruntime, name))
    and (isinstance(one, Task) or inspect.isfunction(one) or hasattr(one, "model_fields"))
    and {"pubs", "timeout"} <= fields_of(one)
}
"""Everything public that submits and then waits."""


def test_the_functions_that_submit_and_wait_are_found_and_take_what_a_wait_takes() -> None:
    known = {"run_job", "arun_job", "compare_routes", "acompare_routes", "QuantumRuntimeJob"}
    assert known <= set(BUY_AND_WAIT)
    assert fields_of(wait_for_completion) - {"credentials", "job"} == set(WAITS)
    for one in BUY_AND_WAIT.values():
        assert fields_of(one) >= set(WAITS)


@pytest.mark.parametrize(
    ("name", "field", "wrong"),
    [
        pytest.param(name, field, wrong, id=f"{name}-{field}-{wrong!r}")
        for name, one in BUY_AND_WAIT.items()
        for field, values in {**WAITS, **AFTERWARDS}.items()
        if field in fields_of(one)
        for wrong in values
    ],
)
def test_what_a_wait_would_refuse_is_refused_before_the_purchase(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, name: str, field: str, wrong: Any
) -> None:
    one = BUY_AND_WAIT[name]
    given = {"pubs": [FLIP], "backend": BACKEND}

    def buy() -> Any:
        if isinstance(one, type):  # a block of whatever origin: the form and pydantic refuse some of it before
            block: Any = one(credentials=credentials, **given)
            block.__dict__[field] = wrong
            return run(block.trigger())
        made = one(credentials, **given, **{field: wrong})
        return run(made) if inspect.isawaitable(made) else made

    with pytest.raises(InvalidInput) as caught:
        buy()
    assert caught.value.field == field
    assert sandbox.control.journal() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crn", "not a crn"),
        ("crn", "crn:v1:bluemix:public:quantum-computing:us-east:a/1:2::\r\nX-Evil: 1"),
        ("crn", "crn:v1:bluemix:public:quantum-computing:evil.example/:a/1:2::"),
        ("crn", "crn:v1:bluemix:public:quantum-computing:us-east@evil.example#:a/1:2::"),
        ("base_url", "http://quantum.example/api"),
        ("base_url", "ftp://127.0.0.1/"),
        ("base_url", "https://user:password@quantum.example"),
        ("iam_url", "http://iam.example"),
        ("api_version", "today"),
        ("application", "mine\r\nX-Evil: 1"),
        ("api_key", ""),
        ("api_key", "key\nX-Evil: 1"),
    ],
)
def test_credentials_that_cannot_be_right(sandbox: Sandbox, field: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        QuantumRuntimeCredentials(**{**sandbox.connection(), field: value}).get_client()
    assert caught.value.field == field
    assert sandbox.control.journal() == []


def test_a_register_that_qiskit_cannot_name_is_warned_of(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    circuit = FLIP.replace("bit[1] c", "bit[1] values").replace("c[0]", "values[0]").replace("c = ", "values = ")
    assert "values" in circuit

    @flow
    def submitted() -> str:
        return submit_job(credentials, [circuit], backend=BACKEND).id

    with caplog.at_level("WARNING"):
        submitted()
    assert "pubs[0].circuit has a register named 'values'." in caplog.text


FLAGS = {
    (name, flag): one
    for name in prefect_qruntime.__all__
    if isinstance(one := getattr(prefect_qruntime, name), Task)
    for flag, parameter in inspect.signature(one).parameters.items()
    if isinstance(parameter.default, bool)
}
"""What a task takes as True or False."""


def test_the_flags_of_tasks_are_found() -> None:
    known = {"check_isa", "transpile", "require_online", "private", "dry_run"}
    assert {("submit_job", flag) for flag in known} | {("aclose_session", "drain")} <= set(FLAGS)


@pytest.mark.parametrize("wrong", ["false", "", 0, 1, None], ids=repr)
@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_a_text_in_place_of_true_or_false_is_refused(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, name: str, flag: str, wrong: Any
) -> None:
    """A form without types gives the text "false", which Python takes for true."""
    task, needed = FLAGS[name, flag], {"pubs": [FLIP], "backend": BACKEND, "session": "s1"}
    arguments = {one: value for one, value in needed.items() if one in inspect.signature(task).parameters}

    async def call() -> None:
        answer = task.fn(credentials, **arguments, **{flag: wrong})
        if inspect.isawaitable(answer):
            await answer

    with pytest.raises(InvalidInput) as caught:
        run(call())
    assert caught.value.field == flag
    assert sandbox.control.journal() == []


def test_numpy_gives_flags_and_whole_numbers_too(credentials: QuantumRuntimeCredentials) -> None:
    numpy = pytest.importorskip("numpy")
    found = list_backends.fn(credentials, min_qubits=numpy.array([3, 30]).max())
    assert found == list_backends.fn(credentials, min_qubits=30) != []
    given: Any = {"transpile": numpy.float64(2) > 1, "private": numpy.bool_(False)}
    assert submit_job.fn(credentials, [FLIP], backend=BACKEND, **given).private is False
    session = open_session.fn(credentials, BACKEND)
    assert close_session.fn(credentials, session, drain=numpy.bool_(False)).state == "closed"


@pytest.mark.parametrize(
    ("flag", "call"),
    [
        ("cancel_jobs", lambda wrong: run_sweep(["one"], cancel_jobs=wrong)),
        ("dry_run", lambda wrong: run_sweep(["one"], dry_run=wrong)),
        ("force", lambda wrong: resume_flow_run("00000000-0000-0000-0000-000000000000", force=wrong)),
    ],
)
def test_a_text_in_place_of_true_or_false_starts_no_operation(flag: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        call("false")
    assert caught.value.field == flag


@pytest.mark.parametrize(
    "call",
    [
        run_sweep,
        list_jobs,
        list_sessions,
        report_usage,
        functools.partial(run_watch, once=True),
        functools.partial(close_by_id, "session-1"),
    ],
)
def test_an_empty_list_of_blocks_is_not_taken_for_instances_where_nothing_is_wrong(call: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInput, match="no name is given") as caught:
        call(blocks=[])
    assert caught.value.field == "blocks"


CALLS = {
    name: one
    for name in prefect_qruntime.__all__
    if (isinstance(one := getattr(prefect_qruntime, name), Task) or inspect.isfunction(one))
    and f"a{name}" not in prefect_qruntime.__all__
}
"""Every public function and task; of a pair the async one."""


def deep(kind: str) -> Any:
    value: Any = 1
    for _ in range(5000):
        value = {"a": value} if kind == "dict" else [value]
    return value


NEVER_RIGHT = [object(), -1, "../\ud800", float("nan"), deep("list"), deep("dict"), {"x": object()}]


@pytest.mark.parametrize("name", CALLS)
def test_an_error_names_a_parameter_of_what_was_called(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, name: str
) -> None:
    """Each parameter gets what is never right, also what is nested too deeply to be visited or shown."""
    one = CALLS[name]
    parameters = inspect.signature(one).parameters
    needed = {"credentials": credentials, "pubs": [FLIP], "backend": BACKEND, "job": "d1", "session": "s1", "above": 1}
    given = {field: needed.get(field) for field, one in parameters.items() if one.default is one.empty}

    async def call(**arguments: Any) -> None:
        made = one(**arguments)
        if hasattr(made, "__aenter__"):
            async with made:
                return
        if inspect.isawaitable(made):
            await made

    said: list[str] = []
    pubs = {"pubs": [FLIP]} if "pubs" in parameters else {}
    for field in parameters.keys() - {"field"}:  # which is itself a name
        for wrong in NEVER_RIGHT:
            arguments = {**(pubs if field != "params" else {}), **given, field: wrong}
            try:
                run(call(**arguments))
            except InvalidInput as error:
                said.append(error.field or "none")
            except QuantumRuntimeError:  # the service's own word, for instance that there is no such backend
                pass
    assert said or not parameters
    assert {re.split(r"[.\[]", field)[0] for field in said} <= parameters.keys()


def test_what_a_shared_list_or_one_within_itself_holds_is_not_visited_twice(
    credentials: QuantumRuntimeCredentials,
) -> None:
    shared: Any = [1]
    for _ in range(60):
        shared = [shared, shared]
    endless: Any = []
    endless.append(endless)
    for wrong in (endless, [endless], {"a": endless}):
        with pytest.raises(InvalidInput, match="nested deeper than") as caught:
            submit_job(credentials, [FLIP], backend=BACKEND, tags=wrong)
        assert caught.value.field == "tags"
    check_depth(submit_job, (credentials, shared), {})


@pytest.mark.parametrize(
    "name", sorted(n for n in prefect_qruntime.__all__ if isinstance(getattr(prefect_qruntime, n), Task))
)
@pytest.mark.parametrize("items", [2, "as many as the block has fields"])
def test_what_is_mapped_by_mistake_is_told_what_to_write(
    credentials: QuantumRuntimeCredentials, name: str, items: Any
) -> None:
    made: Any = getattr(prefect_qruntime, name)
    number = items if isinstance(items, int) else len(list(credentials))
    with pytest.raises(InvalidInput, match=r"unmapped\(") as caught:
        made.map(credentials, ["x"] * number)
    assert caught.value.field == "credentials"


def test_a_state_is_mapped_over_what_it_holds(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    """Before: it was taken for one model for all calls, and refused."""

    @task
    def circuits() -> list[Any]:
        return [[FLIP], [FLIP]]

    @flow
    def mapped() -> list[str]:
        pubs: Any = circuits(return_state=True)
        found = submit_job.map(unmapped(credentials), pubs, backend=BACKEND, return_state=True)
        ids = [state.result().id for state in found]
        assert wait_for_completion.map(unmapped(credentials), Completed(data=ids)).result()
        return ids

    assert sorted(mapped()) == sorted(job["id"] for job in sandbox.control.jobs())
    assert len(sandbox.control.jobs()) == 2


def test_mapped_arguments_of_different_lengths_are_named(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    """Before: Prefect's error named a parameter that users do not know."""

    @flow
    def mapped() -> None:
        submit_job.map(unmapped(credentials), [[FLIP], [FLIP]], backend=BACKEND, tags=["a", "b", "c"])

    with pytest.raises(InvalidInput, match="pubs: 2, tags: 3") as caught:
        mapped()
    assert "unmapped(" in str(caught.value)
    assert "call_index" not in str(caught.value)
    assert caught.value.field == "tags"
    assert not sandbox.control.jobs()


@pytest.mark.parametrize("name", ["run_circuits", "parameter_sweep", "vqe_session", "angles_to_table", "leave"])
@pytest.mark.parametrize("field", ["budget_block", "credentials_block"])
def test_an_error_in_a_flow_names_the_field_of_its_form(sandbox: Sandbox, blocks: Any, name: str, field: str) -> None:
    module = importlib.import_module(f"prefect_qruntime.flows.{'leave_and_collect' if name == 'leave' else name}")
    given = {"credentials_block": blocks("cloud"), field: "no-such-block"}
    if name == "leave":
        given |= {"circuit": FLIP, "backend": BACKEND}
    _, state = ran(getattr(module, name), **given)
    with pytest.raises(InvalidInput, match=f"{field}: no Quantum Runtime .* block is named") as caught:
        run(state.aresult())
    assert caught.value.field == field
