"""A block that was saved in the UI with a wrong field stops no command from doing its work with the others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prefect.client.schemas.actions import BlockDocumentCreate

import prefect_qruntime as qr
from prefect_qruntime.cli import app
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import exit_code
from tests.support.flow_runs import BACKEND, FLIP
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
GOOD, WRONG = "wrong-block-good", "wrong-block-from-the-ui"
COMMANDS = sorted(
    name
    for name in app
    if not name.startswith("-")
    and name != "estimate"  # it prices on one block
    and any(one.name == "--block" for one in app[name].assemble_argument_collection(parse_docstring=False))
)


@pytest.fixture
def blocks(sandbox: Sandbox) -> Iterator[qr.QuantumRuntimeCredentials]:
    """A good block, and one as the UI saves it: without a look at what is in its fields."""
    good = qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    good.save(GOOD, overwrite=True)

    async def save_wrong(client: object) -> object:
        saved = await client.read_block_document_by_name(GOOD, good.get_block_type_slug())  # type: ignore[attr-defined]
        return await client.create_block_document(  # type: ignore[attr-defined]
            BlockDocumentCreate(
                name=WRONG,
                data={**saved.data, "crn": saved.data["crn"].replace("quantum-computing", "kms")},
                block_type_id=saved.block_type_id,
                block_schema_id=saved.block_schema_id,
            )
        )

    document = asked(save_wrong)
    yield good
    asked(lambda client: client.delete_block_document(document.id))  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_block_stops_none_of_the_others_and_is_named(
    blocks: qr.QuantumRuntimeCredentials,
    sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    client = blocks.get_client()
    job = client.run(client.submit(Intent(spec=make_spec([FLIP], backend=BACKEND), key_tag=lambda _: "wrong-block")))
    sandbox.control.wait_job(job.id)
    with_job = command in ("result", "cancel", "compare")
    chosen = [] if with_job else ["--block", GOOD, "--block", WRONG]
    more = {"watch": ["--once"], "sweep": ["--dry-run"]}.get(command, [])
    jobs = [job.id] * {"compare": 2}.get(command, int(with_job))
    arguments = [command, *jobs, *chosen, *more, "--json"]
    code = exit_code(*arguments)
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    told = shown.out + shown.err
    if command == "jobs":
        assert [one["id"] for one in report["jobs"]] == [job.id]
    elif command == "backends":
        assert {one["block"] for one in report if "problem" not in one} == {GOOD}
        assert {one["block"] for one in report if "problem" in one} == {WRONG}
    if with_job or command == "watch":  # which needed the good one only
        assert code == 0, told
        return
    assert code == 1, told
    assert WRONG in told
    assert "its service is 'kms'" in told


def test_a_misspelt_block_brings_the_nearest_names(blocks: qr.QuantumRuntimeCredentials) -> None:
    with pytest.raises(InvalidInput) as caught:
        qr.load_credentials("wrong-block-god")
    assert f"Did you mean {GOOD!r}" in str(caught.value)


def test_a_flow_with_a_block_as_its_parameter_has_a_picker_and_keeps_the_key_out_of_its_parameters(
    blocks: qr.QuantumRuntimeCredentials,
) -> None:
    """Prefect's form picks a saved block for a parameter of a block's type, and passes a reference to it."""
    from prefect import flow

    @flow
    def picked(credentials: qr.QuantumRuntimeCredentials) -> str:
        return credentials.get_client().connection.crn

    schema = picked.parameters.model_dump()
    (shape,) = schema["definitions"].values()
    assert shape["block_type_slug"] == blocks.get_block_type_slug()
    reference = {"$ref": {"block_document_id": str(blocks._block_document_id)}}
    assert picked(credentials=reference) == blocks.crn
    assert blocks.api_key.get_secret_value() not in json.dumps(picked.serialize_parameters({"credentials": blocks}))
