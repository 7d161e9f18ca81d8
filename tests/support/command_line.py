"""The command line, run in this process or, as an operator runs it, in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from prefect_qruntime.cli import main
from tests.support.prefect_server import ROOT


def exit_code(*words: str) -> object:
    """Run a command in this process; returns what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prefect-qruntime", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code


def command(env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    code = "from prefect_qruntime.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
