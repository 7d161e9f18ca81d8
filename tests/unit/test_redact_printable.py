"""Other people's words are data wherever they are shown."""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.models import Backend, Job, JobStatus, Usage
from prefect_qruntime.redact import html_text, markdown_text, plain_text, printable, register_secret

HOSTILE = (
    "x [click me](https://evil.example/login) ![b](https://evil.example/beacon.png) <img src=https://evil.example/b "
    "onerror=alert(1)><script>alert(2)</script>\r\r# Big heading\r\r\x1b]0;pwned\x07\x1b[2J\x1b[31mRED\x1b[0m "
    "\u202egnp.exe www.evil.example a@evil.example `code` | cell | **bold** ~~x~~ &lt; $x^2$"
)
pieces = st.lists(
    st.text(max_size=5)
    | st.sampled_from(["\x1b[31m", "\x1b]8;;http://e\x07", "\x9b2J", "\u202e", "\u200b", "\n", "# ", "](", "<b", "|"])
).map("".join)


@given(pieces, st.integers(1, 50))
def test_nothing_invisible_and_no_control_is_left(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert printable(shown, limit) == shown


@given(pieces)
def test_plain_text_keeps_line_breaks_and_nothing_else_that_is_invisible(text: str) -> None:
    shown = plain_text(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert plain_text(shown) == shown


@pytest.mark.parametrize("between", ["\x1b[0m", "\x1b]8;;x\x07", "\x1bc"])
def test_a_secret_with_a_sequence_in_it_is_masked(between: str) -> None:
    register_secret("a-secret-of-ours")
    assert plain_text(f"line 1\r\n\ta-secret{between}-of-ours") == "line 1\n\t********"


@given(st.text("abcXYZ 0123456789äöü,;/'\"", min_size=1))
def test_plain_words_stay_as_they_are(text: str) -> None:
    wanted = " ".join(text.split())
    assert printable(text) == wanted
    assert html.unescape(html_text(text)) == wanted
    assert markdown_text(text) == wanted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07a", "a"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1;31mred", "red"),
        ("a\r\n\tb", "a b"),
        ("a\u202eb", "a\ufffdb"),
        ("x" * 600, "x" * 499 + "…"),
        (None, "None"),
        (7, "7"),
    ],
)
def test_printable(text: object, shown: str) -> None:
    assert printable(text) == shown


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


@given(pieces | st.just(HOSTILE))
def test_html_has_only_its_own_elements(text: str) -> None:
    reader = _Tags()
    reader.feed(f'<b title="{html_text(text)}">{html_text(text)}</b>')
    assert reader.tags == ["b"]


def test_markdown_renders_as_its_own_text() -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    for text in (HOSTILE, "- item", "1. item", "= x", "> quote", "    code", "+ item", "~~~", "***", "[a]: http://x"):
        rendered = markdown.render(markdown_text(text))
        reader = _Tags()
        reader.feed(rendered)
        assert reader.tags == ["p"], text
        assert html.unescape(rendered.removeprefix("<p>").removesuffix("</p>\n")) == printable(text)
    table = markdown.render(f"| a | b |\n|---|---|\n| {markdown_text(HOSTILE)} | c |")
    assert table.count("<td>") == 2
    assert "<a" not in table
    assert "<img" not in table


def test_no_bare_address_becomes_a_link() -> None:
    # Readers of GitHub's dialect find addresses by these beginnings.
    for text in ("https://evil.example", "see HTTP://x.y", "WWW.evil.example", "a@evil.example"):
        shown = markdown_text(text)
        assert not re.search(r"(?<!\\)://", shown)
        assert "www." not in shown.lower()
        assert not [place for place, letter in enumerate(shown) if letter == "@" and shown[place - 1] != "\\"]


def test_models_in_a_notebook_are_short_and_escaped() -> None:
    job = Job(id="d1", status=JobStatus.FAILED, raw_status="Failed", reason=HOSTILE, backend="<b>x</b>")
    assert repr(Usage(consumed_seconds=3.5, limit_seconds=600)) == "Usage(consumed_seconds=3.5, limit_seconds=600.0)"
    assert repr(Backend(name="b", num_qubits=5)) == "Backend(name='b', num_qubits=5)"
    assert "session_id" not in repr(job)
    for model in (job, Backend(name=HOSTILE, status_reason=HOSTILE), Usage(plan_id=HOSTILE)):
        page = model._repr_html_()
        reader = _Tags()
        reader.feed(page)
        assert set(reader.tags) == {"table", "caption", "tbody", "tr", "th", "td"}
        assert "\x1b" not in page
        assert "\u202e" not in page


def test_a_job_s_address_is_a_link_in_a_notebook_and_no_other_text_is() -> None:
    page = Job(id="d1", status=None, reason="https://evil.example", url="https://here.example/d1")._repr_html_()
    assert '<a href="https://here.example/d1" rel="noopener noreferrer">https://here.example/d1</a>' in page
    assert 'href="https://evil' not in page
    assert "href" not in Job(id="d1", status=None, url="javascript:alert(1)")._repr_html_()
