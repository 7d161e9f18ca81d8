"""The fenced code blocks of the README and the documentation."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "Page", "docstrings", "guides", "pages", "prose"]

ROOT = Path(__file__).resolve().parents[2]
# Written by `make bench` from what it measured.
GENERATED = {"docs/benchmarks.md"}
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: The page's path in the repository.
        line: Line of its first line of code in the page.
        language: What follows the fence.
        code: Its text.
    """

    page: str
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        """Where it is, as a person says it."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page with its blocks in order."""

    path: str
    blocks: tuple[Block, ...]

    def of(self, language: str) -> list[Block]:
        """The blocks of one language."""
        return [block for block in self.blocks if block.language == language]


def _page(path: Path) -> Page:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    blocks = tuple(
        Block(name, text.count("\n", 0, match.start(2)) + 1, match[1], textwrap.dedent(match[2]))
        for match in _FENCE.finditer(text)
    )
    return Page(name, blocks)


def pages() -> list[Page]:
    """The README and all pages written by hand."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in map(_page, found) if page.path not in GENERATED]


def guides() -> list[Page]:
    """The pages for those who work on the package."""
    found = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *ROOT.glob("AGENTS.md"), *ROOT.glob("tests/AGENTS.md")]
    return [_page(path) for path in [*found, *sorted((ROOT / "prefect_qruntime").rglob("AGENTS.md"))]]


def prose(page: Page) -> str:
    """The text of a page without its blocks."""
    return _FENCE.sub("", (ROOT / page.path).read_text())


def docstrings() -> list[Page]:
    """The modules whose docstrings hold examples."""
    return [page for page in map(_page, sorted((ROOT / "prefect_qruntime").rglob("*.py"))) if page.blocks]
