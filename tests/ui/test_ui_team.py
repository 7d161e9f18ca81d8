"""What an administrator sees in Prefect's UI: the board, the usage, an approval, an alarm and a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.artifacts import Artifact
from prefect.automations import AutomationCore
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from flows.run_circuits import BELL, run_circuits
from flows.usage_report import usage_report
from prefect_qruntime import QuantumRuntimeCredentials, QuantumRuntimePolicy
from prefect_qruntime.admission.policy import PolicyRule
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.observability.artifacts import find_records, upsert
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.alarms import InstanceWatch
from tests.support.flow_runs import start
from tests.support.prefect_calls import asked
from tests.ui.conftest import API_KEY, high

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
BLOCK, POLICY, BACKEND = "lab", "lab-policy", "sandbox_ideal"
TEAMS = {"vqe-nightly": "physics", "sampling": "chemistry", "homework": "teaching"}
SECONDS = {"vqe-nightly": 52.0, "sampling": 31.0, "homework": 8.0}
DAYS, DAY, HOUR = 12, 86400.0, 3600.0
FAST = 300.0  # service seconds a second, while jobs run
ALARM = Path(__file__).parents[2] / "automations" / "notify_on_budget_level.yaml"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """An instance whose clock begins some days ago, so that it has a past when it comes to the present."""
    with pytest.MonkeyPatch.context() as patch:
        ago = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() - DAYS * DAY)
        patch.setattr("prefect_qruntime.sandbox.clock.time", ago)
        lasting = {"token_lifetime": 1e9, "idle_close": 1e6}
        with Sandbox(queue_time=5.0, run_time=5.0, api_key=API_KEY, seed=7, **lasting) as running:
            running.warm_up()
            yield running


def jump(sandbox: Sandbox, moment: float) -> None:
    """Set the service's clock to a moment; its public speed overshoots on a busy machine."""
    clock = sandbox._service.clock
    clock._service += moment - clock.now()
    sandbox.control.set_clock_scale(FAST)


@dataclass(frozen=True)
class Lab:
    """What the pages are about: ids of artifacts, flow runs and the automation."""

    board: str
    usage: str
    table: str
    asks: FlowRun
    refused: FlowRun
    automation: str


@pytest.fixture(scope="module")
def lab(aside: Callable[..., Any], sandbox: Sandbox) -> Iterator[Lab]:
    """Twelve days of three teams, a session and jobs that wait; then the board, the report and what teams meet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", POLICY)
        yield aside(set_up, sandbox)
        aside(QuantumRuntimePolicy.delete, POLICY)


def set_up(sandbox: Sandbox) -> Lab:
    block = QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    block.save(BLOCK, overwrite=True)
    rule = PolicyRule(tag="teaching", programs=["sampler"], max_execution_time=30, max_session_seconds=0)
    QuantumRuntimePolicy(hosts=[], rules=[rule]).save(POLICY, overwrite=True)
    deployments = asked(deploy)
    fortnight(sandbox, block, deployments)
    client = block.get_client()
    network_loop().run(InstanceWatch(BLOCK).look(client))
    usage_report([BLOCK], by="tag", since=f"{DAYS + 1}d")
    (board,) = network_loop().run(find_records("instance"))
    what: dict[str, Any] = {"credentials_block": BLOCK, "backend": BACKEND, "shots": 4000, "mode": "job"}
    asks = flow_run(deployments["sampling"], "sampling-13", **what, require_approval_above=20)
    assert start(run_circuits, asks).name == "Suspended"
    refused = flow_run(deployments["homework"], "homework-13", **what, max_execution_time=120)
    assert start(run_circuits, refused).is_failed()
    return Lab(
        board=str(board.artifact_id),
        usage=str(Artifact.get("qruntime-usage").id),
        table=str(Artifact.get("qruntime-usage-table").id),
        asks=asks,
        refused=refused,
        automation=asked(alarm),
    )


async def deploy(client: PrefectClient) -> dict[str, Any]:
    return {
        name: await (await run_circuits.ato_deployment(name=name, tags=[team])).aapply() for name, team in TEAMS.items()
    }


async def alarm(client: PrefectClient) -> str:
    """The automation of the file, with a notification block."""
    block = await CustomWebhookNotificationBlock(name="admins", url="https://chat.example/hook").save(
        "admins", overwrite=True
    )
    text = ALARM.read_text().replace("00000000-0000-0000-0000-000000000000", str(block))
    (wanted,) = yaml.safe_load(text)["automations"]
    return str(await client.create_automation(AutomationCore.model_validate(wanted)))


def flow_run(deployment: Any, name: str, **parameters: Any) -> FlowRun:
    async def create(client: PrefectClient) -> FlowRun:
        return await client.create_flow_run_from_deployment(
            deployment, parameters=parameters, state=Scheduled(), name=name
        )

    return asked(create)


def fortnight(sandbox: Sandbox, block: QuantumRuntimeCredentials, deployments: dict[str, Any]) -> None:
    """Jobs of three teams over the days, some more than others; what lives at the end; little of the allowance left."""
    client, control = block.get_client(), sandbox.control
    spec = make_spec([BELL], backend=BACKEND, shots=4000)
    begin = control.now()

    def buys(owner: FlowRun | None, seconds: float, session: Any = None) -> str:
        control.set_times(run_time=seconds)
        tags = (f"qr-key:{uuid4().hex}", *((f"qr-flow:{owner.id}",) if owner else ()))
        job = str(client.run(client.post_job(spec, tags, session)).id)
        control.wait_job(job)
        facts = {
            "state": "Completed",
            "backend": BACKEND,
            "program": "sampler",
            "busy_seconds": "1.1",
            "usage_seconds": f"{seconds:g}",
            "usage_final": "true",
        }
        network_loop().run(upsert("job", job, "a job", facts, new=True))
        return job

    for day in range(DAYS):
        jump(sandbox, begin + day * DAY + HOUR)
        for number, (name, deployment) in enumerate(deployments.items()):
            if (day + number) % 3 or day == DAYS - 1:
                run = flow_run(deployment, f"{name}-{day + 1}")
                buys(run, SECONDS[name] * (1 + (day * 7 + number * 3) % 5 / 8))
    jump(sandbox, time.time() - HOUR)
    buys(None, 4.0)
    tonight = flow_run(deployments["vqe-nightly"], "vqe-nightly-13")
    jump(sandbox, time.time() - 180)
    session = client.run(client.post_session(BACKEND, mode="dedicated", max_ttl=7200))
    buys(tonight, 20.0, session)
    jump(sandbox, time.time())
    control.set_clock_scale(1.0)
    control.hold()
    for owner in (tonight, tonight, flow_run(deployments["sampling"], "sampling-12")):
        client.run(client.post_job(spec, (f"qr-key:{uuid4().hex}", f"qr-flow:{owner.id}"), None))
    used = control.usage()["usage_consumed_seconds"]
    control.set_usage(consumed=used, limit=round(used / 0.93))


def test_the_board_shows_how_the_instance_stands(page: Any, site: Any, ui: str, lab: Lab, shoot: Any) -> None:
    page.goto(site(f"{ui}/artifacts/artifact/{lab.board}"))
    page.get_by_text("qruntime.allowance.low").first.wait_for()
    page.get_by_text(f"{BLOCK} · ").first.wait_for()
    for title in ("Alarms", "Live jobs", "Sessions", "Spenders of the last day"):
        page.get_by_role("heading", name=title).first.wait_for()
    page.get_by_text("vqe-nightly-13").first.wait_for()
    if ui:
        shoot("team-board", size=high(1060))


def test_the_usage_report_has_a_picture_and_a_table(page: Any, site: Any, ui: str, lab: Lab, shoot: Any) -> None:
    page.goto(site(f"{ui}/artifacts/artifact/{lab.usage}"))
    picture = page.locator('img[src^="data:image/"]').first
    picture.wait_for()
    assert picture.bounding_box()["width"] > 100
    page.get_by_text("the service says").first.wait_for()
    if ui:
        shoot("team-usage")
    page.goto(site(f"{ui}/artifacts/artifact/{lab.table}"))
    for team in TEAMS.values():
        page.get_by_text(team, exact=True).first.wait_for()
    if ui:
        shoot("team-usage-table", size=high(560))


def test_a_person_approves_on_the_run_s_page(page: Any, site: Any, ui: str, lab: Lab, shoot: Any) -> None:
    page.goto(site(f"{ui}/runs/flow-run/{lab.asks.id}"))
    page.get_by_text("sampling-13").first.wait_for()
    if ui:  # the first UI has a button
        page.locator("button[aria-haspopup=menu]").last.click()
    page.get_by_role("menuitem" if ui else "button", name="Resume").click()
    page.get_by_text("QPU seconds?").first.wait_for()
    page.get_by_text("Whether the jobs may be submitted.").first.wait_for()
    if ui:
        shoot("team-approval")


def test_an_alarm_is_an_automation(page: Any, site: Any, ui: str, lab: Lab, shoot: Any) -> None:
    page.goto(site(f"{ui}/automations/automation/{lab.automation}"))
    page.get_by_text("Notify of a budget's level").first.wait_for()
    page.get_by_text("admins").first.wait_for()
    if ui:
        page.goto(site(f"{ui}/automations/automation/{lab.automation}/edit"))
        page.get_by_text("qruntime.budget.level").first.wait_for()
        shoot("team-alarm", size=high(740))


def test_a_refusal_by_the_policy_says_why(page: Any, site: Any, ui: str, lab: Lab, shoot: Any) -> None:
    page.set_viewport_size(high(958))  # the graph is drawn for the size the page opens with
    page.goto(site(f"{ui}/runs/flow-run/{lab.refused.id}" + ("?tab=Details" if ui else "")))
    page.get_by_text("at most 30 s are allowed").first.wait_for()
    if ui:
        page.locator("canvas").first.wait_for()
        shoot("team-refusal", size=high(958))
