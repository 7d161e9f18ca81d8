"""Make texts safe to show, in a terminal, in Markdown and in HTML, and write numbers with their nouns.

Names, reasons, ids and tags come from the service, and so from other users of the instance. They are data: they must
not move a cursor, reverse a line, load a picture, set a link or run a script where they are shown.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

__all__ = ["html_text", "many", "markdown_text", "nearest", "printable"]

# Terminal control sequences: CSI (colours, cursor), OSC (title, links), and other two-character sequences.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -~]?"
)
_PUNCTUATION = re.compile(r"[\\`*_{}\[\]<>()#+!|~&@$^]")
_AUTOLINK = re.compile(r"(?i)(\bwww|:(?=//))(\.?)")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(value: Any, limit: int = 500) -> str:
    r"""The text in one line, without terminal sequences and invisible characters.

    Terminal sequences are removed, line breaks and other control characters become spaces, invisible characters (text
    direction, zero width, private use, lone surrogates) become the replacement character.

    Args:
        value: The text, or a value that is shown by its `str`.
        limit: Most characters; a longer text is cut and ends with an ellipsis.

    Returns:
        The text.

    Example:
        ```python
        from prefect_qruntime.printable import printable

        assert printable("\x1b[31mred\x1b[0m\nalert") == "red alert"
        ```
    """
    # Cut first: a service may send a very long text. Sequences and blanks only shorten it.
    text = str(value)[: 4 * limit]
    if not text.isprintable():  # else nothing of all this is in it, as in most texts
        text = "".join(map(_visible, _ESCAPES.sub("", text)))
    shown = " ".join(text.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _visible(letter: str) -> str:
    category = unicodedata.category(letter)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    return _REPLACEMENT if category in ("Cf", "Cs", "Co", "Cn") else letter


def markdown_text(value: Any, limit: int = 500) -> str:
    r"""The text for Markdown: no link, picture, heading, code, table cell or HTML begins or ends in it.

    Example:
        ```python
        from prefect_qruntime.printable import markdown_text

        assert markdown_text("[a](b) | c") == r"\[a\]\(b\) \| c"
        ```
    """
    text = _PUNCTUATION.sub(r"\\\g<0>", printable(value, limit))
    text = _AUTOLINK.sub(_no_autolink, text)
    # At the start of a line these make a list, a rule or an underlined heading; a number with a dot makes a list.
    return re.sub(r"^([-=]|\d+(?=\.))", lambda found: f"\\{found[1]}" if found[1] in "-=" else f"{found[1]}\\", text)


def _no_autolink(found: re.Match[str]) -> str:
    return f"\\{found[1]}{found[2]}" if found[1] == ":" else f"{found[1]}\\." if found[2] else found[0]


def html_text(value: Any, limit: int = 500) -> str:
    """The text for HTML, in an element or in a quoted attribute.

    Example:
        ```python
        from prefect_qruntime.printable import html_text

        assert html_text("<script>") == "&lt;script&gt;"
        ```
    """
    return html.escape(printable(value, limit), quote=True)


def nearest(wrong: str, known: Iterable[str], *, most: int = 1) -> str:
    """The question "Did you mean …?" if known names are similar to a wrong one; else an empty text."""
    found = difflib.get_close_matches(wrong.lower(), list(known), n=most, cutoff=0.6)
    return f"Did you mean {' or '.join(map(repr, found))}?" if found else ""


def many(number: int, what: str) -> str:
    """A number with its noun: "1 job", "2 jobs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
