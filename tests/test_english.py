"""The words of docstrings, comments and messages: no phrase that a reader has to guess at, and numbers agree."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("prefect_qruntime", "flows") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "docs/**/*.ipynb",
        "automations/*",
        "deploy/*",
        "flows/*.yaml",
        "prefect_qruntime/**/*.md",
        "tests/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)

# Phrases that were found more than once, with what says the same plainly.
PHRASES = {
    r"[Nn]obody|[Aa]nybody|[Ww]ho(so)?ever": "name the actor",
    r"look(s|ed|ing)? after": "watch, check, close",
    r"(tell|tells|told) of\b": "report",
    r"(cannot|can not) be told": "it is not known",
    r"\banew\b": "again",
    r"is none of|are none of": "is not one of",
    r"\bis no (readable|plain|whole|valid)\b": "is not a",
    r"without a word": "silently",
    r"\bin clear\b": "unencrypted",
    r"\bblanks?\b": "spaces, whitespace",
    r"[Rr]epeat-safe": "may be called twice",
    r"all the same": "nevertheless",
    r"as long as (it|they|the) (runs?|lasts?|lives?)": "while",
}
_FORBIDDEN = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES))
_NOUNS = r"(?:jobs|sessions|flow runs|rows|instances|backends|rules|locks|PUBs)\b"
_LOUD = re.compile(r"^(?:log|logger|_log)\.(?:warning|error)$")
# A number of things that may be one: `printable.many` writes "1 job" and "2 jobs". "3 of 4 backends" needs the plural.
_COUNTED = re.compile(rf"(?<!of )(?:%d|\{{len\([^{{}}]*\)\}}) {_NOUNS}")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Each docstring, message and comment, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
                for part in node.values
            )
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def odd(source: str) -> list[str]:
    """The texts with a phrase or a plural that the rules above name."""
    found = {(line, match[0]) for line, text in texts(source) for match in _FORBIDDEN.finditer(text)}
    found |= {(line, match[0]) for line, text in texts(source) for match in _COUNTED.finditer(text)}
    return [f"line {line}: {phrase}" for line, phrase in sorted(found)]


def fragments(source: str) -> list[str]:
    """The texts of warnings and errors in the log that are no sentences: each begins like one and ends like one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and node.args and _LOUD.search(ast.unparse(node.func))):
            continue
        said = "".join(text for _, text in texts(ast.unparse(node.args[0])))
        if said and not (re.match(r"[A-Z%{`]", said) and re.search(r"(?:[.:?]| %[rs])$", said)):
            found.append(f"line {node.lineno}: {said[:80]}")
    return found


def unfinished(source: str) -> list[str]:
    """The docstrings, those of attributes too, whose first line is no sentence."""
    bodies = (getattr(node, "body", None) for node in ast.walk(ast.parse(source)))
    said = (
        (statement.lineno, statement.value.value)
        for body in bodies
        if isinstance(body, list)
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement.value.value, str)
    )
    return [
        f"line {line}: {text[:60]}"
        for line, text in said
        if not re.match(r"[A-Z0-9`\"(]", text) or not re.search(r"[.:?]$", text.strip().split("\n\n")[0])
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_of_pages_are_plain(path: Path) -> None:
    text = " ".join(path.read_text().split())  # a phrase may go on in the next line
    assert [text[max(match.start() - 40, 0) : match.end() + 20] for match in _FORBIDDEN.finditer(text)] == []


@pytest.mark.uncounted
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_are_plain(path: Path) -> None:
    text = path.read_text()
    assert not odd(text)
    assert not unfinished(text)
    assert not fragments(text)


@pytest.mark.parametrize(
    "source",
    [
        '"""An explicit key that nobody used."""',
        "x = 1  # the watcher looks after it",
        'raise ValueError(f"{name} cannot be told")',
        'log.info("%d jobs cancelled", 1)',
        'print(f"{len(jobs)} jobs were found")',
    ],
)
def test_an_odd_text_is_found(source: str) -> None:
    assert odd(source)


@pytest.mark.parametrize("source", ['"""it begins small."""', 'X = 1\n"""An attribute without a stop"""'])
def test_a_docstring_that_is_no_sentence_is_found(source: str) -> None:
    assert unfinished(source)


@pytest.mark.parametrize("call", ['log.warning("it was lost")', 'log.error("job %s was lost.", job)'])
def test_a_warning_that_is_no_sentence_is_found(call: str) -> None:
    assert fragments(call)


def test_numbers_that_agree_are_not_reported() -> None:
    assert not odd("""print(f"{len(one)} of {len(all_)} backends, {many(len(jobs), 'job')}")""")
