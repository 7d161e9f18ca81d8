"""Each Python block of the README, the documentation and the docstrings runs, on the sandbox and a real Prefect server.

The blocks of a page run in order in one namespace, as a reader follows it. A flow that the page defines and does not
call is called with what the fixture `arguments` has for its parameters, a function `test_…` with its fixtures. No block
is left out.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import BaseFlowRunEngine

from prefect_qruntime import Budget, QuantumRuntimeCredentials, QuantumRuntimeJob, QuantumRuntimePolicy, submit_job
from prefect_qruntime.sandbox import Sandbox
from tests.docs.blocks import ROOT, Block, Page, docstrings, pages
from tests.support.prefect_server import PrefectServer

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
# A reader puts names and keys of theirs here. The block that has placeholders only is not to hide the sandbox's.
NAMES = {
    "ibm_torino": "sandbox_ideal",
    "BLOCK_NAME": "ibm",
    'YOUR-INSTANCE::",\n).save("ibm"': 'YOUR-INSTANCE::",\n).save("placeholders"',
}

PAGES = [page for page in (*pages(), *docstrings()) if page.of("python")]


async def kept() -> dict[str, set[UUID]]:
    """What pages can leave behind in Prefect: saved blocks and automations."""
    async with get_client() as client:
        return {
            "blocks": {document.id for document in await client.read_block_documents(limit=200)},
            "automations": {automation.id for automation in await client.read_automations()},
        }


async def drop(new: dict[str, set[UUID]], old: dict[str, set[UUID]]) -> None:
    async with get_client() as client:
        for block_id in new["blocks"] - old["blocks"]:
            await client.delete_block_document(block_id)
        for automation_id in new["automations"] - old["automations"]:
            await client.delete_automation(automation_id)


@contextmanager
def leaves_nothing() -> Iterator[None]:
    """Drop what was made in Prefect meanwhile: the server is shared, and its automations act on everybody's runs."""
    before = asyncio.run(kept())
    try:
        yield
    finally:
        asyncio.run(drop(asyncio.run(kept()), before))


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.05, "run_time": 0.05, "api_key": "docs-tests-key-0123456789"}


@pytest.fixture(scope="module", autouse=True)
def blocks(running_sandbox: Sandbox, prefect_server: PrefectServer) -> Iterator[None]:
    """Save the blocks that the pages load; the pages share one sandbox, as their reader does."""
    with pytest.MonkeyPatch.context() as patch, leaves_nothing():
        # Stands for the default of 30 s, for which a purchase under a key of the caller's looks first.
        patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.4")
        # Prefect joins its heartbeat thread, which costs each sync flow a second.
        patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
        credentials = QuantumRuntimeCredentials(**running_sandbox.connection("cloud"))
        credentials.save("ibm", overwrite=True)
        Budget(max_jobs_per_run=5).save("ibm", overwrite=True)
        QuantumRuntimePolicy().save("ibm", overwrite=True)  # in force only under the name that the settings say
        QuantumRuntimeJob(credentials=credentials, backend="sandbox_ideal", pubs=[BELL]).save("ibm", overwrite=True)
        yield


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """What the flows of the documentation are called with."""
    return {
        "credentials_block": "ibm",
        "backend": "sandbox_ideal",
        "circuit": BELL,
        "circuits": [BELL, BELL],
        "folder": tmp_path,
        "path": str(tmp_path / "rows.csv"),
        "name": "nightly-flip",
    }


def called_names(code: str) -> set[str]:
    """Functions that the block itself calls, at its top level."""
    calls = [
        node.func.id
        for statement in ast.parse(code).body
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    return set(calls)


def run_block(block: Block, module: ModuleType) -> list[Any]:
    """Run a block; returns what it defined and did not call: flows and tests."""
    code = block.code
    for shown, real in NAMES.items():
        code = code.replace(shown, real)
    before = dict(vars(module))
    # Padded, so that a traceback names the line in the page.
    exec(compile("\n" * (block.line - 1) + code, ROOT / block.page, "exec"), vars(module))
    called = called_names(code)
    return [
        value
        for name, value in vars(module).items()
        if before.get(name) is not value
        and name not in called
        and (
            (isinstance(value, Flow) and value.fn.__module__ == module.__name__)
            or (inspect.isfunction(value) and name.startswith("test_"))
        )
    ]


def call(what: Any, arguments: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if not isinstance(what, Flow):
        what(**{name: request.getfixturevalue(name) for name in inspect.signature(what).parameters})
        return
    given = {}
    for name, parameter in inspect.signature(what.fn).parameters.items():
        if name == "credentials":
            given[name] = QuantumRuntimeCredentials.load("ibm")
        elif name == "job_id":
            given[name] = submit_job(QuantumRuntimeCredentials.load("ibm"), [BELL], backend="sandbox_ideal").id
        elif name in arguments:
            given[name] = arguments[name]
        else:
            assert parameter.default is not parameter.empty, f"`arguments` has nothing for {what.name}({name})"
    result = what(**given)
    if inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")  # by another Dask cluster on this machine
@pytest.mark.parametrize("page", PAGES, ids=[page.path for page in PAGES])
def test_python_blocks_run(
    page: Page, arguments: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    # A real module: tasks and flows that go to other processes are pickled by its name.
    module = ModuleType(f"docs_page_{uuid4().hex[:8]}")
    module.__file__ = str(ROOT / page.path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(arguments["folder"])
    with leaves_nothing():
        for block in page.of("python"):
            for left in run_block(block, module):
                call(left, arguments, request)
