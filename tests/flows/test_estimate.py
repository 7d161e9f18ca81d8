"""Estimates from the pages of finished jobs, and approvals that are asked for once and buy once."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow, flow, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.responses import SetStateStatus

import flows
import prefect_qruntime as qr
from flows.angles_to_table import angles_to_table
from flows.leave_and_collect import leave
from flows.parameter_sweep import parameter_sweep
from flows.run_circuits import run_circuits
from flows.run_saved_job import run_saved_job
from flows.vqe_session import vqe_session
from prefect_qruntime.cli.jobs import estimate as estimate_command
from prefect_qruntime.client.cost_core import COVERAGE, ENOUGH
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import ApprovalDenied, InvalidInput
from prefect_qruntime.observability.artifacts import upsert
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks import estimate as module
from tests.flows.test_resubmit import THEIRS
from tests.flows.test_suspend import deployed, done, history
from tests.support.flow_runs import BACKEND, FLIP, ran, records, requests, start, state_of, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
PARAMETERS: dict[str, Any] = {"backend": BACKEND, "shots": 100, "max_execution_time": 50}


@pytest.fixture
def block(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_FRESH", 0.0)
    name = f"estimate-{uuid4().hex[:8]}"
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"), application=name).save(name)
    return name


def posts(sandbox: Sandbox) -> int:
    return requests(sandbox, "POST", "/jobs")


def approve(flow_run: Any, **answer: Any) -> Any:
    return asked(lambda client: client.resume_flow_run(flow_run.id, run_input=answer or None))


def paused(name: str) -> Any:
    """The flow run of a name if it waits for an answer."""
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    found = asked(lambda client: client.read_flow_runs(flow_run_filter=wanted))
    return next((one for one in found if one.state is not None and one.state.is_paused()), None)


@flow(**qr.hooks.cancel)
def asks(credentials_block: str, above: float) -> int:
    credentials = qr.load_credentials(credentials_block)
    cost = qr.estimate_cost(credentials, [FLIP], **PARAMETERS)
    qr.require_approval(cost, above=above)
    job = qr.submit_job(credentials, [FLIP], **PARAMETERS)
    qr.suspend_until_done(credentials, job)
    return qr.fetch_results(credentials, job).counts()["1"]


@flow
def runs_a_job(credentials_block: str, above: float | None) -> int:
    credentials = qr.load_credentials(credentials_block)
    return qr.run_job(credentials, [FLIP], require_approval_above=above, **PARAMETERS).counts()["1"]


@flow
def runs_misspelt(credentials_block: str) -> None:
    wanted = {**PARAMETERS, "backend": "sandbox_ideall"}
    qr.run_job(qr.load_credentials(credentials_block), [FLIP], require_approval_above=0, **wanted)


@flow
async def runs_two_jobs(credentials_block: str, above: float) -> int:
    credentials = await qr.aload_credentials(credentials_block)
    found = 0
    for _ in range(2):
        result = await qr.arun_job(credentials, [FLIP], require_approval_above=above, **PARAMETERS)
        found += result.counts()["1"]
    return found


@flow
async def triggers(job_block: str) -> int:
    run = await (await qr.QuantumRuntimeJob.aload(job_block)).trigger()  # type: ignore[misc]
    await run.wait_for_completion()
    return (await run.fetch_result()).counts()["1"]


def test_an_approved_flow_run_asks_once_and_buys_once_however_often_it_is_resumed(sandbox: Sandbox, block: str) -> None:
    sandbox.control.hold()
    flow_run = deployed(asks, credentials_block=block, above=0)
    assert start(asks, flow_run).name == "Suspended"
    assert posts(sandbox) == 0
    # A mere resume is no approval.
    assert approve(flow_run).status is not SetStateStatus.ACCEPT
    assert state_of(flow_run).name == "Suspended"
    assert approve(flow_run, approve=True, comment="for the paper").status is SetStateStatus.ACCEPT
    assert start(asks, flow_run).name == "Suspended", "now for its job"
    assert posts(sandbox) == 1
    done(sandbox)
    asked(lambda client: client.resume_flow_run(flow_run.id))
    state = start(asks, flow_run)
    assert state.is_completed()
    assert posts(sandbox) == 1
    assert history(flow_run).count("Suspended") == 2
    sandbox.control.release()


def test_a_refusal_ends_the_flow_run_and_buys_nothing(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(runs_a_job, credentials_block=block, above=0)
    assert start(runs_a_job, flow_run).name == "Suspended"
    approve(flow_run, approve=False, comment="too much")
    state = start(runs_a_job, flow_run)
    assert state.is_failed()
    assert "The cost was not approved: 1 job of sampler on sandbox_ideal" in str(state.message)
    assert "Comment: too much" in str(state.message)
    assert posts(sandbox) == 0


def test_equal_jobs_are_approved_one_by_one_and_in_an_async_flow(sandbox: Sandbox, block: str) -> None:
    flow_run = deployed(runs_two_jobs, credentials_block=block, above=0)
    for bought in (0, 1):
        assert start(runs_two_jobs, flow_run).name == "Suspended"
        assert posts(sandbox) == bought
        approve(flow_run, approve=True)
    assert start(runs_two_jobs, flow_run).is_completed()
    assert posts(sandbox) == 2


MANY = {"shots": 10, "backend": BACKEND}
BUYERS: list[tuple[Any, dict[str, Any], str]] = [
    (run_circuits, {**MANY, "circuits": [FLIP] * 3}, "3 jobs of sampler on .*by the clock, here for 900 s at most"),
    (run_circuits, {**MANY, "circuits": [FLIP], "compare_routes": True, "mode": "job"}, "2 jobs of sampler . executor"),
    (parameter_sweep, {**MANY, "points": 4}, "8 jobs of estimator . sampler on "),
    (vqe_session, {**MANY, "max_iterations": 7}, "at most 8 jobs of estimator on .*by the clock, here for 1800 s"),
    (angles_to_table, {**MANY, "rows_per_job": 4}, r"\d+ jobs of estimator on "),
    (leave, {**MANY, "circuit": FLIP}, "1 job of sampler on "),
    (run_saved_job, {}, "at most 3 jobs of sampler on "),
]


def test_every_flow_that_can_buy_has_the_limit_in_its_form() -> None:
    shipped = [importlib.import_module(f"flows.{one.name}") for one in pkgutil.iter_modules(flows.__path__)]
    found = {name: one for module in shipped for name, one in vars(module).items() if isinstance(one, Flow)}
    buying = {name for name, one in found.items() if {"route", "job_block"} & one.parameters.properties.keys()}
    assert buying == {one.fn.__name__ for one, _, _ in BUYERS}
    for one, _, _ in BUYERS:
        form = one.parameters.properties.keys()
        assert {"require_approval_above", "budget_block"} <= form, one.name
        assert {"max_execution_time", "job_block"} & form, f"{one.name}: a job's limit, or a block that has it"
    assert all("require_approval_above" in found[name].parameters.properties for name in buying)


@pytest.mark.parametrize(("buyer", "parameters", "words"), BUYERS)
def test_a_flow_that_buys_many_jobs_asks_for_their_sum_before_the_first(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, buyer: Any, parameters: Any, words: str
) -> None:
    asked_for: list[str] = []

    async def question(cost: Any, above: float) -> None:
        asked_for.append(str(cost))
        assert above == 0
        raise ApprovalDenied(str(cost))

    monkeypatch.setattr(module, "_question", question)
    if buyer is run_saved_job:
        job = qr.QuantumRuntimeJob(
            credentials=qr.load_credentials(block), backend=BACKEND, pubs=[FLIP], resubmit=2, require_approval_above=0
        )
        job.save(block)
        parameters = {"job_block": block}
    else:
        parameters = {**parameters, "credentials_block": block, "require_approval_above": 0}
    run = (lambda: asyncio.run(buyer(**parameters))) if buyer.isasync else (lambda: buyer(**parameters))
    with pytest.raises(ApprovalDenied, match=words):
        run()
    assert len(asked_for) == 1
    assert posts(sandbox) == 0
    assert requests(sandbox, "POST", "/sessions") == 0


def test_a_job_block_asks_once_and_for_its_second_tries_too(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: str) -> list[Any]:
        return []

    monkeypatch.setattr(module, "_past", none)  # from jobs of other tests it would learn that 10 s are enough
    job = qr.QuantumRuntimeJob(
        credentials=qr.load_credentials(block), pubs=[FLIP], resubmit=1, require_approval_above=60, **PARAMETERS
    )
    with pytest.raises(InvalidInput, match=r"require_approval_above.*not in a task"):
        asyncio.run(job.trigger())
    job.save(block)
    flow_run = deployed(triggers, job_block=block)
    assert start(triggers, flow_run).name == "Suspended", "two jobs of 50 s are above 60 s"
    assert posts(sandbox) == 0
    approve(flow_run, approve=True)
    sandbox.control.script_job(status="Failed", reason_code=THEIRS)
    assert start(triggers, flow_run).is_completed()
    assert posts(sandbox) == 2


def test_what_is_below_the_limit_is_not_asked_for(sandbox: Sandbox, block: str) -> None:
    _, state = ran(runs_a_job, block, 50)
    assert state.is_completed()
    assert posts(sandbox) == 1


def test_a_flow_run_without_a_deployment_waits_in_its_process(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL", 0.1)
    name, states = f"paused-{uuid4().hex[:8]}", []
    named = runs_a_job.with_options(flow_run_name=name)
    other = threading.Thread(target=lambda: states.append(ran(named, block, 0)[1]))
    other.start()
    flow_run = until(lambda: paused(name), 120)
    assert posts(sandbox) == 0
    # Its form is saved a moment later than its state.
    until(lambda: approve(flow_run, approve=True).status is SetStateStatus.ACCEPT, 60)
    other.join()
    assert states[0].is_completed()
    assert posts(sandbox) == 1


@pytest.mark.parametrize("asks_in", ["a deployment", "a process", "a subflow"])
def test_a_retry_does_not_ask_again(
    sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch, asks_in: str
) -> None:
    monkeypatch.setattr(module, "_POLL", 0.1)
    name, tries, states = f"asks-{uuid4().hex[:8]}", list[int](), list[Any]()

    # Prefect counts it as a retry to go on after a pause.
    @flow(retries=3, retry_delay_seconds=0, flow_run_name=name)
    def breaks_once(credentials_block: str) -> int:
        tries.append(runs_a_job.fn(credentials_block, 0))
        if len(tries) == 1:
            raise RuntimeError("something after it broke")
        return tries[-1]

    @flow
    def parent(credentials_block: str) -> int:
        return int(breaks_once(credentials_block))

    def answer(flow_run: Any) -> None:
        # Its form is saved a moment later than its state.
        until(lambda: approve(flow_run, approve=True).status is SetStateStatus.ACCEPT, 60)

    if asks_in == "a deployment":
        flow_run = deployed(breaks_once, credentials_block=block)
        assert start(breaks_once, flow_run).name == "Suspended"
        answer(flow_run)
        states.append(start(breaks_once, flow_run))
    else:
        whole: Flow[..., Any] = parent if asks_in == "a subflow" else breaks_once
        other = threading.Thread(target=lambda: states.append(ran(whole, block)[1]))
        other.start()
        flow_run = until(lambda: paused(name), 120)
        answer(flow_run)
        other.join()
    assert states[0].is_completed()
    assert len(tries) == 2
    assert len([one for one in history(flow_run) if one in ("Suspended", "Paused")]) == 1
    assert posts(sandbox) == 1


def test_nobody_answers(sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT", 0)
    monkeypatch.setattr(module, "_POLL", 0.1)
    told: list[str] = []

    @flow
    def plain() -> None:
        try:
            runs_a_job.fn(block, 0)
        except ApprovalDenied as error:
            told.append(str(error))

    @flow
    async def twin() -> None:
        try:
            await runs_two_jobs.fn(block, 0)
        except ApprovalDenied as error:
            told.append(str(error))

    for asking in (plain, twin):
        assert ran(asking)[1].is_failed(), "Prefect itself fails a flow run that was paused for too long"
    assert all(text.startswith("The cost was not approved within 0 days: 1 job of sampler") for text in told)
    assert len(told) == 2
    assert posts(sandbox) == 0


def test_an_approval_belongs_in_a_flow(block: str, sandbox: Sandbox) -> None:
    credentials = qr.load_credentials(block)

    @task
    def inside() -> None:
        qr.require_approval(qr.estimate_cost.fn(credentials, [FLIP], **PARAMETERS), above=1)

    with pytest.raises(InvalidInput, match="not in a task"):
        inside()
    with pytest.raises(InvalidInput, match="not in a task"):
        qr.run_job(credentials, [FLIP], require_approval_above=1, **PARAMETERS)
    with pytest.raises(InvalidInput, match="must be a number of QPU seconds, 0 or more, not 'much'"):
        qr.require_approval(qr.estimate_cost.fn(credentials, [FLIP], **PARAMETERS), above="much")  # type: ignore[arg-type]
    assert posts(sandbox) == 0
    assert issubclass(ApprovalDenied, qr.QuantumRuntimeError)


@flow
def executed(credentials_block: str, parameters: dict[str, Any]) -> None:
    credentials = qr.load_credentials(credentials_block)
    for route in ("service", "executor"):
        qr.run_job(credentials, [FLIP], route=route, **parameters)


def test_the_pages_of_jobs_note_what_the_estimate_learns_from(
    sandbox: Sandbox, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.control.set_usage(limit=1000)
    name = f"estimated_{uuid4().hex[:8]}"  # of its own, because the jobs of other tests are in this Prefect too
    sandbox.control.add_backend(name, noisy=False)
    parameters = {**PARAMETERS, "backend": name}
    flow_run, state = ran(executed, block, parameters)
    assert state.is_completed()
    pages = {record.meta["program"]: record for record in records("job", flow_run.id)}
    past = {program: module.past_job(page.meta) for program, page in pages.items()}
    for program in ("sampler", "executor"):
        job = past[program]
        assert job is not None
        assert job.busy_seconds == pytest.approx(100 * 270e-6)
        assert job.charged_seconds == pytest.approx(0.05)
        assert "busy" not in pages[program].text
    assert past["sampler"].executed_seconds is None
    assert past["executor"].executed_seconds == pytest.approx(0.05, abs=0.01)

    credentials = qr.load_credentials(block)
    before = qr.estimate_cost(credentials, [FLIP], **parameters)
    assert (before.coverage, before.high_seconds) == (None, 50)
    assert before.learnt_from == 1
    assert before.remaining_seconds == pytest.approx(1000 - 0.1)
    for number in range(ENOUGH):
        # A real backend of the same name says nothing of the sandbox's, nor the sandbox's of that.
        for url, seconds in ((sandbox.url, 3), ("https://quantum.cloud.ibm.com/workloads", 40), ("http://[odd", 40)):
            facts = {
                "state": "Completed",
                "backend": name,
                "program": "sampler",
                "busy_seconds": "0.027",
                "usage_seconds": f"{seconds + number / 100}",
                "usage_final": "true",
                "url": f"{url}/learnt",
            }
            network_loop().run(upsert("job", f"learnt-{uuid4().hex[:12]}", "a job", facts, new=True))
    told = qr.estimate_cost(credentials, [FLIP, FLIP], pubs_per_job=1, **parameters)
    assert (told.coverage, told.jobs) == (COVERAGE, 2)
    assert 0 < told.low_seconds < told.expected_seconds < told.high_seconds < 8

    assert estimate_command([FLIP, FLIP], backend=name, shots=100, one_job_each=True, block=block) == 0
    assert f"2 jobs of sampler on {name}: " in " ".join(capsys.readouterr().out.split())
    assert estimate_command([FLIP], backend=name, block=block, json=True) == 0
    assert '"coverage": 0.9' in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="Name one of them with --block"):
        estimate_command([FLIP], backend=name)
    with pytest.raises(InvalidInput, match="must be a list of PUBs, one at least"):
        qr.estimate_cost(credentials, FLIP, pubs_per_job=1, **parameters)
    assert posts(sandbox) == 2


def test_the_command_prices_every_program_from_files(
    sandbox: Sandbox,
    block: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox.control.add_backend("ibm_priced", noisy=False)
    tmp_path = tmp_path_factory.mktemp("files")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    def file(content: Any) -> Path:
        path = tmp_path / f"{uuid4().hex}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def expected(*circuits: str, **given: Any) -> tuple[float, int, str]:
        assert estimate_command([*circuits], backend="ibm_priced", block=block, json=True, **given) == 0
        found = json.loads(capsys.readouterr().out)
        return found["expected_seconds"] - 2 * found["jobs"], found["jobs"], found["program_id"]

    repetition = 270e-6
    plain = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; x q[0];'
    (tmp_path / "plain.qasm").write_text(plain)
    sampler = make_spec([FLIP], backend="ibm_priced", shots=30, route="executor")
    for given, executions, jobs, program in (
        ({"circuits": [FLIP], "shots": 1000}, 1000, 1, "sampler"),
        ({"circuits": [FLIP], "shots": 1000, "program": "executor"}, 1000, 1, "executor"),
        ({"circuits": [FLIP], "shots": 1000, "route": "executor"}, 1000, 1, "executor"),
        (
            {"circuits": [str(tmp_path / "plain.qasm")], "program": "estimator", "observable": ["Z", "X"], "shots": 65},
            256,
            1,
            "estimator",
        ),
        ({"pubs": file([[FLIP, None, 10], FLIP]), "options": file({"default_shots": 20})}, 30, 1, "sampler"),
        ({"pubs": file([[FLIP, None, 10], FLIP]), "shots": 20, "one_job_each": True}, 30, 2, "sampler"),
        ({"pubs": file([[plain, "Z", None, 0.1]]), "program": "estimator"}, 128, 1, "estimator"),
        (
            {"pubs": file([[f"file:{tmp_path}/plain.qasm", "Z", None, 0.1]]), "program": "estimator"},
            128,
            1,
            "estimator",
        ),
        ({"params": file(sampler.prepared or {}), "program": "executor"}, 30, 1, "executor"),
        ({"params": file({"pubs": [[FLIP, None, 70]], "version": 2})}, 70, 1, "sampler"),
        ({"params": file({"circuits": []}), "program": "noise-learner"}, 0, 1, "noise-learner"),
    ):
        seconds, number, name = expected(*given.pop("circuits", ()), **given)
        assert (seconds, number, name) == (pytest.approx(executions * repetition), jobs, program), given
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for given, field in (
        ({}, "circuits"),
        ({"circuits": [FLIP], "pubs": file([FLIP])}, "circuits"),
        ({"circuits": [FLIP], "program": "estimator"}, "observable"),
        ({"circuits": [FLIP], "observable": ["Z"]}, "observable"),
        ({"pubs": file("[secret")}, "pubs"),
        ({"pubs": tmp_path / "none.json"}, "pubs"),
        ({"pubs": file([]), "one_job_each": True}, "pubs"),
        ({"params": file({"quantum_program": {"shots": 1}}), "program": "executor"}, "params.quantum_program.items"),
        ({"params": file({"circuits": []})}, "params.pubs"),
        ({"circuits": [str(pipe)]}, "circuits[0]"),
        *(({name: pipe}, name) for name in ("pubs", "params")),
        ({"circuits": [FLIP], "options": Path("/dev/zero")}, "options"),
    ):
        with pytest.raises(InvalidInput) as caught:
            estimate_command(given.pop("circuits", None), backend="ibm_priced", block=block, **given)
        assert caught.value.field == field, given
        assert "secret" not in str(caught.value)


def test_a_backend_that_does_not_exist_has_no_price(sandbox: Sandbox, block: str) -> None:
    with pytest.raises(InvalidInput, match=r"Did you mean 'sandbox_ideal'") as caught:
        estimate_command([FLIP], backend="sandbox_ideall", block=block)
    assert caught.value.field == "backend"
    flow_run = deployed(runs_misspelt, credentials_block=block)
    state = start(runs_misspelt, flow_run)
    assert "Did you mean 'sandbox_ideal'" in str(state.message), "nobody is asked to approve it"
    assert posts(sandbox) == 0


def test_an_estimate_survives_an_outage(sandbox: Sandbox, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: Any, **__: Any) -> Any:
        raise qr.ServiceUnavailable("It is down.")

    for name in ("backend_status", "usage"):
        monkeypatch.setattr(f"prefect_qruntime.client.QuantumRuntimeClient.{name}", down)
    assert estimate_command([FLIP], backend=BACKEND, block=block) == 0


def test_what_the_past_says_survives_odd_pages() -> None:
    good = {"state": "Completed", "usage_final": "true", "busy_seconds": "1", "usage_seconds": "2"}
    assert module.past_job(good) is not None
    for change in (
        {"state": "Failed"},
        {"usage_final": "false"},
        {"busy_seconds": "soon"},
        {"usage_seconds": "nan"},
        {"usage_seconds": "-1"},
        {"busy_seconds": ""},
        {"dry_run": "yes"},
    ):
        assert module.past_job({**good, **change}) is None
