"""No key and no token in any text, known or not."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime import redact as module
from prefect_qruntime.redact import (
    MASK,
    RedactionFilter,
    forget_all,
    get_logger,
    install,
    number_text,
    redact,
    redact_start,
    register_secret,
    shown,
)
from tests.support.closed_pipe import EndsProcess

TOKEN = "tok-Zk39vQx1-not-a-real-one"
JWT = "eyJraWQiOiIyMDI2.eyJpYW1faWQiOiJJQk1p.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {MASK}"),
        ("authorization: bearer abc.def-123~x/y+z=", f"authorization: bearer {MASK}"),
        ("Authorization: apikey Abc_123-456", f"Authorization: apikey {MASK}"),
        ("grant_type=x&apikey=SECRETKEY1&y=1", f"grant_type=x&apikey={MASK}&y=1"),
        ('{"access_token":"abc123","x":1}', f'{{"access_token":"{MASK}","x":1}}'),
        ("{'refresh_token': 'abc123'}", f"{{'refresh_token': '{MASK}'}}"),
        ("X-Access-Token: abc123", f"X-Access-Token: {MASK}"),
        (f"saw {JWT} there", f"saw {MASK} there"),
        ("api_key=abcd1234)", f"api_key={MASK})"),
        ("the bearer of bad news", "the bearer of bad news"),
        ("job d1abc on ibm_torino", "job d1abc on ibm_torino"),
    ],
)
def test_shapes(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_known_secrets_are_found_anywhere() -> None:
    register_secret(TOKEN)
    register_secret(TOKEN + "-longer")
    assert redact(f"x{TOKEN}y {TOKEN}-longer") == f"x{MASK}y {MASK}"
    register_secret("short")
    assert redact("a short text") == "a short text"
    register_secret("a+b(c)[d]")
    assert redact("a+b(c)[d]") == MASK
    forget_all()
    assert redact(TOKEN) == TOKEN


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=0x17F), min_size=6, max_size=20))
def test_a_key_is_found_in_a_repeated_form_address_or_json(secret: str) -> None:
    """Whatever characters it has: a page of a proxy may repeat the request that it refuses."""
    forget_all()
    register_secret(secret)
    for text in (
        urlencode({"key": secret}),
        f"/x?key={quote(secret)}",
        json.dumps({"key": secret}),
        repr({"key": secret}),
    ):
        shown = redact(text)
        assert MASK in shown, text
        assert len(shown) <= len("{'key': ''}") + len(MASK)


def test_a_damaged_key_is_registered_too() -> None:
    register_secret("\ud800-damaged-key")
    assert redact("a \ud800-damaged-key") == f"a {MASK}"


def test_a_new_token_among_many_does_not_make_the_next_text_wait() -> None:
    tokens = [f"{number:04}" * 300 for number in range(1000)]
    for token in tokens:
        register_secret(token)
    began = time.thread_time()
    assert redact(f"{tokens[7]} and {tokens[8]}") == f"{MASK} and {MASK}"
    assert time.thread_time() - began < 0.1  # on the network loop
    forget_all()


PIECES = [
    *("Authorization", "AUTHORIZATI\N{LATIN SMALL LETTER DOTLESS I}ON", "basic", "ba\N{LATIN SMALL LETTER LONG S}ic"),
    *("Bearer", "apikey", "API\N{KELVIN SIGN}EY", "api_key", "access_token", "Refresh_Token", "x-access-token"),
    *("eyJhbGciOi", ".", ": ", "=", " ", '"', "abcdef123456", "known-secret", "\N{RIGHTWARDS ARROW}"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_short_way_finds_what_a_full_search_finds(text: str) -> None:
    forget_all()
    register_secret("known-secret")
    searched = text.replace("known-secret", MASK)
    for shape in module._SHAPES:
        searched = shape.sub(rf"\g<1>{MASK}", searched)
    assert redact(text) == searched


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP", 3)
    forget_all()
    register_secret("lasting-key")
    for n in range(5):
        register_secret(f"secret-{n}", passing=True)
    assert redact("secret-0 secret-1 secret-4 lasting-key") == f"secret-0 secret-1 {MASK} {MASK}"


@pytest.fixture
def written() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    logger = logging.getLogger("test-redaction")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    filter_ = RedactionFilter()
    logger.addHandler(handler)
    logger.addFilter(filter_)
    logger.setLevel("DEBUG")
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)
    logger.removeFilter(filter_)


def test_records_are_cleaned_with_their_arguments_and_tracebacks(written: Any) -> None:
    logger, stream = written
    register_secret(TOKEN)
    logger.debug("> %s: %s", "Authorization", f"Bearer {TOKEN}")
    logger.debug({"headers": TOKEN})
    try:
        try:
            raise ValueError(f"inner {TOKEN}")
        except ValueError as inner:
            raise RuntimeError(f"outer {TOKEN}") from inner
    except RuntimeError:
        logger.exception("failed with %s", TOKEN)
    logger.info("count %d of %s", 3, "four")
    text = stream.getvalue()
    assert TOKEN not in text
    assert text.count(MASK) == 5
    assert "RuntimeError: outer ********" in text
    assert "ValueError: inner ********" in text
    assert "count 3 of four" in text


def test_a_broken_format_string_does_not_stop_the_record(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logger, _ = written
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%d", ("no number",), None)
    assert RedactionFilter().filter(record) is True
    assert logger.name == "test-redaction"


def test_install_is_repeat_safe_and_covers_every_logger_of_ours() -> None:
    install()
    install()
    package = Path(module.__file__).parent
    sources = [p for p in package.rglob("*.py") if "sandbox" not in p.parts]
    own = [p for p in sources if "getLogger(" in p.read_text()]
    # The others ask for loggers of Prefect's, which have filters of their own.
    assert {p.relative_to(package).as_posix() for p in own} <= {
        "redact.py",
        "cli/__init__.py",
        "observability/progress.py",
        "observability/telemetry.py",
        "tasks/definitions.py",
    }, "use get_logger"
    for name in {get_logger("prefect_qruntime.somewhere").name} | {
        "httpx",
        "httpcore.http11",
        "httpcore.connection",
        "websockets.client",
    }:
        assert [type(f) for f in logging.getLogger(name).filters].count(RedactionFilter) == 1, name


def test_a_long_text_is_cut_before_it_is_searched() -> None:
    secret = "abcdefgh" * 40
    register_secret(secret)
    began = time.thread_time()
    assert redact_start("a b c " * 3_500_000, 100) == ("a b c " * 20)[:100]
    assert time.thread_time() - began < 0.05
    for place in (0, 90, 99, 399, 400, 401, 4000, 4400, 4495):  # wherever a cut might go through it
        shown = redact_start("x" * place + secret + "y" * 10**6, 100)
        assert 50 < len(shown) <= 100
        assert secret[:8] not in shown
        assert secret[-8:] not in shown


@given(st.lists(st.integers(0, 10**11), max_size=50))
def test_numbers_that_are_shown_add_up_to_the_sum_that_is_shown(cents: list[int]) -> None:
    large = [f / 100 + 100_000 for f in cents]
    assert sum(map(Decimal, map(number_text, large))) == Decimal(number_text(float(sum(map(Decimal, map(str, large))))))


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.0, "+0"), (12.3456789, "+12.3457"), (-0.25, "-0.25"), (1234567.25, "+1234567.25"), (1e300, "+1e+300")],
)
def test_a_number_to_read(number: float, shown: str) -> None:
    assert number_text(number, "+") == shown
    assert number_text(number) == shown.removeprefix("+")


@pytest.mark.parametrize("by_signal", [False, True])
def test_only_a_closed_pipe_does_not_end_the_process_at_a_log_line(
    caplog: pytest.LogCaptureFixture, by_signal: bool
) -> None:
    """Prefect's handler would; a signal's own may, also while a line waits for a full pipe."""
    logger, handler = get_logger("prefect_qruntime.test_ends"), EndsProcess(by_pipe=not by_signal)
    assert get_logger("prefect_qruntime.test_ends") is logger
    logger.addHandler(handler)
    with pytest.raises(SystemExit) if by_signal else nullcontext():
        logger.warning("said")
    logger.removeHandler(handler)
    logger.warning("said again")
    assert "said again" in caplog.text


@pytest.mark.parametrize("before", [0, 30, 55])
def test_a_value_in_an_error_is_masked_before_it_is_cut(before: int) -> None:
    key = "Zq7" * 15
    register_secret(key)
    text = shown("x" * before + key)
    assert "Zq7" not in text
    assert text.startswith(f"'{'x' * before}*")
    assert shown(["a"]) == "['a']"
    assert shown("x" * 100) == f"'{'x' * 59}…"
