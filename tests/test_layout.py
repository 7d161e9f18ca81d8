"""The unit tests mirror the package, and the test of a pure module runs alone without Prefect and at once."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tools import structure

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "tests" / "unit"
FILES = sorted(UNIT.rglob("test_*.py"))
# What these test decides, with no clock and no socket.
PURE = (
    *("test_errors.py", "test_models.py", "test_redact.py", "observability/test_charts.py"),
    *(
        "client/test_submission_core.py",
        "client/test_failures.py",
        "client/test_parsing.py",
        "client/inputs/test_spec.py",
    ),
    *("client/test_cost_core.py", "operations/test_usage_core.py"),
    *("client/waiting/test_plan.py", "client/waiting/test_job_list.py"),
)
# Runs the first test of each file, which has everything imported that the file needs.
CODE = """
import sys, pytest

class FirstOnly:
    def pytest_collection_modifyitems(self, items):
        items[:] = {item.path: item for item in reversed(items)}.values()

code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[FirstOnly()])
print(" ".join({name.split(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def loaded_by(*arguments: str | Path) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after one test of each file."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_each_unit_test_stands_where_its_module_stands() -> None:
    """`tests/unit/<folder>/test_<module>.py`, or `test_<module>_<aspect>.py` where a module has several."""
    modules = {Path(*name.split(".")[1:]) for name in structure.modules()}
    for file in FILES:
        place = file.relative_to(UNIT)
        words = place.stem.removeprefix("test_").split("_")
        names = {place.parent / "_".join(words[:number]) for number in range(1, len(words) + 1)}
        assert names & modules, f"{place} names no module of the package"


def test_pure_tests_run_without_prefect_and_at_once() -> None:
    loaded = loaded_by(*(UNIT / name for name in PURE))
    assert "pytest" in loaded
    assert not loaded & {"prefect", "qiskit", "numpy", "scipy", "starlette", "sqlalchemy"}


def test_the_tests_of_the_client_run_without_prefect() -> None:
    assert "prefect" not in loaded_by("--collect-only", UNIT / "client")


def floor_extras() -> set[str]:
    """The extras of the package in the environment of `make floor`."""
    recipe = (ROOT / "Makefile").read_text().partition("$(FLOOR)/.installed:")[2].partition("@touch")[0]
    own = re.search(r"'\.\[([\w,]+)\]'", recipe)
    assert own is not None
    return set(own[1].split(","))


def test_the_floor_that_is_tested_is_the_floor_that_is_allowed() -> None:
    """`tests/floor/constraints.txt` holds the lower bounds of `pyproject.toml`, of each dependency and extra in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in floor_extras() for line in extras[extra])]
    tested = {
        one.name: Version(str(one.specifier).removeprefix("=="))
        for one in map(Requirement, (ROOT / "tests" / "floor" / "constraints.txt").read_text().splitlines()[1:])
    }
    for one in map(Requirement, lines):
        assert tested[one.name] == min(map(Version, re.findall(r">=([^,]+)", str(one.specifier)))), one
    assert tested.keys() == {one.name for one in map(Requirement, lines)}


# Developers' tools, and what only tests in other folders than those of `make floor` need.
NOT_AT_THE_FLOOR = {
    *("codespell", "mypy", "pre-commit", "ruff", "types-PyYAML"),
    *("ipykernel", "nbclient", "schemathesis", "prefect-qruntime[dask]"),
}


def test_the_floor_has_what_its_tests_import() -> None:
    """Each package of the extra `dev` is in the floor's environment too, or named above."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    recipe = (ROOT / "Makefile").read_text().partition("$(FLOOR)/.installed:")[2].partition("@touch")[0]
    installed = {*recipe.split(), *(f"prefect-qruntime[{extra}]" for extra in floor_extras())}
    wanted = set()
    for one in map(Requirement, extras["dev"]):
        wanted |= {f"{one.name}[{extra}]" for extra in one.extras} or {one.name}
    assert wanted - installed == NOT_AT_THE_FLOOR


def test_each_extra_with_qiskit_has_its_reader_of_openqasm_3() -> None:
    """Before: `[qiskit]` alone could not transpile the circuit of the quick start, which is OpenQASM 3."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brings = {extra: {Requirement(one).name for one in given} for extra, given in extras.items()}
    having = {extra for extra, names in brings.items() if "qiskit" in names}
    assert having >= {"qiskit", "ibm", "sandbox"}
    assert {extra for extra in having if "qiskit-qasm3-import" not in brings[extra]} == set()


def test_every_file_that_the_guides_name_exists() -> None:
    """AGENTS.md and CONTRIBUTING.md name files from the root, from the package, or from their own folder."""
    guides = [*ROOT.glob("*.md"), *(ROOT / "prefect_qruntime").rglob("AGENTS.md"), *(ROOT / "tests").glob("AGENTS.md")]
    assert len(guides) >= 8
    for guide in (one for one in guides if one.name in ("AGENTS.md", "CONTRIBUTING.md")):
        for name in re.findall(r"`([\w./-]+(?:/|\.py|\.md|\.toml|\.txt|\.json|\.yml))`", guide.read_text()):
            places = (ROOT, ROOT / "prefect_qruntime", ROOT / "tests", guide.parent)
            assert any((place / name).exists() for place in places), f"{guide.relative_to(ROOT)} names {name}"
