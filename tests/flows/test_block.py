"""The credentials block: registered, saved, loaded, shown; its secrets; what `verify` says."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pytest
from prefect import flow, task
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from prefect_qruntime import InvalidInput, QuantumRuntimeCredentials, aload_credentials, load_credentials, submit_job
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.prefect_api import api
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import exit_code
from tests.support.flow_runs import BACKEND, FLIP, ran, records, run, task_runs
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server


class TestByPrefectsOwnStandard(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        return QuantumRuntimeCredentials

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Without fetching it from the network."""
        assert str(block._logo_url).startswith("https://")


def test_the_form_names_and_explains_every_field() -> None:
    schema = QuantumRuntimeCredentials.model_json_schema()
    assert set(schema["required"]) == {"api_key", "crn"}
    assert set(schema["secret_fields"]) == {"api_key", "proxy"}
    for name, field in schema["properties"].items():
        assert field["title"], name
        assert field["description"].endswith("."), name


def test_saved_and_loaded_it_is_the_same_and_its_secrets_are_masked(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    document_id = credentials.save("block-saved", overwrite=True)
    loaded = load_credentials("block-saved")
    assert loaded.model_dump(context={"include_secrets": True}) == credentials.model_dump(
        context={"include_secrets": True}
    )
    assert run(loaded.averify()).ok

    document = asked(lambda client: client.read_block_document(document_id, include_secrets=False))
    assert document.block_type is not None
    assert document.block_type.slug == "quantum-runtime-credentials"
    shown = document.model_dump_json() + repr(loaded) + str(loaded) + loaded.model_dump_json()
    assert sandbox.api_key not in shown
    assert document.data["crn"] == sandbox.crn


def test_a_name_that_does_not_exist(prefect_server: Any) -> None:
    with pytest.raises(InvalidInput, match="no-such-block") as caught:
        load_credentials("no-such-block")
    assert caught.value.field == "name"


@pytest.mark.parametrize("name", ["nightly\n", "nightly\r\n", "a\tb", "\x00", "a\u2028b"])
def test_a_name_with_a_control_character(prefect_server: Any, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be loaded") as caught:
        load_credentials(name)
    assert caught.value.field == "name"
    assert name not in str(caught.value)


def test_a_block_saved_under_a_name_with_a_line_break_stops_no_command(
    credentials: QuantumRuntimeCredentials, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect saves it, but cannot ask for it: a name read from a file, for instance."""
    document = run(credentials.asave("from-a-file\n"))

    async def drop() -> None:
        async with get_client() as client:
            await client.delete_block_document(document)

    try:
        for command in ("jobs", "sessions", "sweep", "backends", "usage"):
            assert exit_code(command) == 1
            assert "'from-a-file\\n' cannot be loaded" in capsys.readouterr().err
        assert exit_code("doctor", "--json") == 1
        assert "cannot be loaded" in capsys.readouterr().out
    finally:
        run(drop())


def test_a_misspelt_name_in_async_code_binds_no_client_to_its_loop(prefect_server: PrefectServer) -> None:
    async def documents() -> int:
        return len(await (await api()).read_block_documents())

    another = prefect_server.url.replace("127.0.0.1", "localhost")  # for which no client is open yet
    with temporary_settings({PREFECT_API_URL: another}):
        with pytest.raises(InvalidInput, match="block-misspelt"):
            run(aload_credentials("block-misspelt"))  # on a loop that is closed then
        assert network_loop().run(documents()) >= 0


def test_prefects_client_is_refused_to_a_foreign_loop() -> None:
    with pytest.raises(RuntimeError, match="belongs to the network loop"):
        run(api())


def test_the_key_is_in_no_parameter_result_or_record(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @task(persist_result=True)
    def hand_on(block: QuantumRuntimeCredentials) -> str:
        return block.crn

    @flow(persist_result=True)
    def with_block(block: QuantumRuntimeCredentials) -> Any:
        hand_on(block)
        return submit_job(block, [FLIP], backend=BACKEND)

    flow_run, state = ran(with_block, credentials)
    assert state.is_completed()
    runs = task_runs(flow_run.id, 2)
    assert len(runs) == 2
    seen = [
        flow_run.model_dump_json(),
        *(task_run.model_dump_json() for task_run in runs),
        *(json.dumps(dict(record.meta)) for record in records("job", flow_run.id)),
        run(state.aresult()).model_dump_json(),
    ]
    assert "crn:v1" in seen[0], "the parameter is not stored at all, so nothing is tested"
    assert not [text for text in seen if sandbox.api_key in text]


def test_a_masked_key_says_why_it_cannot_work(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    masked = QuantumRuntimeCredentials.model_validate(json.loads(credentials.model_dump_json()))
    with pytest.raises(InvalidInput, match="deployment parameter") as caught:
        masked.get_client()
    assert caught.value.field == "api_key"
    assert sandbox.control.journal() == []


def test_building_loading_and_getting_a_client_use_no_network(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    credentials.save("block-quiet", overwrite=True)
    load_credentials("block-quiet").get_client()
    assert sandbox.control.journal() == []


def test_verify_of_a_working_block(credentials: QuantumRuntimeCredentials) -> None:
    report = credentials.verify()
    assert (report.ok, report.problems, report.missing_rights) == (True, (), ())
    assert BACKEND in report.backends
    assert report.token_seconds_left is not None
    assert report.token_seconds_left > 60


def test_verify_names_a_wrong_key(sandbox: Sandbox) -> None:
    wrong = QuantumRuntimeCredentials(**{**sandbox.connection(), "api_key": "not-the-key-0123456789"})
    report = wrong.verify()
    assert not report.ok
    assert "API key" in report.problems[0]
    assert "not-the-key" not in report.model_dump_json()


def test_verify_names_an_instance_of_somebody_else(sandbox: Sandbox) -> None:
    crn = sandbox.crn.replace(sandbox.crn.split(":")[7], "00000000-0000-4000-8000-000000000000")
    report = QuantumRuntimeCredentials(**{**sandbox.connection(), "crn": crn}).verify()
    assert not report.ok
    assert "crn" in report.problems[0].lower()


def test_verify_names_a_wrong_path(sandbox: Sandbox) -> None:
    fields = {**sandbox.connection("cloud"), "base_url": sandbox.url + "/nowhere"}
    report = QuantumRuntimeCredentials(**fields).verify()
    assert not report.ok
    assert f"Set base_url to {sandbox.base_url()}" in report.problems[0]


def test_verify_names_the_wrong_dialect(sandbox: Sandbox) -> None:
    report = QuantumRuntimeCredentials(**{**sandbox.connection("legacy"), "base_url": sandbox.base_url()}).verify()
    assert not report.ok
    assert "Set dialect to cloud" in report.problems[0]


def test_verify_names_a_wrong_iam_address(sandbox: Sandbox) -> None:
    fields = {**sandbox.connection(), "iam_url": sandbox.url + "/nowhere"}
    report = QuantumRuntimeCredentials(**fields).verify()
    assert not report.ok
    assert f"Set iam_url to {sandbox.iam_url}" in report.problems[0]
    assert "API key" not in report.problems[0]
    posts = len(sandbox.control.journal("POST", "/nowhere/*"))
    assert 1 <= posts <= 6, "somebody waits for the answer: it is not asked for as long as a flow would"


def test_verify_tells_that_no_time_is_left(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.set_usage(consumed=100, limit=100)
    report = credentials.verify()
    assert not report.ok
    assert "no QPU time left" in report.problems[0]
    assert report.backends, "what works is still shown"


KEY = "Zk3yABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcd"


@pytest.mark.parametrize("given", [{"api_key": KEY}, {"api_key": [KEY], "crn": "c"}, {"api_key": KEY, "CRN": "c"}])
def test_a_flow_that_builds_a_wrong_block_stores_and_logs_no_key(
    given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def builds() -> None:
        QuantumRuntimeCredentials(**given)

    flow_run, state = ran(builds)
    assert state.is_failed()
    assert "QuantumRuntimeCredentials" in str(state.message)
    assert KEY[:20] not in flow_run.model_dump_json() + str(state.message) + caplog.text


@pytest.mark.parametrize("load", [QuantumRuntimeCredentials.load, load_credentials, "aload", "awaited"])
def test_a_document_without_a_crn_is_refused_without_its_key(load: Any, credentials: QuantumRuntimeCredentials) -> None:
    credentials.save("block-without-crn", overwrite=True)

    async def spoil(client: Any) -> None:
        saved = await client.read_block_document_by_name("block-without-crn", credentials.get_block_type_slug())
        change = BlockDocumentUpdate(data={"api_key": KEY}, merge_existing_data=False)
        await client.update_block_document(saved.id, change)

    asked(spoil)

    async def awaited() -> Any:
        return await (
            QuantumRuntimeCredentials.aload("block-without-crn")
            if load == "aload"
            else QuantumRuntimeCredentials.load("block-without-crn")  # type: ignore[misc]
        )

    with pytest.raises((RuntimeError, InvalidInput)) as caught:
        load("block-without-crn") if callable(load) else run(awaited())
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    found = [line for line in shown if "KEY = " not in line]
    assert KEY[:20] not in "".join(found), found
    assert "crn" in "".join(found)


def test_without_validation_a_block_with_an_unknown_field_is_loaded(credentials: QuantumRuntimeCredentials) -> None:
    credentials.save("block-of-another-version", overwrite=True)

    async def spoil(client: Any) -> None:
        saved = await client.read_block_document_by_name("block-of-another-version", credentials.get_block_type_slug())
        await client.update_block_document(saved.id, BlockDocumentUpdate(data={"no name": "x", "baseurl": "x"}))

    asked(spoil)
    with pytest.raises(InvalidInput, match=r"baseurl: Not a field of this block. Did you mean 'base_url'\? Correct it"):
        load_credentials("block-of-another-version")
    loaded = QuantumRuntimeCredentials.load("block-of-another-version", validate=False)
    assert (loaded.api_key, loaded.base_url) == (credentials.api_key, credentials.base_url)
