"""No way of the public face sends a key to a host that the policy does not list; the ways are found by their names."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from prefect import Task, flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate

import prefect_qruntime as qr
from prefect_qruntime import hooks, operations, suspend
from prefect_qruntime.cli import app
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.observability.artifacts import Place
from prefect_qruntime.suspend import waits
from tests.support.command_line import exit_code
from tests.support.flow_runs import BACKEND, FLIP, ran, start
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
JOB, SESSION = "d1abcdefghij", "s1abcdefghij"
ARGUMENTS: dict[str, Any] = {
    "pubs": [FLIP],
    "backend": BACKEND,
    "job": JOB,
    "session": qr.SessionRef(id=SESSION),
    "session_id": SESSION,
    "job_id": JOB,
    "name": BACKEND,
    "mode": "dedicated",
    "max_ttl": 60,
    "drain": True,
    "spec": JobSpec("sampler", BACKEND),
    "tags": ("a",),
    "tag": "a",
    "intent": Intent(spec=JobSpec("sampler", BACKEND), key_tag=lambda number: f"qr-key:{number}"),
}


class _Refused(ThreadingHTTPServer):
    """A host that the policy does not list. It notes what arrives, and says that it knows no such key."""

    def __init__(self) -> None:
        self.arrived: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Refused

    def _answer(self) -> None:
        self.server.arrived.append(self.requestline)
        text = b'{"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}'
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def running_host() -> Iterator[_Refused]:
    host = _Refused()
    thread = threading.Thread(target=host.serve_forever, daemon=True)
    thread.start()
    yield host
    host.shutdown()
    host.server_close()
    thread.join()


@pytest.fixture
def host(running_host: _Refused) -> _Refused:
    running_host.arrived.clear()
    return running_host


@pytest.fixture(scope="module")
def block(prefect_server: Any, running_host: _Refused) -> Iterator[str]:
    """A saved block that points to the host."""
    name = f"refused-{uuid4().hex[:8]}"
    qr.QuantumRuntimeCredentials(
        api_key="refused-hosts-key-0123456789",  # type: ignore[arg-type]
        crn=CRN,
        base_url=f"{running_host.url}/api/v1",
        iam_url=running_host.url,
    ).save(name)
    yield name
    with suppress(ValueError):
        qr.QuantumRuntimeCredentials.delete(name)


@pytest.fixture(scope="module", params=["allows other hosts", "cannot be read"])
def in_force(request: pytest.FixtureRequest, prefect_server: Any) -> Iterator[str]:
    """A policy that lists other hosts only, and one whose document was spoiled in the UI."""
    name = f"policy-{uuid4().hex[:8]}"
    qr.QuantumRuntimePolicy().save(name)
    if request.param == "cannot be read":

        async def spoil(client: PrefectClient) -> None:
            saved = await client.read_block_document_by_name(name, qr.QuantumRuntimePolicy.get_block_type_slug())
            await client.update_block_document(saved.id, BlockDocumentUpdate(data={"rules": [{"nonsense": 1}]}))

        asked(spoil)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", name)
        yield request.param
    qr.QuantumRuntimePolicy.delete(name)


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(value.fn if isinstance(value, Task) else value).parameters)


def called(value: Callable[..., Any], **given: Any) -> None:
    """Call what a user calls, with what it needs, and enter what it returns."""
    needed = {name for name, one in parameters(value).items() if one.default is inspect.Parameter.empty}
    needed |= {"pubs"} & parameters(value).keys()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed -= {name for name, one in parameters(value).items() if one.kind in kinds} | {"self"}
    found = value(**{name: {**ARGUMENTS, **given}[name] for name in needed})
    if inspect.isawaitable(found):

        async def awaited() -> Any:
            return await found

        asyncio.run(awaited())
    elif hasattr(found, "__aenter__"):

        async def entered() -> None:
            async with found:
                pass

        asyncio.run(entered())
    elif hasattr(found, "__enter__"):
        with found:
            pass


def public() -> dict[str, Any]:
    """The public functions and tasks that take credentials, or the name of a block."""
    found = {name: getattr(qr, name) for name in qr.__all__ if name not in ("hooks", "circuit_text")}
    callables = {name: one for name, one in found.items() if callable(one) and not inspect.isclass(one)}
    return {name: one for name, one in callables.items() if {"credentials", "name"} & parameters(one).keys()}


def of_several_blocks() -> dict[str, Any]:
    """The functions of the documented submodules that take blocks' names."""
    found = {}
    for package in (operations, suspend):
        for module in pkgutil.iter_modules(package.__path__):
            members = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            found |= {name: members[name] for name in members.get("__all__", ()) if inspect.isfunction(members[name])}
    return {name: one for name, one in found.items() if "blocks" in parameters(one)}


def methods(of: type) -> list[str]:
    return [name for name, one in inspect.getmembers(of, inspect.isfunction) if inspect.iscoroutinefunction(one)]


def commands() -> list[str]:
    words = [name for name in app if not name.startswith("-")]
    return [
        name
        for name in words
        if any(one.name == "--block" for one in app[name].assemble_argument_collection(parse_docstring=False))
    ]


def test_the_ways_are_found() -> None:
    assert {"run_job", "asuspend_until_done", "runtime_session", "load_credentials", "compare_routes"} <= set(public())
    assert {"run_watch", "run_sweep", "list_jobs", "report_usage", "close_by_id", "run_doctor"} <= set(
        of_several_blocks()
    )
    assert {"doctor", "watch", "sweep", "estimate", "cancel"} <= set(commands())
    assert {"submit", "look", "wait", "knock", "usage"} <= set(methods(qr.QuantumRuntimeClient))


@pytest.mark.parametrize("name", public())
def test_a_function_sends_no_key(host: _Refused, block: str, in_force: str, name: str) -> None:
    caught = list[BaseException]()

    @flow
    def run() -> None:
        credentials = qr.QuantumRuntimeCredentials.load(block)
        try:
            called(public()[name], credentials=credentials, name=block)
        except qr.QuantumRuntimeError as error:
            caught.append(error)

    async def made(client: PrefectClient) -> Any:
        flow_id = await client.create_flow(run)
        deployment = await client.create_deployment(flow_id, f"refused-{uuid4().hex[:8]}", entrypoint="x:y", path=".")
        return await client.create_flow_run_from_deployment(deployment)

    start(run, asked(made))  # with a deployment, so that it can be suspended
    assert host.arrived == []
    if "leave_to_watcher" not in name:  # which needs no service
        assert [type(one) for one in caught] == [qr.PolicyRefused]


@pytest.mark.parametrize("name", of_several_blocks())
def test_a_function_for_operators_sends_no_key(host: _Refused, block: str, in_force: str, name: str) -> None:
    network_loop().run(waits.note_left(JOB, Place(block, None), flow_run_id=None))  # which the watcher follows
    more = {"once": True} if "once" in parameters(of_several_blocks()[name]) else {}
    with suppress(qr.QuantumRuntimeError):
        called(partial(of_several_blocks()[name], blocks=[block], **more))
    assert host.arrived == []


@pytest.mark.parametrize("name", commands())
def test_a_command_sends_no_key(
    host: _Refused, block: str, in_force: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [JOB] * {"compare": 2, "result": 1, "cancel": 1}.get(name, 0)
    more = {"watch": ["--once"], "estimate": ["--pubs", "[]", "--backend", BACKEND]}.get(name, [])
    exit_code(name, *jobs, "--block", block, *more)
    assert host.arrived == [], capsys.readouterr()


def test_a_client_sends_no_key(host: _Refused, block: str, in_force: str) -> None:
    """Whatever is asked of it, even what no task asks; its connection may be taken out of it, too."""
    credentials = qr.QuantumRuntimeCredentials.load(block)
    for client in (credentials.get_client(), qr.QuantumRuntimeClient(credentials.get_client().connection)):
        for name in methods(qr.QuantumRuntimeClient):
            with suppress(qr.PolicyRefused):
                called(partial(client.estimate_cost, backend=BACKEND) if "cost" in name else getattr(client, name))
            assert host.arrived == [], name


@pytest.mark.parametrize("name", ["verify", "averify", "trigger", "submit"])
def test_a_block_sends_no_key(host: _Refused, block: str, in_force: str, name: str) -> None:
    credentials = qr.QuantumRuntimeCredentials.load(block)
    for above in (None, 1e9) if name == "trigger" else (None,):
        job = qr.QuantumRuntimeJob(credentials=credentials, backend=BACKEND, pubs=[FLIP], require_approval_above=above)

        @flow
        def run(job: Any = job) -> None:
            with pytest.raises(qr.PolicyRefused):
                called(getattr(credentials if "verify" in name else job, name))

        assert ran(run)[1].is_completed()
        assert host.arrived == []


@pytest.mark.parametrize("name", methods(qr.QuantumRuntimeJobRun))
def test_a_run_of_a_job_block_sends_no_key(host: _Refused, block: str, in_force: str, name: str) -> None:
    job = qr.QuantumRuntimeJobRun(qr.QuantumRuntimeCredentials.load(block), qr.JobRef(id=JOB))

    @flow
    def run() -> None:
        with pytest.raises(qr.PolicyRefused):
            called(getattr(job, name))

    assert ran(run)[1].is_completed()
    assert host.arrived == []


@pytest.mark.parametrize("hook", [hooks.on_cancellation, hooks.on_cancellation_detach, hooks.on_crashed])
def test_a_hook_sends_no_key(host: _Refused, block: str, in_force: str, hook: Callable[..., None]) -> None:
    @flow
    def run(credentials_block: str) -> None: ...

    flow_run, state = ran(run, block)
    hook(run, flow_run, state)
    assert host.arrived == []


def test_the_host_is_reached_if_the_policy_lists_it(
    host: _Refused, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"policy-{uuid4().hex[:8]}"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", name)
    qr.QuantumRuntimePolicy(hosts=["127.0.0.1:*"]).save(name)
    with pytest.raises(qr.AuthenticationError):
        called(qr.QuantumRuntimeCredentials.load(block).get_client().usage)
    assert [line.split()[1] for line in host.arrived] == ["/identity/token"]
    qr.QuantumRuntimePolicy.delete(name)
