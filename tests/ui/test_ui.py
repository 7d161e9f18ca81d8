"""What a person sees in Prefect's UI: the block's form, the run's page, the job's artifact, the deployment's form."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import Field

from flows.run_circuits import BELL, run_circuits
from prefect_qruntime import Budget, QuantumRuntimeCredentials, QuantumRuntimeJob, run_job
from prefect_qruntime.observability.artifacts import artifact_key
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import start, until
from tests.support.prefect_calls import asked
from tests.ui.conftest import API_KEY, SIZE, TALL, WIDE, high

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
FORM = "/blocks/catalog/quantum-runtime-credentials/create"
BLOCK = "ibm"


def register_blocks() -> None:
    """As `prefect block register -m prefect_qruntime.blocks` does."""

    async def register() -> None:
        async with get_client() as client:
            for block in (QuantumRuntimeCredentials, Budget, QuantumRuntimeJob):
                await block.register_type_and_schema(client=client)

    asyncio.run(register())


@pytest.fixture(scope="module", autouse=True)
def registered(aside: Callable[..., Any]) -> None:
    aside(register_blocks)


def test_the_form_of_the_credentials_block_explains_each_field(page: Any, site: Any, ui: str, shoot: Any) -> None:
    page.goto(site(ui + FORM))
    page.get_by_text("API key", exact=True).first.wait_for()
    shown = " ".join(page.inner_text("body").split())
    for name, field in QuantumRuntimeCredentials.model_fields.items():
        assert field.title is not None, name
        assert field.title in shown, name
        assert field.description is not None, name
        assert " ".join(field.description.split()) in shown, name
    if ui:  # the first UI shows a key while it is typed
        assert page.get_by_label("API key", exact=True).get_attribute("type") == "password"
        # The logo is on another host, which this browser does not ask.
        shoot("block-form", style="img[src^=http] { visibility: hidden }")


@dataclass(frozen=True)
class Story:
    """A run on the block that was saved in the form."""

    flow_run: str
    job: str
    url: str
    artifact: str
    deployment: str


@pytest.fixture(scope="module")
def story(page: Any, site: Any, aside: Callable[..., Any], sandbox: Sandbox) -> Story:
    """Fill in the form, save it, run the main flow with that block, and deploy it."""
    facts = sandbox.connection("cloud")
    page.goto(site("/v2" + FORM))
    page.get_by_label("Name", exact=True).fill(BLOCK)
    page.get_by_label("API key", exact=True).fill(facts["api_key"])
    page.get_by_label("Instance CRN").fill(facts["crn"])
    page.get_by_label("Base URL").fill(facts["base_url"])
    page.get_by_label("IAM URL").fill(facts["iam_url"])
    page.get_by_role("button", name="Save").or_(page.get_by_role("button", name="Create")).click()
    page.wait_for_url("**/blocks/block/**")
    return aside(run_the_flow)  # type: ignore[no-any-return]


def run_the_flow() -> Story:
    saved = QuantumRuntimeCredentials.load(BLOCK)
    rows = run_circuits([BELL], credentials_block=BLOCK, backend="sandbox_noisy", shots=1000)
    assert set(rows[0]["frequencies"]) >= {"00", "11"}
    job = rows[0]["job"]

    async def look() -> tuple[str, str, str]:
        deployment = await (await run_circuits.ato_deployment(name="on-demand")).aapply()
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key("job", job)]))
            (artifact,) = await client.read_artifacts(artifact_filter=wanted)
        return str(artifact.flow_run_id), str(artifact.id), str(deployment)

    flow_run, artifact, deployment = asyncio.run(look())
    url = saved.get_client().connection.job_url(job)  # type: ignore[union-attr]
    return Story(flow_run=flow_run, job=job, url=url, artifact=artifact, deployment=deployment)


def test_a_job_is_saved_from_its_form(page: Any, site: Any, story: Story, aside: Callable[..., Any]) -> None:
    page.goto(site(f"/v2/blocks/catalog/{QuantumRuntimeJob.get_block_type_slug()}/create"))
    page.get_by_label("Backend", exact=True).first.wait_for()
    shown = " ".join(page.inner_text("body").split())
    for name, field in QuantumRuntimeJob.model_fields.items():
        assert field.title is not None, name
        assert field.title in shown, name
        assert field.description is not None, name
        assert " ".join(field.description.split()) in shown, name
    page.get_by_label("Name", exact=True).fill("from-the-form")
    page.get_by_role("button", name="Select a block").click()
    page.get_by_role("option", name=BLOCK, exact=True).click()
    page.get_by_label("Backend", exact=True).fill("sandbox_ideal")
    page.get_by_role("tab", name="int").first.click()  # of the shots
    page.locator("input[type=number]").first.fill("7")
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/blocks/block/**")
    saved = aside(QuantumRuntimeJob.load, "from-the-form")
    assert (saved.backend, saved.shots, saved.program_id, saved.pubs) == ("sandbox_ideal", 7, "sampler", None)
    assert saved.credentials.api_key.get_secret_value() == API_KEY


def test_the_run_page_tells_each_change_of_the_job_and_links_to_it(
    page: Any, site: Any, ui: str, story: Story, shoot: Any
) -> None:
    page.set_viewport_size(TALL)  # the graph above the log is drawn for the size the page opens with
    page.goto(site(f"{ui}/runs/flow-run/{story.flow_run}"))
    for said in (f"submitted job {story.job}", f"job {story.job} is completed"):
        page.get_by_text(said).first.wait_for()
    link = page.locator(f'a[href="{story.url}"]').first
    link.wait_for()
    assert API_KEY not in page.content()
    if ui:
        page.locator("canvas").first.wait_for()
        shoot("run-page", size=TALL)
    page.set_viewport_size(SIZE)


def test_the_job_s_artifact_shows_its_facts_a_link_and_a_histogram(
    page: Any, site: Any, ui: str, story: Story, shoot: Any
) -> None:
    page.goto(site(f"{ui}/artifacts/artifact/{story.artifact}"))
    # The page is drawn several times over, so each is waited for.
    for fact, value in (("state", "Completed"), ("QPU seconds", "1.5"), ("backend", "sandbox_noisy")):
        page.locator("tr", has_text=fact).filter(has_text=value).first.wait_for()
    page.locator(f'a[href="{story.url}"]').first.wait_for()
    picture = page.locator('img[src^="data:image/"]').first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    assert picture.is_visible()
    assert picture.bounding_box()["width"] > 100
    if ui:
        page.get_by_text("Completed · sandbox_noisy · 1.5 QPU s").first.wait_for()
        shoot("job-artifact")
        page.emulate_media(color_scheme="dark")
        picture.wait_for()
        assert picture.is_visible()
        page.emulate_media(color_scheme="light")


def test_the_list_of_artifacts_says_how_each_job_ended(page: Any, site: Any, ui: str, story: Story, shoot: Any) -> None:
    page.goto(site(f"{ui}/artifacts"))
    page.get_by_text("Completed · sandbox_noisy · 1.5 QPU s").first.wait_for()
    if ui:
        shoot("artifacts", size=WIDE)


@flow
def picked(credentials: QuantumRuntimeCredentials, backend: str = "sandbox_ideal", shots: int = 100) -> dict[str, int]:
    """Run one circuit on the instance that somebody picks.

    Args:
        credentials: The instance.
        backend: Name of the backend.
        shots: How often the circuit runs.
    """
    return run_job(credentials, [BELL], backend=backend, shots=shots).counts()


def test_the_form_picks_a_saved_block_by_reference_and_the_run_loads_it(
    page: Any, site: Any, ui: str, story: Story, aside: Callable[..., Any], shoot: Any
) -> None:
    async def deploy() -> UUID:
        return await (await picked.ato_deployment(name="on-demand" if ui else "first-ui")).aapply()

    deployment = aside(lambda: asyncio.run(deploy()))
    saved_later = "open-plan" if ui else "premium-plan"
    aside(lambda: QuantumRuntimeCredentials.load(BLOCK).save(saved_later))  # type: ignore[union-attr]
    page.goto(site(f"{ui}/deployments/deployment/{deployment}/run"))
    options = page.get_by_role("option") if ui else page.locator(".p-select-option")
    if ui:
        page.get_by_role("button", name="Select a block").click()
    else:  # its button opens the list on focus, and a click closes it again
        page.locator(".block-documents-select .p-select-button__icon").click()
    options.filter(has_text=saved_later).wait_for()
    if ui:
        # The logo is on another host, which this browser does not ask.
        shoot("block-picker", size=high(860), style="img[src^=http] { visibility: hidden }")
    options.filter(has_text=re.compile(f"^\\s*{BLOCK}\\s*$")).click()
    page.get_by_role("button", name="Submit").click()

    def submitted() -> FlowRun | None:
        of = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        return next(iter(asked(lambda client: client.read_flow_runs(deployment_filter=of))), None)

    flow_run = aside(until, submitted)
    block = aside(QuantumRuntimeCredentials.load, BLOCK)
    assert flow_run.parameters["credentials"] == {"$ref": {"block_document_id": str(block._block_document_id)}}
    assert aside(start, picked, flow_run).is_completed()
    page.goto(site(f"{ui}/runs/flow-run/{flow_run.id}"))
    page.get_by_text("submitted job").first.wait_for()
    page.get_by_text("Parameters", exact=True).first.click()
    page.get_by_text("block_document_id").or_(page.get_by_text("credentials")).first.wait_for()
    assert API_KEY not in page.content()


def test_a_list_of_names_made_at_deploy_time_is_a_dropdown_that_knows_no_block_saved_later(aside: Any) -> None:
    """Why the documentation shows a parameter of the block's type."""

    async def deploy() -> UUID:
        @flow
        def chosen(credentials_block: Annotated[str, Field(json_schema_extra={"enum": [BLOCK]})]) -> None: ...

        return await (await chosen.ato_deployment(name="names")).aapply()

    deployment = aside(lambda: asyncio.run(deploy()))

    def runs(name: str) -> FlowRun:
        return asked(  # type: ignore[no-any-return]
            lambda client: client.create_flow_run_from_deployment(deployment, parameters={"credentials_block": name})
        )

    aside(runs, BLOCK)
    with pytest.raises(PrefectHTTPStatusError, match="'saved-later' is not one of"):
        aside(runs, "saved-later")


def test_the_deployment_s_form_explains_each_parameter(page: Any, site: Any, ui: str, story: Story, shoot: Any) -> None:
    page.goto(site(f"{ui}/deployments/deployment/{story.deployment}/run"))
    page.get_by_text("credentials_block").first.wait_for()
    shown = " ".join(page.inner_text("body").replace("`", "").split())  # one of the two reads Markdown
    for name, field in run_circuits.parameters.properties.items():
        assert name in shown
        assert field.get("description"), f"{name} has no description"
        assert " ".join(field["description"].replace("`", "").split()) in shown, name
    if ui:
        shoot("deployment-form")
