"""What refusals of a backend, an instance or a key say beyond the service's own words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    ServiceUnavailable,
)
from tests.support.circuits import BELL
from tests.support.mock_client import connection, sent

BASE = "https://quantum.cloud.ibm.com/api/v1"
Connect = Callable[..., QuantumRuntimeClient]
NAMES = ["ibm_torino", "ibm_toronto", *(f"other_{number}" for number in range(9))]


def refusal(code: str, message: str) -> dict[str, object]:
    return {"errors": [{"code": code, "message": message}], "trace": "t"}


def backends(mock: HTTPXMock, names: list[str] = NAMES) -> None:
    mock.add_response(
        url=f"{BASE}/backends", json={"devices": [{"name": name, "status": {"name": "online"}} for name in names]}
    )


def submitting(client: QuantumRuntimeClient) -> QuantumRuntimeError:
    intent = Intent(spec=make_spec([BELL], backend="ibm_torono"), key_tag=lambda _: "qr-key:hints")
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.submit(intent))
    return caught.value


def asking(client: QuantumRuntimeClient) -> QuantumRuntimeError:
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.backend_configuration("ibm_torono"))
    return caught.value


@pytest.mark.parametrize("status", [404, 400])
def test_a_submission_to_a_misspelt_backend_names_the_nearest(iam: HTTPXMock, connect: Connect, status: int) -> None:
    iam.add_response(method="POST", url=f"{BASE}/jobs", status_code=status, json=refusal("x", "device not found"))
    backends(iam)
    error = submitting(connect())
    assert isinstance(error, NotFound | InvalidInput)
    assert error.solution == (
        "Did you mean 'ibm_toronto' or 'ibm_torino'? The instance has ibm_torino, ibm_toronto, "
        "other_0, other_1, other_2, other_3, other_4, other_5 and 3 more."
    )


def test_so_does_a_question_about_one(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(
        url=f"{BASE}/backends/ibm_torono/configuration", status_code=404, json=refusal("x", "Backend not found.")
    )
    backends(iam, ["ibm_fez"])
    assert asking(connect()).solution == "The instance has ibm_fez."


def test_a_list_that_fails_hides_no_refusal(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(method="POST", url=f"{BASE}/jobs", status_code=404, json=refusal("x", "Backend not found."))
    iam.add_response(url=f"{BASE}/backends", status_code=503, is_reusable=True)
    error = submitting(connect())
    assert isinstance(error, NotFound)
    assert not isinstance(error, ServiceUnavailable)


def test_other_refusals_ask_for_no_list(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(method="POST", url=f"{BASE}/jobs", status_code=404, json=refusal("x", "Program not found."))
    submitting(connect())
    assert not sent(iam, "/backends")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [(404, "Instance not found.", NotFound), (403, "No access to this instance.", PermissionDenied)],
)
def test_a_wrong_instance_names_the_block_and_the_region(
    iam: HTTPXMock, status: int, message: str, kind: type[QuantumRuntimeError]
) -> None:
    iam.add_response(
        url=f"{BASE}/backends/ibm_fez/status", status_code=status, json=refusal("x", message), is_reusable=True
    )
    client = QuantumRuntimeClient(connection(block="ibm"))
    with pytest.raises(kind) as caught:
        client.run(client.backend_status("ibm_fez"))
    assert "The CRN of block 'ibm' is for an instance in us-east: " in str(caught.value)


def test_a_key_that_is_unknown_names_its_block(httpx_mock: HTTPXMock) -> None:
    body = {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}
    httpx_mock.add_response(method="POST", status_code=400, json=body, is_reusable=True)
    client = QuantumRuntimeClient(connection(block="ibm"))
    for call in (client.authenticate, client.backends):
        with pytest.raises(AuthenticationError) as caught:
            client.run(call())
        assert str(caught.value).count("The key is that of block 'ibm'.") == 1


def test_callers_that_share_a_token_request_get_errors_of_their_own(httpx_mock: HTTPXMock) -> None:
    body = {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}
    httpx_mock.add_response(method="POST", status_code=400, json=body, is_reusable=True)
    client = QuantumRuntimeClient(connection(block="ibm"))

    async def together() -> list[Any]:
        return await asyncio.gather(*(client.backends() for _ in range(8)), return_exceptions=True)

    errors = client.run(together())
    assert len({id(error) for error in errors}) == 8
    assert {str(error).count("The key is that of block 'ibm'.") for error in errors} == {1}


def test_two_blocks_of_one_connection_are_both_named(iam: HTTPXMock) -> None:
    """They share token and sockets, so it is not known which of them was meant."""
    iam.add_response(
        url=f"{BASE}/backends/x/status", status_code=404, json=refusal("x", "Instance not found."), is_reusable=True
    )
    key = "one-key-for-two-blocks"
    for name, named in (("ibm", "block 'ibm' is"), ("ibm-2", "block 'ibm' or 'ibm-2' is")):
        client = QuantumRuntimeClient(connection(api_key=key, block=name))
        with pytest.raises(NotFound) as caught:
            client.run(client.backend_status("x"))
        assert named in str(caught.value)
