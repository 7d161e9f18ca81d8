"""Every request of our own client in the cloud dialect is one that the OpenAPI document knows."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.models import JobRef, SessionRef
from prefect_qruntime.sandbox import Sandbox
from tests.support.sandbox_api import BELL, BELL_STATE, DOCUMENT

TURNED = (
    'OPENQASM 3.0; include "stdgates.inc"; input float[64] phi; input float[64] theta; qubit[1] q; bit[1] c;'
    "rx(theta) q[0]; rz(phi) q[0]; c[0] = measure q[0];"
)
SAMPLER_OPTIONS = {
    "default_shots": 20,
    "dynamical_decoupling": {"enable": True, "sequence_type": "XpXm"},
    "execution": {"init_qubits": True, "rep_delay": 0.00025},
    "twirling": {"enable_measure": True, "num_randomizations": 4, "shots_per_randomization": "auto"},
    "simulator": {"seed_simulator": 7},
}
ESTIMATOR_OPTIONS = {
    "resilience_level": 2,
    "precision": 0.1,
    "default_precision": 0.1,
    "resilience": {"zne_mitigation": True, "zne": {"noise_factors": [1, 3], "extrapolator": ["linear", "fallback"]}},
}


def _circuit(*, measured: bool) -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    circuit.rx(Parameter("t"), 0)
    if measured:
        circuit.measure(0, 0)
    return circuit


JOBS: dict[str, dict[str, Any]] = {
    "text": {"pubs": BELL, "shots": 10, "tags": ["mine"], "max_execution_time": 60},
    "values by name": {"pubs": [(TURNED, {"theta": [1, 2], "phi": [0, 1]}, 5), BELL], "options": SAMPLER_OPTIONS},
    "values in a list": {"pubs": [(TURNED, [[0, 1], [1, 2]])], "private": True},
    "circuit": {"pubs": [(_circuit(measured=True), [[0.1], [0.2]], 7)]},
    "estimator": {
        "pubs": [(BELL_STATE, ["ZZ", {"XX": 0.5, "ZI": -1}], None, 0.1), (BELL_STATE, "ZZ")],
        "program_id": "estimator",
        "options": ESTIMATOR_OPTIONS,
        "shots": 100,
    },
    "estimated circuit": {"pubs": [(_circuit(measured=False), [["Z"], ["X"]], [0, 1, 2])], "program_id": "estimator"},
    "raw": {
        "pubs": None,
        "program_id": "sampler",
        "params": {"pubs": [[BELL, None, 5]], "version": 2, "options": {"default_shots": 5}},
    },
}


class Seen:
    """The requests that were sent and taken, checked one after the other."""

    def __init__(self, base: str) -> None:
        self.base = httpx.URL(base)
        self.requests: list[httpx.Request] = []

    def check(self) -> set[str]:
        """Check all and return what they were, ids left out."""
        kinds = set()
        for request in self.requests:
            path = request.url.path.removeprefix(self.base.path)
            DOCUMENT.check_request(request.method, f"/v1{path}", request)
            parts = path.strip("/").split("/")
            kinds.add(" ".join([request.method, parts[0], *parts[2:]]))
        return kinds


@pytest.fixture
def client(fast: Sandbox) -> QuantumRuntimeClient:
    return QuantumRuntimeClient(Connection(**fast.connection("cloud")))


@pytest.fixture
def seen(fast: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen(fast.base_url("cloud"))
    send = httpx.AsyncClient.send

    async def watched(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = await send(self, request, **options)
        if answer.is_success and request.url.path.startswith(found.base.path):
            found.requests.append(request)
        return answer

    monkeypatch.setattr(httpx.AsyncClient, "send", watched)
    return found


@pytest.mark.parametrize("name", JOBS)
def test_submissions(client: QuantumRuntimeClient, seen: Seen, name: str) -> None:
    given = {"backend": "sandbox_ideal", **JOBS[name]}
    spec = make_spec(given.pop("pubs"), **given)
    ref = client.run(client.submit(Intent(spec, lambda g: f"qr-key:{name}{g}", tags=("qr-flow:x", *spec.tags))))
    client.run(client.wait(ref.id))
    assert client.run(client.result(ref)).num_pubs == len(spec.pubs) or spec.params
    assert {"POST jobs", "GET jobs results"} <= seen.check()


def test_everything_else(client: QuantumRuntimeClient, seen: Seen) -> None:
    numbers = itertools.count()

    async def all_calls() -> None:
        await client.backends()
        await client.backend_status("sandbox_ideal")
        await client.backend_configuration("sandbox_ideal")
        await client.backend_properties("sandbox_ideal")
        await client.versions()
        await client.usage()
        await client.instance()
        await client.instance_configuration()
        sessions = [
            await client.open_session("sandbox_ideal", mode="dedicated", max_ttl=600),
            await client.open_session("sandbox_ideal", mode="batch"),
        ]
        jobs = [await self_made(session) for session in sessions]
        for session, drain in zip(sessions, (True, False), strict=True):
            assert session.id is not None
            await client.close_session(session.id, drain=drain)
        await client.wait(jobs[0].id)
        await client.jobs_tagged("qr-key:s0-0")
        await client.jobs(
            tags=("qr-flow:x",), created_after=datetime(2020, 1, 1, tzinfo=UTC), session_id=sessions[0].id, limit=3
        )
        await client.jobs(pending=True, backend="sandbox_ideal", program="sampler")
        await client.workloads(limit=2, mode="session", backend="sandbox_ideal")
        await client.replace_tags(jobs[0].id, ["a", "b"])
        await client.job_input(jobs[0].id)
        await client.logs(jobs[0].id)
        await client.metrics(jobs[0].id)
        waiting = await self_made(None, backend="sandbox_paused")
        await client.cancel(waiting.id)
        await client.delete_job(jobs[0].id)

    async def self_made(session: SessionRef | None, backend: str = "sandbox_ideal") -> JobRef:
        spec = make_spec(BELL, backend=backend, shots=5)
        number = next(numbers)  # equal keys in one process are one job
        return await client.submit(
            Intent(spec, lambda g: f"qr-key:s{number}-{g}", tags=("qr-flow:x",), session=session)
        )

    numbers = itertools.count()

    client.run(all_calls())
    kinds = seen.check()
    assert {"POST sessions", "PATCH sessions", "DELETE sessions close", "PUT jobs tags", "POST jobs cancel"} <= kinds


def test_a_request_that_the_document_does_not_know_is_told() -> None:
    def request(method: str, query: str = "", body: Any = None) -> httpx.Request:
        return httpx.Request(method, f"http://x/v1/jobs{query}", json=body)

    good = {"program_id": "sampler", "backend": "b", "params": {"pubs": [[BELL]], "version": 2}}
    DOCUMENT.check_request("POST", "/v1/jobs", request("POST", body=good))
    bad = [
        {**good, "params": {"pubs": [[BELL]], "version": 2, "shotz": 5}},
        {**good, "params": {"pubs": [[BELL]], "options": {"twirlin": {}}}},
        {**good, "tags": ["x" * 87]},
        {"program_id": "sampler"},
    ]
    for body in bad:
        with pytest.raises(Exception, match="Failed validating"):
            DOCUMENT.check_request("POST", "/v1/jobs", request("POST", body=body))
    for query in ("?limit=x", "?pending=True", "?sort=UP", "?nothing=1"):
        with pytest.raises(AssertionError):
            DOCUMENT.check_request("GET", "/v1/jobs", request("GET", query))
