"""The floors of the package: an upper one may import a lower one, never the reverse; every module has its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "prefect_qruntime"
ROOT = Path(__file__).parents[1] / PACKAGE

# Dotted names below the package, as fnmatch patterns. A new file is added here first: where does it belong?
FLOORS: dict[int, tuple[str, ...]] = {
    # No I/O.
    0: (
        "models",
        "errors",
        "failures",
        "crn",
        "redact",
        "spec",
        "connection",
        "pictures",
        "sightings",
        "_version",
        "resume_claims",
    ),
    # The wire: HTTP, token, websocket, dialects, the one network loop.
    1: (
        *(f"client.{name}" for name in ("retrying", "replies", "auth", "transport", "stream", "dialects", "parsing")),
        *(
            f"client.{name}"
            for name in ("probing", "home", "wire", "errand", "spool", "download", "inputs", "inputs.*")
        ),
    ),
    # Each call done safely.
    2: (
        *(
            f"client.{name}"
            for name in ("waiting", "calendar", "walk", "trust", "watch", "looks", "sockets", "watching")
        ),
        *(f"client.{name}" for name in ("following", "submission", "sessions", "fetching")),
        *(f"client.{name}" for name in ("submission_core", "submission_memory", "payload_check", "session_core")),
        *(f"client.{name}" for name in ("results*", "result_*", "decode*", "instance", "api")),
        "client",
    ),
    # Prefect begins: block, keys, what is noted there.
    3: (
        *("settings", "orchestration", "keys", "observe", "limits", "credentials", "checkup", "binding", "budget"),
        *("pacing", "ledger", "deployments", "gate"),
        *(
            "job_pages",
            "lookout",
            "records",
            "cards",
            "emitting",
            "summary",
            "late_usage",
            "cancellation",
            "private_results",
            "purchase_lock",
            "submission_marks",
        ),
        *("stored_results", "flow_parameters", "loading"),
        *("waits", "flow_runs", "claims", "checks", "checks.*"),
    ),
    # What flows use.
    4: (
        "arguments",
        "work",
        "work.*",
        "tasks",
        "tasks.*",
        "submit_task",
        "sessions",
        "jobs",
        "blocks",
        "hooks",
        "watcher",
        "wait_ends",
        "suspend",
        "sweep",
        "doctor",
        "listing",
    ),
    # What people start.
    5: ("cli", "commands", "commands.*", "flows", "flows.*"),
}
SANDBOX = ("sandbox", "sandbox.*")
WITHOUT_PREFECT = (0, 1, 2)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# The flows are a link to the folder beside the package, which `rglob` does not follow by itself.
FILES = [*ROOT.rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
MODULES = {name_of(path): path for path in sorted(FILES)}


def floor_of(name: str) -> int | str | None:
    if any(fnmatchcase(name, pattern) for pattern in SANDBOX):
        return "sandbox"
    found = {floor for floor, patterns in FLOORS.items() if any(fnmatchcase(name, p) for p in patterns)}
    assert len(found) <= 1, f"{name} stands on several floors: {found}"
    return found.pop() if found else None


def statements(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """All imports, in functions too, but not those for type checkers only."""
    found: list[ast.Import | ast.ImportFrom] = []
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        todo += ast.iter_child_nodes(node)
    return found


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a module imports; of our own package always the module, never a name in it."""
    found = set()
    package = [PACKAGE, *name_of(path).split(".")] if path.name == "__init__.py" else []
    package = package or [PACKAGE, *name_of(path).split(".")[:-1]]
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            found.add(whole if whole.removeprefix(f"{PACKAGE}.") in MODULES else base)
    return found


def ours(path: Path) -> set[str]:
    """As `imports`, only of this package, without its name; '' is the package itself."""
    wanted = {name for name in imports(path) if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    return {name.removeprefix(PACKAGE).lstrip(".") for name in wanted}


def foreign(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {PACKAGE}


BELOW_ROOT = [name for name in MODULES if name]


@pytest.mark.parametrize("name", BELOW_ROOT)
def test_every_module_has_its_floor_and_looks_down_only(name: str) -> None:
    floor = floor_of(name)
    assert floor is not None, f"{name} has no floor: add it to FLOORS"
    for other in sorted(ours(MODULES[name])):
        if other == "":
            assert floor == 5, f"{name} imports the public face, which stands above it"
            continue
        assert other in MODULES, f"{name} imports {other}, which does not exist"
        below = floor_of(other)
        assert below is not None, f"{other} has no floor"
        if floor == "sandbox":
            assert below in ("sandbox", 0), f"{name} imports {other}: the sandbox knows floor 0 only"
        elif below == "sandbox":
            assert floor == 5, f"{name} imports the sandbox, which only what people start may do"
        else:
            assert isinstance(floor, int)
            assert isinstance(below, int)
            assert below <= floor, f"{name} (floor {floor}) imports {other} (floor {below})"


@pytest.mark.parametrize("name", BELOW_ROOT)
def test_prefect_begins_on_floor_3(name: str) -> None:
    if floor_of(name) == "sandbox" or floor_of(name) in WITHOUT_PREFECT:
        assert "prefect" not in foreign(MODULES[name])


def test_no_circle() -> None:
    # A package's __init__ is a module like any other here; submodules do not count as importing it.
    graph = {name: ours(path) - {name} for name, path in MODULES.items() if name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name and name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert len(done) == len(graph)


def loaded_after(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after `code`."""
    shown = f"{code}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_the_public_names_need_neither_qiskit_nor_numpy() -> None:
    loaded = loaded_after("import prefect_qruntime as q\nfor name in q.__all__: getattr(q, name)")
    assert "prefect" in loaded
    assert not loaded & {"qiskit", "qiskit_aer", "numpy", "scipy", "qiskit_ibm_runtime"}


def test_the_lower_floors_load_without_prefect() -> None:
    names = [name for name in BELOW_ROOT if floor_of(name) in WITHOUT_PREFECT]
    loaded = loaded_after("\n".join(f"import {PACKAGE}.{name}" for name in names))
    assert {"httpx", PACKAGE} <= loaded
    assert not loaded & {"prefect", "qiskit", "numpy"}


def test_the_pytest_plugin_costs_nothing() -> None:
    loaded = loaded_after(f"import {PACKAGE}.sandbox.pytest_plugin, {PACKAGE}.sandbox")
    assert not loaded & {"prefect", "qiskit", "numpy", "httpx", "starlette", "uvicorn", "pydantic"}


def test_the_public_face() -> None:
    import prefect_qruntime as face

    assert face.__all__ == sorted(face.__all__)
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None
    public = {name for name in dir(face) if name.isidentifier() and name[0] != "_"} | {"__version__"}
    modules = {name.split(".")[0] for name in MODULES} | {"annotations", "importlib", "Any", "TYPE_CHECKING"}
    assert public - modules <= set(face.__all__)
    with pytest.raises(AttributeError):
        _ = face.no_such_name
