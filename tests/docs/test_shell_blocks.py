"""Each shell command of the README, the documentation and the guides exists, with options that exist.

They are checked, not run: the demo, the flows and the commands have tests of their own. Commands and files that a
sentence names are checked as well as those in blocks.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Callable
from uuid import UUID

import opentelemetry.sdk.environment_variables as otel
import pytest
from prefect.cli._app import _app as prefect_app
from prefect.settings import get_current_settings
from prefect.settings.legacy import _get_settings_fields

from prefect_qruntime.cli import app
from prefect_qruntime.settings import QuantumRuntimeSettings
from tests.docs.blocks import ROOT, Block, Page, guides, pages, prose

OURS = "PREFECT_INTEGRATIONS_QRUNTIME_"
PAGES = [*pages(), *guides()]
SHELL = [block for page in PAGES for language in ("sh", "console") for block in page.of(language)]
LANGUAGES = {"python", "sh", "console", "yaml", "text"}  # how each is checked is below and in test_code_blocks.py
_CODE = re.compile(r"`([^`]+)`")
_FILE = re.compile(r"(?:automations|benchmarks|deploy|docs|flows|prefect_qruntime|tests|tools)/[\w./-]*\w")


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments, continuations, `&` and variables set for one command."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line.removeprefix("$ "), comments=True) if word != "&"]
        while words and re.match(r"[A-Z_]+=", words[0]):
            variable(words.pop(0))
        if words:
            found.append(words)
    return found


def variable(setting: str) -> None:
    """A variable of Prefect's or ours is a setting that exists, with a value it takes."""
    name, value = setting.split("=", 1)
    if name.startswith(OURS):
        field = name.removeprefix(OURS).lower()
        assert field in QuantumRuntimeSettings.model_fields, name
        QuantumRuntimeSettings(**{field: value})
    elif name.startswith("PREFECT_"):
        assert name in _get_settings_fields(type(get_current_settings())), name
    elif name.startswith("OTEL_"):
        assert hasattr(otel, name), name
    else:
        assert name.startswith("QRUNTIME_"), f"nobody reads {name}"
        assert any(name in path.read_text() for path in (ROOT / "tests").rglob("*.py")), name


def make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert all(f"$({name})" in makefile for name in given), words
    assert "NAME" not in given or (ROOT / "flows" / f"{given['NAME']}.py").exists(), words
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    assert words
    assert {word for word in words if "=" not in word} <= set(targets), words


def python(words: list[str]) -> None:
    if words[0] == "-c":
        tree = ast.parse(words[1])
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([statement], []), words[1], "exec"), {})
        return
    if words[0] == "-m":
        module = words[1].replace(".", "/")
        if words[1] != "pytest":
            assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists(), words
        else:
            run_tests(words[2:])
        return
    file = words[0]
    compile((ROOT / file).read_text(), file, "exec")


def pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[1:]:
        match = re.fullmatch(r"--upgrade|prefect-qruntime(?:\[([a-z,]+)\])?", word)
        assert match is not None, word
        assert set((match[1] or "").split(",")) - {""} <= set(extras), word


def ours(words: list[str]) -> None:
    app.parse_args(words, exit_on_error=False, print_error=False)


def prefect(words: list[str]) -> None:
    words = [word for word in words if word != "--no-prompt"]  # a flag before the command, kept elsewhere
    words = [str(UUID(int=0)) if word == "FLOW_RUN_ID" else word for word in words]
    prefect_app.parse_args(words, exit_on_error=False, print_error=False)


def run_tests(words: list[str]) -> None:
    values = {words[place + 1] for place, word in enumerate(words) if word == "-k"}
    assert all((ROOT / word).exists() for word in words if not word.startswith("-") and word not in values), words


def instrumented(words: list[str]) -> None:
    KINDS[words[0]](words[1:])


def files_exist(words: list[str]) -> None:
    """For programs of others: the files of this repository that they are given."""
    given = [words[place + 1] for place, word in enumerate(words) if word in ("--file", "--filename")]
    assert all((ROOT / name).exists() for name in given), words


def hooks_of_git(words: list[str]) -> None:
    assert words == ["install"]
    assert (ROOT / ".pre-commit-config.yaml").exists()


def export(words: list[str]) -> None:
    for word in words:
        variable(word)


KINDS: dict[str, Callable[[list[str]], None]] = {
    "export": export,
    "make": make,
    "pip": pip,
    "prefect": prefect,
    "prefect-qruntime": ours,
    "pytest": run_tests,
    "python": python,
    ".venv/bin/python": python,
    ".venv/bin/pre-commit": hooks_of_git,
    "opentelemetry-instrument": instrumented,
    "docker": files_exist,
    "kubectl": files_exist,
}


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_each_command_exists(block: Block) -> None:
    found = commands(block)
    assert found
    for words in found:
        assert words[0] in KINDS, f"{words[0]} is a kind of command that nobody checks yet"
        KINDS[words[0]](words[1:])


def named_commands(page: Page) -> list[list[str]]:
    """Commands that the sentences of a page name, as words."""
    found = []
    for code in _CODE.findall(prose(page)):
        words = shlex.split(code) if not re.search(r"[…'\"(]", code) else code.split()
        if words[:1] and words[0] in ("make", "pip", "prefect", "prefect-qruntime", "pytest", "python") and words[1:]:
            found.append(words)
    return found


def named(words: list[str]) -> None:
    """A command in a sentence: it may lack what it needs, or have `COMMAND` where any command may stand."""
    program, *rest = words
    if program == "prefect-qruntime":
        if rest[0] == "COMMAND":
            return
        assert rest[0] in app, words
        known = {name for argument in app[rest[0]].assemble_argument_collection() for name in argument.names}
        options = {word for word in rest[1:] if word.startswith("-")}
        assert options <= known | {"--help"} or rest[0] == "server", words
    elif program == "pip":
        pip([word.strip("'") for word in rest])
    else:
        KINDS[program](rest)


@pytest.mark.parametrize("page", PAGES, ids=[page.path for page in PAGES])
def test_each_command_and_file_in_a_sentence_exists(page: Page) -> None:
    assert {block.language for block in page.blocks} <= LANGUAGES, "a block without a language, or one unknown here"
    for words in named_commands(page):
        named(words)
    for code in _CODE.findall(prose(page)):
        if not re.search(r"[<>*:]|qruntime/", code.removeprefix("prefect_qruntime/")):
            for name in _FILE.findall(code) if _FILE.match(code) else ():
                places = (ROOT, ROOT / "prefect_qruntime", (ROOT / page.path).parent)
                assert any((place / name).exists() for place in places), f"{page.path} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=[page.path for page in PAGES])
def test_each_row_of_a_table_has_all_cells(page: Page) -> None:
    """Markdown drops what is too much without a word."""
    for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
        rows = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows
        assert re.fullmatch(r"[|:\- ]+", rows[1]), rows[0]


@pytest.mark.parametrize(
    "words",
    [
        ["prefect-qruntime", "swep"],
        ["prefect-qruntime", "sweep", "--dryrun"],
        ["make", "dmeo"],
        ["pip", "install", "'prefect-qruntime[parket]'"],
        ["python", "-m", "tests.chaoss"],
        ["pytest", "tests/soack"],
    ],
)
def test_a_slip_in_a_sentence_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        named(words)


@pytest.mark.parametrize(
    "words",
    [
        ["make", "dmeo"],
        ["make", "flow", "NAME=vqe"],
        ["make", "flow", "NMAE=vqe_session"],
        ["python", "flows/run_circuit.py"],
        ["python", "-c", "from prefect_qruntime import nothing"],
        ["pip", "install", "prefect-qruntime[snadbox]"],
        ["docker", "build", "--file", "deploy/Dokerfile"],
        ["opentelemetry-instrument", "prefect", "worker", "begin"],
        ["export", "OTEL_SERVICE_NAM=x"],
        ["prefect", "server", "begin"],
        ["prefect-qruntime", "sandbox", "--prot", "1"],
        ["export", "PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL=perhaps"],
        ["export", "PREFECT_SERVER_DATABASE_CONECTION_URL=x"],
    ],
)
def test_a_slip_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        KINDS[words[0]](words[1:])
