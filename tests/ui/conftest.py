"""A browser over the Prefect server's own UI; run by `make ui-test` in an environment of its own.

The browser is Chromium as the operating system has it, driven by Playwright, which brings none here. Where either is
missing there is nothing to see: without Playwright nothing is collected, without a browser everything is skipped.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_server import PrefectServer

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

SIZE = {"width": 1280, "height": 960}
TALL = {"width": 1280, "height": 1440}
WIDE = {"width": 1440, "height": 800}
API_KEY = "ui-tests-key-0123456789abcdef"
# No sandbox of its own as root, and no calls to the browser maker's hosts.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no browser: install Debian's package `chromium`, or name one in CHROMIUM")
    return found


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots go; `make pictures` keeps them for the docs."""
    kept = os.environ.get("QRUNTIME_PICTURES")
    return Path(kept) if kept else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(queue_time=1.5, run_time=1.5, api_key=API_KEY, seed=7) as running:
        running.warm_up()
        yield running


@pytest.fixture(scope="session")
def aside(prefect_server: PrefectServer) -> Iterator[Callable[..., Any]]:
    """Run something in a thread: Playwright keeps a loop running in this one, where Prefect's sync names refuse."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield lambda work, *args, **kwargs: thread.submit(work, *args, **kwargs).result()


@pytest.fixture(scope="session")
def page(chromium: str) -> Iterator[Any]:
    """One tab for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        tab = browser.new_page(viewport=SIZE)
        tab.set_default_timeout(30_000)
        yield tab
        browser.close()


@pytest.fixture
def shoot(page: Any, pictures: Path, tmp_path: Path) -> Callable[..., None]:
    """Take a picture of the page: light for the docs, and dark to be looked at, into QRUNTIME_DARK_PICTURES.

    Each has 256 colours of the page, which halves the file.
    """
    from PIL import Image

    dark = Path(os.environ.get("QRUNTIME_DARK_PICTURES") or tmp_path)

    def still(**options: Any) -> bytes:
        """The page once it stops changing; a page that never stops is taken as it is."""
        last = b""
        for _ in range(12):
            seen = page.screenshot(animations="disabled", **options)
            if seen == last:
                break
            last = seen
            page.wait_for_timeout(700)
        return last

    def take(name: str, *, size: dict[str, int] = SIZE, **options: Any) -> None:
        if page.viewport_size != size:
            page.set_viewport_size(size)
        page.wait_for_load_state("networkidle")
        for scheme, folder in (("light", pictures), ("dark", dark)):  # a run's graph is drawn for the first one only
            page.emulate_media(color_scheme=scheme)
            with Image.open(io.BytesIO(still(**options))) as image:
                image.convert("RGB").quantize(256).save(folder / f"{name}.png", optimize=True)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(SIZE)

    return take


def high(height: int) -> dict[str, int]:
    """The usual width, and this height."""
    return {**SIZE, "height": height}


@pytest.fixture(scope="session")
def site(prefect_server: PrefectServer) -> Callable[[str], str]:
    """The UI's address of a path."""
    return lambda path: urljoin(prefect_server.url, path)


@pytest.fixture(params=["", "/v2"], ids=["first-ui", "second-ui"])
def ui(request: pytest.FixtureRequest) -> str:
    """Prefect's server has two UIs; it opens the second one, and the first is a click away."""
    return str(request.param)
