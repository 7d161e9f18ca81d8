"""What is expected of IBM's own tests is held: one that no longer passes, is gone, or passes unexpectedly fails."""

from __future__ import annotations

import pytest

from tests.interop.ibm_tests import say

EXPECTED = {"passed": ["a", "b"], "cannot": {"c": "needs what there is not"}}
GOOD = {"a": ("passed", ""), "b": ("passed", ""), "c": ("skipped", "no")}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"a": ("failed", "AssertionError")}, "a failed: AssertionError"),
        ({"b": ("skipped", "no backend")}, "b skipped: no backend"),
        ({"c": ("passed", "")}, "c passes and is said not to"),
        ({"d": ("failed", "new")}, "d failed: new"),
        ({"b": None}, "b was not run"),
    ],
)
def test_a_regression_is_a_failure(change, word, capsys):
    assert say(GOOD, EXPECTED, whole=True) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 pass" in shown
    assert "c: needs what there is not" in shown
    found = {name: outcome for name, outcome in (GOOD | change).items() if outcome is not None}
    assert say(found, EXPECTED, whole=True) == 1
    assert word in capsys.readouterr().out
    # A part of the tests says nothing of those that were left out.
    assert say(found, EXPECTED, whole=False) == int("was not run" not in word)
