"""The structure of the package: who may import whom by folder, the bounds of its figures, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_qruntime
from tools import structure

PACKAGE = structure.PACKAGE
MODULES = structure.modules()
ARROWS = structure.arrows(MODULES)
SANDBOX = {
    name: path
    for path in sorted((structure.ROOT / "sandbox").rglob("*.py"))
    for name in [".".join(path.relative_to(structure.ROOT.parent).with_suffix("").parts)]
}

# The rooms of the hall from the ground up; each may import those before it, never one after it. Inside `client/`, the
# same for its rooms.
HALL = (
    *("errors", "models", "redact", "settings"),
    *("client", "flow_parameters"),
    *("prefect_api", "run_context", "observability"),
    *("admission", "result_storage", "cancellation", "diagnostics", "credentials"),
    *("hooks", "tasks"),
    *("jobs", "sessions", "suspend"),
    *("blocks", "operations", "cli"),
)
CLIENT = (
    *("network_loop", "connection", "failures", "parsing", "encodings", "transport"),
    *("inputs", "programs", "cost_core", "dialects"),
    *("provenance", "service", "results", "waiting", "payload_check"),
    *("submission_keys", "submission_core", "session_core", "submission", "sessions"),
    *("fetching", "client"),
)


def top_level(path: Path) -> set[str]:
    """The packages that a module imports anywhere, its functions included, those for type checkers left out."""
    return {name.split(".")[0] for name, _ in structure.imports(ast.parse(path.read_text()))}


def test_figures_stay_within_their_bounds() -> None:
    figures = structure.figures()
    over = {name: figures[name] for name, bound in structure.BOUNDS.items() if figures[name] > bound}
    assert not over, f"too many: {over}; `python tools/structure.py --levels` shows where"


def room(name: str, depth: int) -> str | None:
    parts = name.split(".")
    return parts[depth] if len(parts) > depth else None


@pytest.mark.parametrize(("order", "depth", "inside"), [(HALL, 1, PACKAGE), (CLIENT, 2, f"{PACKAGE}.client")])
def test_lower_rooms_never_import_upper_ones(order: tuple[str, ...], depth: int, inside: str) -> None:
    here = {name: room(name, depth) for name in MODULES if name.startswith(f"{inside}.")}
    unknown = {name for name, one in here.items() if one not in order}
    assert not unknown, f"give them their place in the order: {unknown}"
    for name, one in here.items():
        for other in ARROWS[name] & here.keys():
            above = here[other]
            assert one is not None
            assert above is not None
            assert order.index(above) <= order.index(one), f"{name} imports {other}"


def test_nothing_below_the_client_imports_prefect() -> None:
    for name, path in MODULES.items():
        if name.startswith(f"{PACKAGE}.client"):
            assert "prefect" not in top_level(path), name
            assert not {
                other for other in ARROWS[name] if room(other, 1) not in ("client", "errors", "models", "redact")
            }


def test_the_sandbox_stands_alone() -> None:
    for name, path in SANDBOX.items():
        taken = {module for module, _ in structure.imports(ast.parse(path.read_text())) if module.startswith(PACKAGE)}
        allowed = {PACKAGE, *(f"{PACKAGE}.{one}" for one in ("errors", "models", "redact"))}
        assert {one for one in taken if not one.startswith(f"{PACKAGE}.sandbox")} <= allowed, name
    for name, path in MODULES.items():
        taken = {module for module, _ in structure.imports(ast.parse(path.read_text()))}
        if any(module.startswith(f"{PACKAGE}.sandbox") for module in taken):
            assert room(name, 1) == "cli", f"{name} imports the sandbox"


def printed(code: str) -> set[str]:
    """The words that a fresh interpreter prints for `code`."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    return set(run.stdout.split())


def modules_after(code: str) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded after `code`."""
    return printed(f"{code}\nimport sys\nprint(' '.join(sys.modules))")


def loaded_after(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after `code`."""
    return {name.split(".")[0] for name in modules_after(code)}


def test_the_public_names_need_neither_qiskit_nor_numpy() -> None:
    loaded = loaded_after("import prefect_qruntime as q\nfor name in q.__all__: getattr(q, name)")
    assert "prefect" in loaded
    assert not loaded & {"qiskit", "qiskit_aer", "numpy", "scipy", "qiskit_ibm_runtime", "samplomatic"}


# What one job needs only if it is asked for: options, checks for a backend, the executor, an estimate, a session.
SELDOM = (
    *("client.inputs.isa", "client.inputs.options", "client.session_core", "client.sessions"),
    *("client.programs.agreement", "client.programs.executor", "client.programs.openqasm"),
    *("client.results.conversions", "diagnostics.instance", "diagnostics.network"),
    *("tasks.compare", "tasks.estimate", "blocks", "cli", "operations", "sandbox", "suspend"),
)


def test_a_flow_of_plain_jobs_loads_only_what_it_needs() -> None:
    for name in SELDOM:
        assert (structure.ROOT / name.replace(".", "/")).exists() or f"{PACKAGE}.{name}" in MODULES, name
    loaded = modules_after(
        "import prefect, prefect_qruntime as q\n"
        "for name in ('QuantumRuntimeCredentials', 'run_job', 'arun_job', 'submit_job', 'wait_for_completion',"
        " 'fetch_results', 'runtime_session', 'hooks'): getattr(q, name)"
    )
    assert f"{PACKAGE}.tasks.submit" in loaded
    seldom = {f"{PACKAGE}.{name}" for name in SELDOM}
    assert not loaded & seldom, "import it in the function that needs it"


def test_the_client_loads_without_prefect() -> None:
    names = [name for name in MODULES if name.startswith(f"{PACKAGE}.client")]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert {"httpx", PACKAGE} <= loaded
    assert not loaded & {"prefect", "qiskit", "numpy"}


def test_the_pytest_plugin_costs_nothing() -> None:
    loaded = loaded_after(f"import {PACKAGE}.sandbox.pytest_plugin, {PACKAGE}.sandbox")
    assert not loaded & {"prefect", "qiskit", "numpy", "httpx", "starlette", "uvicorn", "pydantic"}


def test_it_imports_where_nothing_can_fork() -> None:
    loaded = loaded_after(
        "import os, prefect, httpx, websockets, tenacity, cachetools\n"
        "if hasattr(os, 'register_at_fork'): del os.register_at_fork\n"
        "import prefect_qruntime as q\nfor name in q.__all__: getattr(q, name)"
    )
    assert PACKAGE in loaded


def test_the_public_face_is_one_list() -> None:
    names = prefect_qruntime.__all__
    assert names == sorted(set(names))
    for name in names:
        assert getattr(prefect_qruntime, name) is not None
    # In a fresh interpreter: here another test may have imported a folder that is no module of ours.
    there = printed("import prefect_qruntime as q\nfor name in q.__all__: getattr(q, name)\nprint(*dir(q))")
    own = {name for name in there if name.isidentifier() and name[0] != "_"} - set(names)
    helpers = {"annotations", "ast", "cache", "importlib", "inspect", "sys", "Any", "TYPE_CHECKING"}
    assert own <= helpers | {name.split(".")[1] for name in MODULES if "." in name} | {"sandbox", "flows"}
    with pytest.raises(AttributeError):
        _ = prefect_qruntime.no_such_name
