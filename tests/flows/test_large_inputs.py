"""Circuits beyond what Prefect takes as a flow parameter: said early and by name, and possible by reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import State

from flows.run_circuits import run_circuits
from prefect_qruntime import (
    InvalidInput,
    QuantumRuntimeCredentials,
    QuantumRuntimeJob,
    check_flow_parameters,
    circuit_text,
    submit_job,
)
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, requests, run

pytestmark = pytest.mark.server

LARGE = FLIP + "\n// " + "x" * 600_000  # a comment, so that the circuit stays quick


@pytest.fixture(autouse=True)
def _files_of_the_test_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", str(tmp_path))


def test_too_large_parameters_are_named_before_prefect_sees_them() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_flow_parameters({"shots": 5, "circuits": [FLIP, LARGE], "note": "y" * 1000})
    assert caught.value.field == "circuits"
    assert "524,288" in str(caught.value)
    assert "file:" in str(caught.value)
    assert len(str(caught.value)) < 500
    fine = {"circuits": ["z" * 500_000], "credentials_block": None}
    assert check_flow_parameters(fine) == fine


def test_the_flows_take_circuits_as_text_as_a_path_and_by_reference(tmp_path: Path) -> None:
    file = tmp_path / "my OPENQASM flip.qasm"
    file.write_bytes(b"\xef\xbb\xbf" + FLIP.encode())
    (tmp_path / "flip.qasm").write_text(FLIP)
    for given in (FLIP, file.as_uri(), f"file:{file}", str(tmp_path / "flip.qasm")):
        assert circuit_text(given) == FLIP
    for wrong in ("no such file", "file:/no/such/file", "file://elsewhere.example/flip.qasm"):
        with pytest.raises(InvalidInput) as caught:
            circuit_text(wrong)
        assert caught.value.field == "circuit"


def test_prefects_own_limit_is_where_we_say(sandbox: Sandbox) -> None:
    @flow
    def takes(circuit: str) -> int:
        return len(circuit)

    exact = 524_288 - len('{"circuit":""}')
    assert takes(**check_flow_parameters({"circuit": "x" * exact})) == exact
    with pytest.raises(InvalidInput):
        check_flow_parameters({"circuit": "x" * (exact + 1)})
    with pytest.raises(PrefectHTTPStatusError, match="422"):
        takes(circuit="x" * (exact + 1))
    assert sandbox.control.journal() == []


def test_a_reference_is_a_flow_parameter_of_any_size(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, tmp_path: Path
) -> None:
    file = tmp_path / "large.qasm"
    file.write_text(LARGE)

    @flow
    def by_reference(circuit: str) -> str:
        return submit_job(credentials, [(circuit, None, 7)], backend=BACKEND).id

    job = by_reference(**check_flow_parameters({"circuit": f"file:{file}"}))
    assert requests(sandbox, "POST", "/jobs") == 1
    assert sandbox.control.job(job)["params"]["pubs"] == [[LARGE, None, 7]]


def test_a_block_may_hold_a_reference(sandbox: Sandbox, credentials: QuantumRuntimeCredentials, tmp_path: Path) -> None:
    file = tmp_path / "flip.qasm"
    file.write_text(FLIP)
    block = QuantumRuntimeJob(credentials=credentials, backend=BACKEND, pubs=[[f"file:{file}", None, 7]])

    @flow
    async def triggered() -> dict[str, int]:
        job = await block.trigger()
        await job.wait_for_completion()
        return (await job.fetch_result()).counts()

    assert run(triggered()) == {"1": 7}


@pytest.mark.parametrize("form", ["file:{}", "{}"])
def test_a_block_of_a_form_cannot_read_any_file(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: the state's message showed the file's first 40 characters."""
    secret = tmp_path / "run-secrets-db"
    secret.write_text("SECRET0123456789abcdefghijABCDEFGHIJ0123")
    (tmp_path / "allowed").mkdir()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", str(tmp_path / "allowed"))
    block = QuantumRuntimeJob(credentials=credentials, backend=BACKEND, pubs=[form.format(secret)])

    @flow
    async def triggered() -> None:
        await block.trigger()

    @flow
    def submitted(circuit: str) -> None:
        submit_job(credentials, [circuit], backend=BACKEND)

    states: list[State[Any]] = [
        run(triggered(return_state=True)),  # type: ignore[call-overload]
        submitted(form.format(secret), return_state=True),
        run_circuits(circuits=[form.format(secret)], mode="job", return_state=True),
    ]
    for state in states:
        assert state.is_failed()
        assert "SECRET" not in f"{state.message}{state.data!r}"
    assert requests(sandbox, "POST", "/jobs") == 0
