"""Count the package's structure (entries of the hall, modules, levels and circles of imports) and hold its bounds.

Run `python tools/structure.py` for the figures; it ends with 1 if a bound is passed. Imports inside functions count
too: a circle that is only hidden is still a circle. Only those under `TYPE_CHECKING` are left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "prefect_qruntime"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE
BOUNDS = {
    "entries in the hall": 25,
    "modules": 105,
    "modules under 100 lines": 3,
    "levels of imports": 13,
    "circles of imports": 0,
}
"""Largest value of each figure, counted without `sandbox/`."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its dotted name, without the sandbox."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if "sandbox" in parts and parts[1] == "sandbox":
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Each import statement's module with the names it takes, those under `TYPE_CHECKING` left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, [alias.name for alias in node.names]
        yield from imports(node)


def arrows(known: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules of the package each module imports; a name that a package's face hands on counts as its home."""
    found: dict[str, set[str]] = {}
    faces = {name: path for name, path in known.items() if path.name == "__init__.py"}
    homes: dict[tuple[str, str], str] = {}
    for face, path in faces.items():
        for module, names in imports(ast.parse(path.read_text())):
            homes |= {(face, name): module for name in names if module in known}
    for name, path in known.items():
        wanted: set[str] = set()
        for module, names in imports(ast.parse(path.read_text())):
            if module in faces:
                for taken in names:
                    inner = f"{module}.{taken}"
                    wanted.add(inner if inner in known else homes.get((module, taken), module))
            else:
                wanted.add(module)
        found[name] = {module for module in wanted if module in known and module != name}
    return found


def levels(graph: dict[str, set[str]]) -> tuple[dict[str, int], list[set[str]]]:
    """The level of each module (1 imports nothing of the package), and the circles."""
    circles = [component for component in _components(graph) if len(component) > 1]
    inside = {name: index for index, component in enumerate(circles) for name in component}
    level: dict[str, int] = {}

    def of(name: str, path: frozenset[str]) -> int:
        if name not in level:
            below = [
                of(other, path | {name})
                for other in graph[name]
                if other not in path and inside.get(other, -1) != inside.get(name, -2)
            ]
            level[name] = 1 + max(below, default=0)
        return level[name]

    for name in graph:
        of(name, frozenset())
    return level, circles


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between entries of the hall: a folder is one room."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    found: dict[str, set[str]] = {room(name): set() for name in graph}
    for name, others in graph.items():
        found[room(name)] |= {room(other) for other in others} - {room(name)}
    return found


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = set()
            while True:
                other = stack.pop()
                component.add(other)
                if other == name:
                    break
            found.append(component)

    for name in graph:
        if name not in index:
            visit(name)
    return found


def figures() -> dict[str, int]:
    """All figures that have a bound, and the number of lines."""
    known = modules()
    graph = arrows(known)
    level, between = levels(rooms(graph))
    circles = levels(graph)[1]
    lines = {name: len(path.read_text().splitlines()) for name, path in known.items()}
    small = [
        name
        for name, count in lines.items()
        if count < 100 and known[name].name != "__init__.py" and not name.startswith(f"{PACKAGE}.cli")
    ]
    hall = [entry for entry in ROOT.iterdir() if entry.name != "__pycache__"]
    return {
        "entries in the hall": len(hall),
        "modules": len([path for path in known.values() if path.name != "__init__.py"]),
        "modules under 100 lines": len(small),
        "levels of imports": max(level.values()),
        "circles of imports": len(circles) + len(between),
        "lines": sum(lines.values()),
    }


def main() -> int:
    """Print the figures, the levels and the circles. Returns 1 if a bound is passed."""
    passed = False
    for name, value in figures().items():
        bound = BOUNDS.get(name)
        over = bound is not None and value > bound
        passed |= over
        print(
            f"{value:6}  {name}" + (f" (at most {bound})" if bound is not None else "") + ("  TOO MANY" if over else "")
        )
    graph = arrows(modules())
    level, between = levels(rooms(graph))
    if "--levels" in sys.argv:
        for number in range(max(level.values()), 0, -1):
            print(number, *sorted(name.removeprefix(f"{PACKAGE}.") for name, at in level.items() if at == number))
    for circle in [*levels(graph)[1], *between]:
        print("circle:", *sorted(circle))
    return int(passed)


if __name__ == "__main__":
    sys.exit(main())
