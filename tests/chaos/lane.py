"""Carry out one run of the campaign after another, and look at what the service and Prefect hold afterwards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from prefect.client.orchestration import PrefectClient
from prefect.states import Crashed, Scheduled

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.prefect_api import api
from prefect_qruntime.sandbox import Sandbox
from tests.chaos import campaign
from tests.chaos.campaign import Kill, Plan
from tests.chaos.killer import Host
from tests.chaos.victim import FLOWS

T = TypeVar("T")
_PROCESSES = 8  # that carry out one plan
_PATIENT = 300.0  # seconds for what happens in the background, on a machine or a server that stands still
_NEVER = asdict(Kill())


@dataclass
class Outcome:
    """What one run of the campaign came to.

    Attributes:
        seed: Of its plan.
        way: Of its plan, with the dialect.
        wrong: What should not be.
        killed: What each killed process had begun.
        errors: With which errors processes ended by themselves.
        met: Which faults and odd answers acted, and how often.
        jobs: How many the service has.
        ended: How it ended: with a result, swept, or uncertain.
        excused: More than one job where that is not promised: a proof was lost, and the list lagged beyond the grace.
        seconds: How long it took.
    """

    seed: int
    way: str
    wrong: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)
    jobs: int = 0
    ended: str = ""
    excused: bool = False
    seconds: float = 0.0


@dataclass
class Trail:
    """What happened on the way."""

    outcome: Outcome
    flow_run_id: str | None = None
    processes: int = 0
    doubtful: bool = False  # a process died between the beginning and the end of its submission
    result: Any = None
    answer: dict[str, Any] = field(default_factory=dict)

    def note(self, answer: dict[str, Any]) -> None:
        """A process has ended."""
        self.processes += 1
        self.answer = answer
        self.result = answer.get("result")
        if answer["signal"]:
            self.outcome.killed.append(answer["stage"])
            self.doubtful |= answer["stage"] == "submit"
        if "error" in answer:
            self.outcome.errors.append(answer["error"][:300])
        if answer["stuck"]:
            self.outcome.wrong.append(f"a process was stuck in {answer['stage']}")

    @property
    def is_over(self) -> bool:
        """Whether a process came to a result."""
        return self.result is not None


class Lane:
    """A sandbox and a host of victims: one run at a time.

    Args:
        sandbox: The service.
        host: The host of victims.
        blocks: The credentials block of each dialect.
        deployment: Of the flow that is suspended.
        frees_locks: Whether to free at once what a killed process held; another process does so after a minute.
    """

    def __init__(
        self, sandbox: Sandbox, host: Host, blocks: dict[str, str], deployment: Any, *, frees_locks: bool
    ) -> None:
        self._sandbox, self._control = sandbox, sandbox.control
        self._host = host
        self._blocks = blocks
        self._deployment = deployment
        self._frees_locks = frees_locks
        self.forgets_keys = False  # puts an old fault back, to show that it would be seen

    def run(self, plan: Plan) -> Outcome:
        """Carry out a plan, and check what is left."""
        began = time.monotonic()
        outcome = Outcome(plan.seed, f"{plan.way}, {plan.dialect}")
        before = {job["id"] for job in self._control.jobs()}
        self._control.clear_journal()
        faults = campaign.inject(self._control, plan)
        trail = Trail(outcome)
        try:
            self._go(plan, trail)
        finally:
            campaign.calm(self._control)
        journal = self._control.journal()
        outcome.met = dict(Counter(faults[entry["fault"]] for entry in journal if entry["fault"] in faults))
        if plan.fault.startswith(("list-lag", "get-lag")):
            outcome.met[plan.fault] = 1
        jobs = [job for job in self._control.jobs() if job["id"] not in before]
        self._check_jobs(plan, trail, jobs, journal)
        self._check_result(plan, trail, jobs)
        self._check_events(plan, trail, jobs)
        self._check_sessions(trail, jobs)
        for session in self._control.open_sessions():  # what is wrong here must not be so in the next run
            client = QuantumRuntimeCredentials.load(self._blocks[plan.dialect]).get_client()
            client.run(client.close_session(session["id"], drain=False))
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome

    # ---- what happens ------------------------------------------------------------------------------

    def _go(self, plan: Plan, trail: Trail) -> None:
        order = {
            **plan.order(),
            "block": self._blocks[plan.dialect],
            "port": int(self._sandbox.url.rsplit(":", 1)[1]),
            "forgets_keys": self.forgets_keys,
        }
        while trail.processes < _PROCESSES and not trail.is_over:
            if trail.flow_run_id is None and plan.way != "script":
                trail.flow_run_id = asked(lambda client: self._new_run(client, order))
            trail.note(self._host.run({**order, "flow_run_id": trail.flow_run_id, "kill": plan.kill(trail.processes)}))
            if not trail.is_over and not self._again(plan, trail):
                return
        if plan.way == "leave" and trail.is_over:
            self._watch(plan, trail, lambda: bool(self._told(trail.result, left=True)))
            self._host.run({"runner": "watch", **self._for_watcher(plan), "kill": _NEVER})

    def _again(self, plan: Plan, trail: Trail) -> bool:
        """Do what follows an end without a result; returns whether another process goes on."""
        killed = bool(trail.answer["signal"])
        if killed and self._frees_locks:
            asked(lambda client: _free_locks(client, trail.answer["pid"]))
        state = None
        if trail.flow_run_id is not None:
            state = asked(lambda client: client.read_flow_run(trail.flow_run_id)).state
            if state is not None and state.is_completed():  # killed after its end: it is not run again
                trail.outcome.ended = "completed"
                return False
            if state is not None and state.is_paused():
                self._watch(plan, trail, lambda: not _is_paused(trail.flow_run_id))
                return True
            if killed:  # as the runner or the worker tells Prefect
                asked(lambda client: client.set_flow_run_state(trail.flow_run_id, Crashed(), force=True))
        if killed and plan.again == "sweep only":
            trail.outcome.ended = "swept"
            return False
        if plan.again != "again":
            run_sweep(list(self._blocks.values()))
        if plan.explicit:
            trail.flow_run_id = None  # another flow run, with the same key
        elif trail.flow_run_id is not None:
            asked(lambda client: client.set_flow_run_state(trail.flow_run_id, Scheduled(), force=True))
        return True

    def _for_watcher(self, plan: Plan) -> dict[str, Any]:
        return {"block": self._blocks[plan.dialect], "port": 0}

    def _watch(self, plan: Plan, trail: Trail, done: Callable[[], bool]) -> None:
        """Let watchers look until it is done; the first may be killed."""
        end, kill = time.monotonic() + _PATIENT, asdict(plan.watcher)
        while time.monotonic() < end:
            answer = self._host.run({"runner": "watch", **self._for_watcher(plan), "kill": kill})
            kill = _NEVER
            if answer["signal"]:
                trail.outcome.killed.append("watcher")
            if done():
                return
            time.sleep(1)
        trail.outcome.wrong.append(f"the watcher did not end the wait: {answer}")

    async def _new_run(self, client: PrefectClient, order: dict[str, Any]) -> str:
        if order["runner"] == "suspend":  # only a flow run with a deployment can be suspended
            made = await client.create_flow_run_from_deployment(self._deployment, parameters={"order": order})
        else:
            made = await client.create_flow_run(FLOWS[order["runner"]], parameters={"order": order})
        return str(made.id)

    # ---- what must hold ----------------------------------------------------------------------------

    def _check_jobs(self, plan: Plan, trail: Trail, jobs: list[Any], journal: list[Any]) -> None:
        outcome = trail.outcome
        outcome.jobs = len(jobs)
        least = int(trail.is_over or outcome.ended == "completed")
        most = trail.processes if plan.way == "script" else 1  # without a flow and a key each process is an intent
        if least <= len(jobs) <= most:
            return
        posts = [entry["status"] for entry in journal if (entry["method"], entry["path"]) == ("POST", "/jobs")]
        unproved = trail.doubtful or any(status is None or not 200 <= status < 300 for status in posts)
        if len(jobs) > most and plan.fault == "list-lag-beyond" and unproved:
            outcome.excused = True
            return
        outcome.wrong.append(f"{len(jobs)} jobs: {[job['tags'] for job in jobs]}; posts {posts}")

    def _check_result(self, plan: Plan, trail: Trail, jobs: list[Any]) -> None:
        outcome = trail.outcome
        if outcome.ended:
            return
        outcome.ended = "result"
        if plan.way == "leave" and trail.result in [job["id"] for job in jobs]:
            return
        if trail.result == plan.expected:
            return
        if plan.fault == "list-lag-beyond" and "SubmissionUncertain" in trail.answer.get("error", ""):
            outcome.ended = "uncertain"
            return
        outcome.wrong.append(f"result {trail.answer}")

    def _check_events(self, plan: Plan, trail: Trail, jobs: list[Any]) -> None:
        """The end of the job is reported to the flow run that waited for it, or for the flow that collects it, once."""
        if len(jobs) != 1 or plan.way == "script" or trail.result is None:
            return
        left = plan.way == "leave"
        # A process that is killed after its last word may take what it had to send with it.
        least = 0 if trail.answer["signal"] and not left else 1
        told = self._told(jobs[0]["id"], left=left, flow_run_id=trail.flow_run_id, least=least)
        if not least <= len(told) <= 1:
            trail.outcome.wrong.append(f"the end was told {len(told)} times")

    def _told(self, job_id: str, *, left: bool, flow_run_id: str | None = None, least: int = 0) -> list[Any]:
        """The events of a job's end; they reach the server in the background."""
        wanted = {
            "filter": {"resource": {"id": [f"qruntime.job.{job_id}"]}, "event": {"name": ["qruntime.job.completed"]}},
            "limit": 50,
        }

        async def ask(client: PrefectClient) -> list[Any]:
            answer = await client.request("POST", "/events/filter", json=wanted)
            return [event for event in answer.json()["events"] if fits(event)]

        def fits(event: Any) -> bool:
            if left or "qruntime.left-to-watcher" in event["resource"]:
                return left and "qruntime.left-to-watcher" in event["resource"]
            ids = [related["prefect.resource.id"] for related in event["related"]]
            return f"prefect.flow-run.{flow_run_id}" in ids

        end = time.monotonic() + _PATIENT
        while len(found := asked(ask)) < least and time.monotonic() < end:
            time.sleep(0.3)
        return found

    def _check_sessions(self, trail: Trail, jobs: list[Any]) -> None:
        for job in jobs:
            self._control.wait_job(job["id"], timeout=_PATIENT)
        report = run_sweep(list(self._blocks.values()))
        end = time.monotonic() + 30
        while (left := self._control.open_sessions()) and time.monotonic() < end:
            if any(session["accepting_jobs"] for session in left):
                break
            time.sleep(0.2)  # it drains
        if left:
            trail.outcome.wrong.append(f"sessions left open: {left}; sweep said {report}")
        if report.problems:
            trail.outcome.wrong.append(f"problems of the sweep: {report.problems}")


def asked(what: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Ask Prefect's API something."""

    async def ask() -> T:
        return await what(await api())

    return network_loop().run(ask())


def _is_paused(flow_run_id: Any) -> bool:
    state = asked(lambda client: client.read_flow_run(flow_run_id)).state
    return state is not None and state.is_paused()


async def _free_locks(client: PrefectClient, pid: int) -> None:
    """Free the locks of a killed process; the next one does so after a minute without a sign of life."""
    for variable in await client.read_variables(limit=200):
        if variable.name.startswith("qruntime-submit-") and f"process {pid} on" in str(variable.value):
            await client.delete_variable_by_name(variable.name)


@contextmanager
def open_lane(number: int, server_env: dict[str, str], *, frees_locks: bool) -> Iterator[Lane]:
    """A lane on the Prefect server that this process uses.

    Args:
        number: Tells it from the others.
        server_env: The environment of processes that use the server.
        frees_locks: As in `Lane`.
    """
    env = {
        **server_env,
        "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": str(campaign.GRACE),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    with Sandbox(queue_time=0.1, run_time=0.2, api_key=f"chaos-key-of-the-campaign-{number}") as sandbox:
        sandbox.warm_up()
        blocks = {}
        for dialect in ("cloud", "legacy"):
            blocks[dialect] = f"chaos-{dialect}-{number}"
            facts = {**sandbox.connection(dialect), "request_timeout": 2.5}
            QuantumRuntimeCredentials(**facts).save(blocks[dialect], overwrite=True)
        host = Host(env)
        try:
            yield Lane(sandbox, host, blocks, asked(_deploy), frees_locks=frees_locks)
        finally:
            host.stop()


async def _deploy(client: PrefectClient) -> Any:
    return await client.create_deployment(
        flow_id=await client.create_flow(FLOWS["suspend"]),
        name="chaos",
        parameter_openapi_schema={"type": "object", "properties": {}},
    )
