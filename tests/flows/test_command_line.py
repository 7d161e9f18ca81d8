"""The command line's own part: what it says and returns where an argument is wrong, and what registers our blocks."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block

from prefect_qruntime import Budget, QuantumRuntimeCredentials, QuantumRuntimeJob, QuantumRuntimePolicy
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import exit_code

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((f"{name} --block nope", "named 'nope'") for name in ("jobs", "sweep", "watch --once", "doctor", "sessions")),
        ("sessions --drop", "drop"),
        ("sessions --close ../../etc", "session"),
        ("setup --block nope", "no Quantum Runtime Credentials block is named 'nope'"),
        ("watch --once --interval 0", "interval"),
        ("jobs --since soon", "since"),
        ("jobs --limit many", "limit"),
        ("no-such-command", "no-such-command"),
    ],
)
def test_a_wrong_argument_is_named_without_a_traceback(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    sandbox.credentials().save("command-line", overwrite=True)
    assert exit_code(*words.split()) == 2
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((name, 2) for name in ("jobs", "usage", "backends", "sessions", "setup")),
        *((f"{name} --json", 2) for name in ("jobs", "result d0123456789", "cancel d0123456789")),
        ("sessions --close d0123456789", 2),
        ("doctor", 1),
        ("sweep", 1),  # it looks at flow runs and locks
        ("sweep --json", 1),
        ("watch --once", 1),  # without `--once` it goes on, for blocks that are saved later
    ],
)
def test_without_a_block_nothing_looks_like_an_account_without_jobs(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, code: int
) -> None:
    async def none() -> list[str]:
        return []

    for module in ("cli.options", "credentials", "operations.doctor"):
        monkeypatch.setattr(f"prefect_qruntime.{module}.saved_blocks", none)
    assert exit_code(*words.split()) == code
    shown = capsys.readouterr()
    if code == 2:
        assert shown.out == ""
        assert shown.err.startswith("No Quantum Runtime Credentials block is saved. Create one in the UI")
    if words.startswith("sweep"):
        assert "nothing was left" not in shown.out
        assert (
            "No Quantum Runtime Credentials block is saved. Create one in the UI under Blocks, or set"
            in shown.out + shown.err
        )


def test_help_and_version_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["--version"], ["sweep", "--help"]):
        assert exit_code(*words) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "dialects", "given"),
    [
        ("demo --shots 10", ["legacy", "cloud"], {"route": None, "dry_run": False}),
        ("demo --shots 10 --dry-run", ["cloud"], {"route": None, "dry_run": True}),
        ("demo --shots 10 --route executor", ["cloud"], {"route": "executor", "dry_run": False}),
    ],
)
def test_the_demo_hands_on_how_the_circuits_run(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    dialects: list[str],
    given: dict[str, Any],
) -> None:
    module = import_module("prefect_qruntime.flows.run_circuits")
    asked: list[dict[str, Any]] = []

    def rows(circuits: list[str], **wanted: Any) -> list[dict[str, Any]]:
        asked.append(wanted)
        # What a dry run may give: only there it is no reason to fail.
        counts = {"0": 10} if wanted["dry_run"] else {"1": 10}
        shown = {
            "job": "job-of-the-demo",
            "shots": 10,
            "counts": "",
            "backend": wanted["backend"],
            "frequencies": counts,
        }
        found = [{"circuit": number, **shown} for number, _ in enumerate(circuits, start=1)]
        module.print_table(found, "as the flow does")
        return found

    monkeypatch.setattr(module, "run_circuits", rows)
    assert exit_code(*words.split()) == 0
    assert [one["dialect"] for one in asked] == [dialect for dialect in dialects for _ in range(2)]
    assert all({name: one[name] for name in given} == given for one in asked)
    assert capsys.readouterr().out.count("job-of-the-demo") == (8 + 3) * len(dialects)  # each table once


def test_without_the_extra_the_demo_starts_no_flow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: it printed the traces of three runs, and the reason last."""
    monkeypatch.setattr("prefect_qruntime.sandbox.service.missing_packages", lambda *, physics: ("qiskit_aer",))
    monkeypatch.setattr("prefect_qruntime.cli.local.demo_flow", None)
    assert exit_code("demo") == 1
    shown = capsys.readouterr()
    assert shown.err == (
        "The sandbox cannot run circuits here. Not installed: qiskit_aer. "
        "Install them with `pip install 'prefect-qruntime[sandbox]'`.\n"
    )
    assert shown.out == ""


def test_what_prefect_registers_is_our_blocks_and_no_base_class_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = import_module(project["entry-points"]["prefect.collections"]["prefect_qruntime"])
    found = {kind for _, kind in inspect.getmembers(module) if inspect.isclass(kind) and issubclass(kind, Block)}
    assert found == {Budget, QuantumRuntimeCredentials, QuantumRuntimeJob, QuantumRuntimePolicy}
