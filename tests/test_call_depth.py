"""How many functions a call enters until its request leaves: steady, so it is held by a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import call_depth

REPOSITORY = Path(call_depth.__file__).parent.parent


def test_no_call_goes_deeper_than_its_bound() -> None:
    """In a process of its own: what other tests left in memory would lead another way."""
    code = "from tools import call_depth; print(repr(call_depth.figures(call_depth.measure())))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert run.returncode == 0, run.stderr
    figures = eval(run.stdout.strip().splitlines()[-1])
    assert figures.keys() == call_depth.BOUNDS.keys()
    for name, (functions, modules) in figures.items():
        assert 10 < functions <= call_depth.BOUNDS[name][0], name
        assert 5 < modules <= call_depth.BOUNDS[name][1], name


def test_a_request_that_never_leaves_is_an_error() -> None:
    trace = call_depth.Trace()
    trace.start(lambda request: True)
    with pytest.raises(RuntimeError, match="not sent"):
        trace.stop()
