"""Each shell command of the README and the documentation is one that exists, with options that exist.

They are checked, not run: the demo, the flows and the commands have tests of their own.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Callable

import pytest
from prefect.cli._app import _app as prefect_app
from prefect.settings import get_current_settings
from prefect.settings.legacy import _get_settings_fields

from prefect_qruntime.cli import app
from prefect_qruntime.settings import QuantumRuntimeSettings
from tests.docs.blocks import ROOT, Block, pages

OURS = "PREFECT_INTEGRATIONS_QRUNTIME_"
SHELL = [block for page in pages() for block in page.of("sh")]


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments, continuations, `&` and variables set for one command."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
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
    else:
        assert name.startswith("QRUNTIME_"), f"nobody reads {name}"
        assert any(name in path.read_text() for path in (ROOT / "tests").rglob("*.py")), name


def make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert all(f"$({name})" in makefile for name in given), words
    assert "NAME" not in given or (ROOT / "flows" / f"{given['NAME']}.py").exists(), words
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets), words


def python(words: list[str]) -> None:
    if words[0] == "-c":
        tree = ast.parse(words[1])
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([statement], []), words[1], "exec"), {})
        return
    file = words[0]
    compile((ROOT / file).read_text(), file, "exec")


def pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[1:]:
        match = re.fullmatch(r"(?:\.|prefect-qruntime)\[([a-z,]+)\]", word)
        assert match is not None, word
        assert set(match[1].split(",")) <= set(extras), word


def ours(words: list[str]) -> None:
    app.parse_args(words, exit_on_error=False, print_error=False)


def prefect(words: list[str]) -> None:
    words = [word for word in words if word != "--no-prompt"]  # a flag before the command, kept elsewhere
    prefect_app.parse_args(words, exit_on_error=False, print_error=False)


def run_tests(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if not word.startswith("-")), words


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
}


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_each_command_exists(block: Block) -> None:
    found = commands(block)
    assert found
    for words in found:
        assert words[0] in KINDS, f"{words[0]} is a kind of command that nobody checks yet"
        KINDS[words[0]](words[1:])


@pytest.mark.parametrize(
    "words",
    [
        ["make", "dmeo"],
        ["make", "flow", "NAME=vqe"],
        ["make", "flow", "NMAE=vqe_session"],
        ["python", "flows/run_circuit.py"],
        ["python", "-c", "from prefect_qruntime import nothing"],
        ["pip", "install", ".[snadbox]"],
        ["prefect", "server", "begin"],
        ["prefect-qruntime", "sandbox", "--prot", "1"],
        ["export", "PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL=perhaps"],
        ["export", "PREFECT_SERVER_DATABASE_CONECTION_URL=x"],
    ],
)
def test_a_slip_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        KINDS[words[0]](words[1:])
