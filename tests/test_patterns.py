"""No pattern of the package can be made to try exponentially many ways: that would stop every thread of the process."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import prefect_qruntime

# Without the command line and the sandbox, which load much and read what their own user wrote.
ROOMS = ("client", "redact", "errors", "observability.markdown", "observability.artifacts")
ATOMS = (
    *("a", "0", " ", "\n", "\t", "<", ">", "-", "_", ".", ",", "=", "/", "\\", '"', "'", "[", "]", "(", ")", "{", "}"),
    *("<!-- a -->", "<!-- a -->\n", "<!--", "-->", "<html", "<title", "a.a", "a-a", "a, ", "a b ", "a[0], ", "(a)"),
    *("//", "/*", "*/", "/* a */", "// a\n", '"a"', "0x", "1e", "ctrl @ ", "measure ", "bit ", "bit[1] ", "qubit[1] a"),
    *("Bearer ", "bearer abcdef", "eyJabcde.", "Authorization: ", "http://a", "www.", "HTTP 200, ", " (HTTP 200"),
)
ENDS = ("", "!", "<div>", "\x00")
TIMES = 24
"""Repetitions: two ways for each of them would be 17 million tries."""
SECONDS = 0.25
"""Of this thread's own processor time; what is linear needs a thousandth of it."""


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    for module in pkgutil.walk_packages(prefect_qruntime.__path__, "prefect_qruntime."):
        room = module.name.removeprefix("prefect_qruntime.")
        if not any(room == one or room.startswith(f"{one}.") for one in ROOMS):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            held = value if isinstance(value, tuple | list) else [value]
            held = [item for one in held for item in (one if isinstance(one, tuple | list) else [one])]
            for pattern in held:
                if isinstance(pattern, re.Pattern):
                    yield f"{module.name}.{name}", pattern


def slowest(pattern: re.Pattern[Any]) -> tuple[float, str]:
    """Processor time of the worst text, and the text."""
    worst = (0.0, "")
    for atom, end in itertools.product(ATOMS, ENDS):
        text: Any = atom * TIMES + end
        subject = text.encode() if isinstance(pattern.pattern, bytes) else text
        began = time.thread_time()
        pattern.search(subject)
        worst = max(worst, (time.thread_time() - began, text))
        if worst[0] > SECONDS:
            break
    return worst


def test_no_pattern_tries_exponentially_many_ways() -> None:
    found = dict(patterns())
    assert len(found) > 40
    slow = {name: slowest(pattern) for name, pattern in found.items()}
    assert {name: at for name, at in slow.items() if at[0] > SECONDS} == {}


def test_the_measure_finds_one() -> None:
    assert slowest(re.compile(r"\s*(?:<!--.*?-->\s*)*<html\b", re.DOTALL))[0] > SECONDS
