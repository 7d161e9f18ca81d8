"""What the documentation lists is what there is."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.blocks.core import Block
from prefect.client.schemas.actions import DeploymentCreate

import prefect_qruntime
from prefect_qruntime import Budget, QuantumRuntimePolicy, errors
from prefect_qruntime.cli import app
from prefect_qruntime.settings import QuantumRuntimeSettings
from tests.docs.blocks import GENERATED, ROOT, pages

DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")


def rows(page: str, first: str) -> dict[str, list[str]]:
    """The rows of tables whose first cell is code, by that cell."""
    found = {}
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(first, cells[0]):
            found[cells[0].strip("`")] = cells[1:]
    return found


def setting_row(name: str) -> str:
    """The row that `docs/settings.md` has for a setting."""
    field = QuantumRuntimeSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    words = {"None": "none", "True": "true", "False": "false", "": "empty"}
    return f"| `{name}` | {words.get(str(default), str(default).removesuffix('.0'))} | {field.description} |"


def test_each_setting_has_its_row() -> None:
    text = (DOCS / "settings.md").read_text()
    missing = [setting_row(name) for name in QuantumRuntimeSettings.model_fields if setting_row(name) not in text]
    assert not missing, "docs/settings.md lacks:\n" + "\n".join(missing)
    assert set(rows("settings.md", r"`[a-z_]+`")) == set(QuantumRuntimeSettings.model_fields)


def test_each_error_has_its_row() -> None:
    listed = rows("failures.md", r"`[A-Z]\w+`")
    kinds = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    wanted = {name for name in kinds if issubclass(getattr(errors, name), errors.QuantumRuntimeError)}
    assert set(listed) == wanted - {"QuantumRuntimeError"}


def test_each_command_has_its_section_with_its_options() -> None:
    text = (DOCS / "command-line.md").read_text()
    sections = dict(re.findall(r"^## ([a-z-]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    names = {name for name in app if not name.startswith("-")}
    assert set(sections) == names
    for name in names:
        for argument in app[name].assemble_argument_collection(parse_docstring=False):
            option = argument.name
            assert f"`{option}" in sections[name] or f" {option}" in sections[name], f"{name} {option}"


def test_each_public_name_is_in_the_reference() -> None:
    # Errors and models are there by their modules, and each async twin by its sync one.
    text = (DOCS / "reference.md").read_text()
    modules = re.findall(r"^::: (prefect_qruntime[\w.]*)$", text, re.MULTILINE)
    for name in prefect_qruntime.__all__:
        public = getattr(prefect_qruntime, name)
        home = getattr(getattr(public, "fn", public), "__module__", None)
        if name in ("__version__", "hooks") or home is None:
            continue
        if home.startswith("prefect_qruntime.tasks"):
            home = "prefect_qruntime.tasks"
        shown = f"{home}.{name}" in modules or any(
            module == home or module.startswith(f"{home}.") for module in modules
        )
        assert shown, f"docs/reference.md lacks {home}.{name}"


IMPORTED = re.compile(r"^ *from (prefect_qruntime[\w.]*) import \(?([\w ,]+)", re.MULTILINE)


def test_each_name_that_a_page_imports_is_in_the_reference() -> None:
    """What is neither there nor in `__all__` may change without notice."""
    text = (DOCS / "reference.md").read_text()
    shown = set(re.findall(r"^::: (prefect_qruntime[\w.]*)$", text, re.MULTILINE))
    code = [block.code for page in pages() for block in page.of("python")]
    notebooks = [json.loads(file.read_text())["cells"] for file in (DOCS / "notebooks").glob("*.ipynb")]
    code += ["".join(cell["source"]) for cells in notebooks for cell in cells if cell["cell_type"] == "code"]
    missing = set[str]()
    for module, names in IMPORTED.findall("\n".join(code)):
        for name in re.findall(r"\w+", names):
            if module != "prefect_qruntime" and not module.startswith("prefect_qruntime.flows."):
                home = getattr(import_module(module), name).__module__
                if not {home, f"{home}.{name}"} & shown or f"`{module}`" not in text:
                    missing.add(f"{module}.{name}")
    assert not missing


@pytest.mark.parametrize("page", [page.path for page in pages()])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target, _ in _LINK.findall(here.read_text()):
        if not target:
            continue
        file: Path = (here.parent / target).resolve()
        assert file.exists() or file.relative_to(ROOT).as_posix() in GENERATED, f"{page} leads to {target}"


def test_the_deployment_shown_is_one_that_prefect_takes() -> None:
    (page,) = (page for page in pages() if page.path == "docs/how-to/schedule.md")
    (block,) = page.of("yaml")
    (entry,) = yaml.safe_load(block.code)["deployments"]
    DeploymentCreate(
        name=entry["name"],
        flow_id=uuid4(),
        entrypoint=entry["entrypoint"],
        parameters=entry["parameters"],
        schedules=[
            {"slug": one["slug"], "schedule": {"cron": one["cron"], "timezone": one["timezone"]}}
            for one in entry["schedules"]
        ],
        concurrency_limit=entry["concurrency_limit"]["limit"],
        concurrency_options={"collision_strategy": entry["concurrency_limit"]["collision_strategy"]},
        work_pool_name=entry["work_pool"]["name"],
    )
    ours = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert set(entry) <= set().union(*ours)


def test_the_installed_deployment_file_is_that_of_the_repository() -> None:
    assert (ROOT / "flows" / "prefect.yaml").read_text() == (ROOT / "prefect.yaml").read_text()


def test_the_deployments_have_names_of_their_own() -> None:
    """Prefect tells deployments apart by flow and name; a person in a list of runs by the name alone."""
    names = [one["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    assert len(names) == len(set(names)) > 5


def test_each_deployment_that_a_page_names_is_in_the_file() -> None:
    names = {one["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    files = [*(ROOT / page.path for page in pages()), *(DOCS / "notebooks").glob("*.ipynb")]
    named = {name: file for file in files for name in re.findall(r"\bdeployment `([\w-]+)`", file.read_text())}
    assert len(named) >= 2
    assert not named.keys() - names, {name: named[name] for name in named.keys() - names}


def test_the_file_deploys_all_flows() -> None:
    entries = {one["entrypoint"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    deployed = {entry.split(":")[0] for entry in entries}
    there = {f"flows/{file.name}" for file in (ROOT / "flows").glob("*.py")}
    assert deployed == there - {"flows/__init__.py", "flows/shared.py"}


def test_the_file_and_the_page_say_what_each_deployment_runs_on() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    page = (DOCS / "how-to" / "schedule.md").read_text()
    places = [
        re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+|leave|collect", part)
        for part in re.split(r"\n# - ", text.split("\n#\n# Sched")[0])[1:]
    ]
    rows = [row.split("|")[1] for row in page.splitlines() if re.match(r"\| `[a-z0-9-]+`.* \|", row)]
    for one in yaml.safe_load(text)["deployments"]:
        module, _, name = one["entrypoint"].removesuffix(".py").replace(".py:", ":").partition(":")
        form = getattr(import_module(module.replace("/", ".")), name).parameters
        place = 2 if "credentials_blocks" in form.properties else 1 if form.required else 0
        assert [number for number, names in enumerate(places) if one["name"] in names] == [place], one["name"]
        assert [number for number, row in enumerate(rows) if f"`{one['name']}`" in row] == [place], one["name"]
        submits = bool({"route", "job_block"} & form.properties.keys())
        assert not submits or not any(slot.get("active", True) for slot in one.get("schedules", ())), one["name"]


SITE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]


def test_a_workflow_publishes_the_documentation_where_links_lead() -> None:
    workflows = [yaml.safe_load(file.read_text()) for file in (ROOT / ".github" / "workflows").glob("*.yml")]
    steps = [[step for job in one["jobs"].values() for step in job["steps"]] for one in workflows]
    assert any(
        any(step.get("run") == "make docs" for step in one)
        and any(step.get("uses", "").startswith("actions/deploy-pages@") for step in one)
        for one in steps
    )
    config = (ROOT / "mkdocs.yml").read_text()
    assert f"site_url: {SITE}\n" in config
    assert "provider: mike" not in config, "which nothing publishes with"
    assert f"url: {SITE}\n" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text()


@pytest.mark.parametrize("block", [Budget, QuantumRuntimePolicy])
def test_the_form_of_a_block_of_ours_leads_to_our_page(block: type[Block]) -> None:
    """IBM has no page on them."""
    page, _, anchor = str(block._documentation_url).removeprefix(f"{SITE}/").partition("#")
    text = (DOCS / f"{page.rstrip('/')}.md").read_text()
    assert f"## {anchor.replace('-', ' ')}".lower() in text.lower()


def test_each_automation_is_on_its_page() -> None:
    text = (DOCS / "how-to" / "automations.md").read_text()
    for file in (ROOT / "automations").glob("*.yaml"):
        assert f"`{file.name}`" in text, f"docs/how-to/automations.md lacks {file.name}"


def test_each_flow_is_on_the_page_of_examples() -> None:
    named = set(rows("examples.md", r"`flows/\w+\.py`"))
    there = {f"flows/{file.name}" for file in (ROOT / "flows").glob("*.py")}
    assert named == there - {"flows/__init__.py", "flows/shared.py"}


def test_no_documented_function_is_assigned_to_again() -> None:
    """The API reference then shows a variable without parameters, and the documentation is not built."""
    for path in (ROOT / "prefect_qruntime").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        functions = {one.name for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        targets = [target for one in body if isinstance(one, ast.Assign) for target in one.targets]
        assert not functions & {target.id for target in targets if isinstance(target, ast.Name)}, path
