"""The floors: an upper one may import a lower one, never the reverse; nothing below floor 3 knows Prefect."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_qruntime

PACKAGE = Path(prefect_qruntime.__file__).parent
NAME = "prefect_qruntime"

FLOORS: dict[int, set[str]] = {
    0: {"_version", "connection", "crn", "errors", "failures", "models", "redact", "spec"},
    1: {
        "client.auth",
        "client.dialects",
        "client.errand",
        "client.home",
        "client.inputs",
        "client.parsing",
        "client.replies",
        "client.retrying",
        "client.stream",
        "client.transport",
        "client.wire",
    },
    2: {
        "client",
        "client.api",
        "client.decode",
        "client.fetching",
        "client.following",
        "client.instance",
        "client.result_qiskit",
        "client.result_quasi",
        "client.result_samples",
        "client.result_table",
        "client.result_views",
        "client.results",
        "client.sessions",
        "client.submission",
        "client.waiting",
    },
    3: {
        "binding",
        "checkup",
        "credentials",
        "keys",
        "observe",
        "orchestration",
        "private_results",
        "records",
        "settings",
        "submit_task",
    },
    4: {"cancellation", "hooks", "jobs", "sessions", "sweep", "tasks", "work"},
    5: {"", "cli", "demo", "flows"},
}
BESIDE = "sandbox"
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def floor_of(module: str) -> int | str:
    """The floor of a module; a folder that is named as a whole gives it to all in it."""
    parts = module.split(".")
    if parts[0] == BESIDE:
        return BESIDE
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOOR_OF and (length == len(parts) or length > 1 or parts[0] == "flows"):
            return FLOOR_OF[".".join(parts[:length])]
    if module == "":
        return FLOOR_OF[""]
    raise AssertionError(f"{module} has no floor yet: give it one")


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(name: str) -> str | None:
    """The module of ours that an imported name belongs to, longest match first."""
    if name != NAME and not name.startswith(f"{NAME}."):
        return None
    known, parts = modules(), name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_its_floor_or_below(module: str) -> None:
    floor = floor_of(module)
    if module == "":
        return  # the public face names everything, on first use only
    for name in imports(modules()[module]):
        target = ours(name)
        if target is None:
            if floor in (0, 1, 2, BESIDE):
                assert name.split(".")[0] != "prefect", f"{module} imports {name}"
            continue
        if floor == BESIDE:
            assert floor_of(target) in (0, BESIDE), f"{module} imports {name}"
        elif target == "" or floor_of(target) == BESIDE:
            assert floor == 5, f"{module} imports {name}"
        else:
            assert floor_of(target) <= floor, f"{module} (floor {floor}) imports {name}"  # type: ignore[operator]


def test_no_circular_imports() -> None:
    """Only imports at a module's top level count: they are the ones that can deadlock a start."""
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        if module == "":
            continue
        names: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        graph[module] = {target for name in names if (target := ours(name)) not in (None, "", module)}  # type: ignore[misc]

    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module in done:
            return
        for target in graph.get(module, ()):
            # a package's __init__ gathers its own modules; they may name each other through it
            if not module.startswith(f"{target}.") and not target.startswith(f"{module}."):
                visit(target, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_importing_loads_neither_qiskit_nor_numpy() -> None:
    code = (
        "import sys, prefect_qruntime as q; [getattr(q, name) for name in q.__all__]; "
        "print([m for m in ('qiskit', 'numpy', 'qiskit_aer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_works_without_prefect() -> None:
    code = "import sys, prefect_qruntime.client; print('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_face_is_sorted_and_real() -> None:
    names = prefect_qruntime.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(prefect_qruntime, name) is not None
    assert set(names) <= set(dir(prefect_qruntime))
    typed = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME)
        for alias in node.names
    }
    assert typed == set(names), "what type checkers see differs from __all__"


def test_every_module_is_typed_and_the_package_says_so() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_changelog_knows_the_version() -> None:
    text = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert "[Unreleased]" in text or f"[{prefect_qruntime.__version__}]" in text
