"""Make texts safe to log, raise and show: without keys and tokens, terminal sequences, links or scripts.

Keys and tokens are kept out of every text (logs, exceptions, error bodies) by two nets. Known secrets (each API key and
token this process ever held) are replaced wherever they appear; and the shapes in which secrets travel (`Authorization`
values, `apikey=…`, JSON Web Tokens) are replaced even when the value is unknown.

Names, reasons, ids and tags come from the service, and so from other users of the instance. They are data: they must
not move a cursor, reverse a line, load a picture, set a link or run a script where they are shown, in a terminal, in
Markdown or in HTML.
"""

from __future__ import annotations

import bisect
import contextlib
import difflib
import functools
import html
import json
import logging
import os
import re
import threading
import traceback
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import quote

__all__ = [
    "ClosedOutput",
    "RedactionFilter",
    "forget_all",
    "get_logger",
    "html_text",
    "install",
    "lock_of_process",
    "many",
    "markdown_text",
    "nearest",
    "number_text",
    "plain_text",
    "printable",
    "redact",
    "redact_start",
    "register_secret",
    "shown",
]


MASK = "********"

_SHAPES = (
    re.compile(r"(?i)(\bauthorization[\"']?\s*[=:]\s*[\"']?basic\s+)[A-Za-z0-9+/=_-]{4,}"),
    re.compile(r"(?i)(\b(?:bearer|apikey)\s+)[A-Za-z0-9._~+/=-]{6,}"),
    re.compile(
        r"(?i)((?:apikey|api_key|access_token|refresh_token|x-access-token)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;)}]{4,}"
    ),
    re.compile(r"()\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)?"),
)
# One of these is in whatever has such a shape, in small letters. A job asks a hundred times, and to look for them takes
# a tenth of the time that the shapes take.
_WORDS = ("authorization", "bearer", "apikey", "api_key", "access_token", "refresh_token", "x-access-token", "eyj")
# Loggers of the libraries that see a token; our own come from `get_logger`. A filter on a parent does not reach
# its children, so each logger that writes is named.
_LOGGERS = (
    "httpx",
    *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")),
    "hpack.hpack",
    "hpack.table",
    "websockets",
    "websockets.client",
    "asyncio",
)
_KEEP = 4096


def lock_of_process() -> threading.Lock:
    """Make a lock that is free in a forked process, also if a thread of the parent held it at the fork."""
    lock: Any = threading.Lock()
    if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # as Python's own modules do
    return cast(threading.Lock, lock)


_lock = lock_of_process()
_lasting: set[str] = set()
_passing: OrderedDict[str, None] = OrderedDict()
_longest_first: tuple[list[str], list[int]] | None = None
"""The known secrets, longest first, and their negative lengths; None after one was added."""

# Terminal control sequences: CSI (colours, cursor), OSC (title, links), and other two-character sequences.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -~]?"
)
_PUNCTUATION = re.compile(r"[\\`*_{}\[\]<>()#+!|~&@$^]")
_AUTOLINK = re.compile(r"(?i)(\bwww|:(?=//))(\.?)")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def register_secret(secret: str, *, passing: bool = False) -> None:
    """Remember a secret, so that `redact` finds it in any text. Short ones are ignored.

    A lasting one is found as it stands in a form, an address or JSON, too: a page of a proxy may repeat a request.

    Args:
        secret: The secret.
        passing: It is of use for hours only, such as a token. A process may see any number of these, so only the latest
            are remembered, and they displace no key or password. Register it again at each use.
    """
    global _longest_first
    if len(secret) < 6:
        return
    with _lock:
        if passing and secret in _passing:
            _passing.move_to_end(secret)
            return
        if secret in _lasting:
            return
        if passing:
            _passing[secret] = None
            while len(_passing) > _KEEP:  # the first is the one longest unused
                _passing.popitem(last=False)
        else:
            # A text with lone surrogates has no such form.
            quoted = (quote(secret, safe, errors="replace") for safe in ("/", ""))
            _lasting.update((secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *quoted))
        _longest_first = None


def forget_all() -> None:
    """Forget all registered secrets (for tests)."""
    global _longest_first
    with _lock:
        _lasting.clear()
        _passing.clear()
        _longest_first = None


def _known_secrets() -> tuple[list[str], list[int]]:
    global _longest_first
    with _lock:
        if _longest_first is None:
            secrets = sorted({*_lasting, *_passing}, key=len, reverse=True)
            _longest_first = secrets, [-len(secret) for secret in secrets]
        return _longest_first


def redact(text: str) -> str:
    """Return `text` with every known secret and every secret-shaped part masked.

    Example:
        ```python
        from prefect_qruntime.redact import redact

        assert redact("Authorization: Bearer abcdef123456") == "Authorization: Bearer ********"
        ```
    """
    text = _without_known(text)
    if text.isascii():  # beyond it other letters are taken for the same ones, such as a long s
        lower = text.lower()
        if not any(word in lower for word in _WORDS):
            return text
    for shape in _SHAPES:
        text = shape.sub(rf"\g<1>{MASK}", text)
    return text


def _without_known(text: str) -> str:
    # One by one, as a pattern of all takes seconds to make. A process of weeks knows thousands of tokens; nearly all
    # texts are shorter than each of them.
    secrets, lengths = _known_secrets()
    for place in range(bisect.bisect_left(lengths, -len(text)), len(secrets)):
        if secrets[place] in text:
            text = text.replace(secrets[place], MASK)
    return text


_LONGEST_SECRET = 4096  # characters


def redact_start(text: str, length: int) -> str:
    """The first `length` characters of a text, masked. A long one is cut first, as the search takes long.

    Example:
        ```python
        from prefect_qruntime.redact import redact_start

        assert redact_start("apikey: abcdef123456 " + "x" * 10**7, 20) == "apikey: ******** xxx"
        ```
    """
    whole = 4 * length + _LONGEST_SECRET  # more than is shown, as masking shortens it
    # A secret that the cut went through is not recognised; it stands in what is dropped at the end.
    return (redact(text) if len(text) <= whole else redact(text[:whole])[:-_LONGEST_SECRET])[:length]


class RedactionFilter(logging.Filter):
    """Masks secrets in a record's message, arguments and traceback text. Never drops a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; it always passes."""
        try:
            message = record.getMessage()
        except Exception:  # a broken format string is the caller's problem, not a leak
            return True
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


_filter = RedactionFilter("qruntime-redaction")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this package, with the filter that masks secrets.

    Example:
        ```python
        from prefect_qruntime.redact import get_logger

        log = get_logger(__name__)
        ```
    """
    logger = logging.getLogger(name)
    logger.addFilter(_filter)  # the same filter is added once only
    logger.handle = functools.partial(_handle, logger)  # type: ignore[method-assign]
    return logger


class ClosedOutput(contextlib.AbstractContextManager[None]):
    """Let no log line end the process because its output was closed: no job is less alive because no one reads its log.

    Prefect writes with rich, which ends the process then. What a signal handler raises meanwhile still ends it.
    """

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)


def _handle(logger: logging.Logger, record: logging.LogRecord) -> None:
    with ClosedOutput():
        type(logger).handle(logger, record)


def install() -> None:
    """Put the filter on the loggers of the HTTP and websocket libraries. May be called twice."""
    for name in _LOGGERS:
        get_logger(name)


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
        from prefect_qruntime.redact import printable

        assert printable("\x1b[31mred\x1b[0m\nalert") == "red alert"
        ```
    """
    # Cut first: a service may send a very long text. Sequences and spaces only shorten it.
    text = str(value)[: 4 * limit]
    if not text.isprintable():  # most texts are, and need no search
        text = "".join(map(_visible, _ESCAPES.sub("", text)))
    shown = " ".join(text.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def plain_text(text: str, *, shapes: bool = True) -> str:
    r"""The text masked, without terminal sequences and invisible characters; line breaks and tabs stay.

    Args:
        text: The text.
        shapes: Whether what only has the shape of a secret is masked too. Words of our own may have it by chance, such
            as "api_key: Field required".

    Example:
        ```python
        from prefect_qruntime.redact import plain_text

        assert plain_text("\x1b[31mred\x1b[0m\r\nBearer abcdef123456") == "red\nBearer ********"
        ```
    """
    if not text.isprintable():
        lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
        # Most lines are plain, and a long text is looked at letter by letter where it has to be only.
        text = "\n".join(line if line.isprintable() else "".join(map(_kept, line)) for line in lines)
    # Masked last: a sequence inside a secret would hide it.
    return redact(text) if shapes else _without_known(text)


def _kept(letter: str) -> str:
    return letter if letter == "\t" else _visible(letter)


def _visible(letter: str) -> str:
    category = unicodedata.category(letter)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    return _REPLACEMENT if category in ("Cf", "Cs", "Co", "Cn") else letter


def markdown_text(value: Any, limit: int = 500) -> str:
    r"""The text for Markdown: no link, picture, heading, code, table cell or HTML begins or ends in it.

    Example:
        ```python
        from prefect_qruntime.redact import markdown_text

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
        from prefect_qruntime.redact import html_text

        assert html_text("<script>") == "&lt;script&gt;"
        ```
    """
    return html.escape(printable(value, limit), quote=True)


def nearest(wrong: str, known: Iterable[str], *, most: int = 1) -> str:
    """The question "Did you mean …?" if known names are similar to a wrong one; else an empty text."""
    found = difflib.get_close_matches(wrong.lower(), list(known), n=most, cutoff=0.6)
    return f"Did you mean {' or '.join(map(repr, found))}?" if found else ""


def shown(value: Any, most: int = 60) -> str:
    """A value's `repr` for an error message, masked and cut.

    Of a value that is nested too deeply, or whose `repr` fails, it is the type.
    """
    try:
        text = repr(value)
    except Exception:  # a RecursionError, or what a class of the user's raises
        text = f"<{type(value).__name__}>"
    return f"{redact_start(text, most)}{'…' if len(text) > most else ''}"


def number_text(value: float, sign: str = "") -> str:
    """A number to read: six digits, and of large ones all, so that the rows of a table add up to its total.

    Args:
        value: The number.
        sign: `+` to show the sign of a positive number too.

    Example:
        ```python
        from prefect_qruntime.redact import number_text

        assert number_text(1234567.5) == "1234567.5" and number_text(0.1 + 0.2) == "0.3"
        ```
    """
    return f"{value:{sign}g}" if abs(value) < 100_000 else f"{value:{sign}.15g}"


def many(number: int, what: str) -> str:
    """A number with its noun: "1 job", "2 jobs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
