"""What every test may rely on: no settings and no proxy of this machine, no secret left from the test before.

Nothing heavy is imported here, so that the test of a pure module starts at once; tests/test_layout.py holds it.
"""

from __future__ import annotations

import ast
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prefect_qruntime.sandbox import Sandbox
    from tests.support.prefect_server import PrefectServer

# At import, before any test module imports Prefect: a session's own server may set some of these later.
for _name in list(os.environ):
    if _name.startswith("PREFECT_") or _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        del os.environ[_name]

# CPython issue 106883: Dask's profiler can make a worker process hang. docs/how-to/scale.md tells users.
if sys.version_info < (3, 11, 9):
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"


if sys.version_info < (3, 12):
    # CPython issue 106905: the depth of the tree is counted in one place for all threads. A collection in the middle
    # may let another thread parse, and then both end with a SystemError.
    _parse = ast.parse

    def _parse_undisturbed(*args: Any, **kwargs: Any) -> Any:
        collects = gc.isenabled()
        gc.disable()
        try:
            return _parse(*args, **kwargs)
        finally:
            if collects:
                gc.enable()

    ast.parse = _parse_undisturbed


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Load the profile of property tests before a module that has some is imported."""
    if isinstance(collector, pytest.Module) and "hypothesis" in collector.path.read_text(encoding="utf-8"):
        from hypothesis import settings

        # How long one example takes says more about the machine than about the code.
        settings.register_profile("calm", deadline=None)
        settings.load_profile("calm")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every test that is marked `server` the Prefect server, before its other fixtures.

    A name that differs from process to process is refused, for the workers must collect the same tests.
    """
    if " at 0x" in item.nodeid:
        raise pytest.UsageError(f"give the cases of {item.nodeid} names")
    if isinstance(item, pytest.Function) and item.get_closest_marker("server"):
        item.fixturenames.insert(0, "prefect_server")


def pytest_collection_finish() -> None:
    """Spare each later collection of garbage the half million objects of the tests themselves."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count no lines for coverage while an uncounted test runs: that doubles its time.

    Only this thread pauses. pytest-cov's `no_cover` stops all threads, and those that live go on without a count.
    """
    counting = sys.gettrace() if item.get_closest_marker("uncounted") else None
    if counting is not None:
        sys.settrace(None)
    try:
        yield
    finally:
        if counting is not None:
            sys.settrace(counting)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drop Hypothesis's summary if no test used it: for an empty summary it would import all of Hypothesis."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and not plugins.has_plugin("dsession"):
        plugins.unregister(name="hypothesispytest")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """Start one Prefect server for the session; this process uses it, too."""
    from tests.support.prefect_server import running_server

    with running_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _no_records_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no blocks and no open sessions on the Prefect server to the tests of the next module."""
    wanted = any("prefect_server" in item.fixturenames for item in request.session.items if item.path == request.path)
    server = request.getfixturevalue("prefect_server") if wanted else None
    yield
    if server is not None:
        from concurrent.futures import ThreadPoolExecutor

        from tests.support.prefect_server import forget_records

        with ThreadPoolExecutor(max_workers=1) as thread:  # Playwright keeps a loop running in this one
            thread.submit(forget_records, server.home).result()


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """For measures of time: leave out of the garbage collections what the tests before have left in this process."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    """How the module's sandbox is started; a module or a folder with other wishes has a fixture of this name."""
    return {"queue_time": 0.05, "run_time": 0.05}


@pytest.fixture(scope="session")
def start_sandbox() -> Iterator[Callable[..., Sandbox]]:
    """Start sandboxes, one for equal options; they share a process that simulates, and its start takes seconds."""
    from prefect_qruntime.sandbox import Sandbox

    started: dict[str, Sandbox] = {}
    with ExitStack() as stack:

        def start(**options: Any) -> Sandbox:
            name = repr(sorted(options.items()))
            if name not in started:
                started[name] = stack.enter_context(Sandbox(**options))
                started[name].warm_up()
            return started[name]

        yield start


@pytest.fixture(scope="module")
def running_sandbox(start_sandbox: Callable[..., Sandbox], sandbox_options: dict[str, Any]) -> Sandbox:
    """The module's sandbox, with nothing left of the module before."""
    running = start_sandbox(**sandbox_options)
    running.reset()
    return running


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Sandbox:
    """The module's sandbox as it was when it started; it forgot all jobs, and so does this process."""
    from tests.support.scenario import forget_submissions, stop_background

    stop_background()
    running_sandbox.reset()
    forget_submissions()
    return running_sandbox


@pytest.fixture(params=["cloud", "legacy"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Each dialect of the service in turn."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_secrets_left() -> Iterator[None]:
    """Forget every secret that the test before registered for redaction."""
    yield
    if redact := sys.modules.get("prefect_qruntime.redact"):
        redact.forget_all()
