"""`Sandbox`: serve the sandbox on a loopback port, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib import import_module
from ipaddress import ip_address
from types import TracebackType
from typing import Any

from prefect_qruntime.sandbox import control_token
from prefect_qruntime.sandbox.control import Control, ControlError
from prefect_qruntime.sandbox.control_actions import ControlActions
from prefect_qruntime.sandbox.routes import build_app
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.uvicorn_server import Server

_CALL_TIMEOUT = 60.0


class Sandbox:
    """A local Qiskit Runtime server: both dialects, IAM and the websocket on one loopback port.

    Use it as a context manager, plain or async; the server runs in its own thread either way.

    Args:
        port: TCP port; 0 takes a free one.
        host: Address to listen on; loopback only.
        queue_time: Service seconds a job stays Queued.
        run_time: Service seconds a job runs, and what it costs in QPU seconds.
        clock_scale: Service seconds per real second.
        token_lifetime: Service seconds an IAM token lives.
        create_limit: Job creates per minute and user, `None` for no limit.
        allow_dedicated: `False` refuses dedicated sessions, as the Open Plan does.
        websocket: `True` for the legacy socket, `"both"` for the cloud dialect too, `False` for none.
        list_lag: Service seconds until a new job is in lists.
        get_lag: Service seconds a new job answers 404.
        results_lag: Service seconds the results of a completed job answer 204.
        usage_lag: Service seconds until the usage of an ended job is final.
        usage_limit_seconds: QPU seconds an instance may use, `None` for no limit.
        seed: Makes results depend on the submission order only.
        api_key: API key of the first user; a random one if not given.
        crn: CRN of the first instance; a random one if not given.
        **options: Further options; see `Settings`.

    Raises:
        ValueError: If an option does not fit or the host is not loopback.

    Example:
        >>> with Sandbox(seed=1) as sandbox:
        ...     credentials = sandbox.credentials()
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        queue_time: float = 0.05,
        run_time: float = 0.05,
        clock_scale: float = 1.0,
        token_lifetime: float = 3600.0,
        create_limit: int | None = None,
        allow_dedicated: bool = True,
        websocket: bool | str = True,
        list_lag: float = 0.0,
        get_lag: float = 0.0,
        results_lag: float = 0.0,
        usage_lag: float = 0.0,
        usage_limit_seconds: float | None = None,
        seed: int | None = None,
        api_key: str | None = None,
        crn: str | None = None,
        **options: Any,
    ) -> None:
        self._host = _loopback(host)
        self._port = port
        self._settings = Settings(
            queue_time=queue_time,
            run_time=run_time,
            clock_scale=clock_scale,
            token_lifetime=token_lifetime,
            create_limit=create_limit,
            allow_dedicated=allow_dedicated,
            websocket=websocket,
            list_lag=list_lag,
            get_lag=get_lag,
            results_lag=results_lag,
            usage_lag=usage_lag,
            usage_limit_seconds=usage_limit_seconds,
            seed=seed,
            **options,
        )
        self._service = Service(self._settings, api_key, crn)
        self._actions = ControlActions(self._service)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._used = False
        self.control = Control(self._call)

    # --- what a client needs

    @property
    def url(self) -> str:
        """The root of the server, for example `http://127.0.0.1:40123`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def base_url(self, dialect: str = "cloud") -> str:
        """Return the base URL of the REST calls in a dialect; `/jobs` is appended to it."""
        if dialect not in ("cloud", "legacy"):
            raise ValueError(f"dialect must be cloud or legacy, not {dialect!r}")
        return f"{self.url}/api/v1" if dialect == "cloud" else self.url

    @property
    def iam_url(self) -> str:
        """The base URL of the IAM service; `/identity/token` is appended to it."""
        return self.url

    @property
    def instances(self) -> list[tuple[str, str]]:
        """The (API key, CRN) pairs: two users of the first instance, one of a second."""
        return list(self._service.accounts.pairs)

    @property
    def api_key(self) -> str:
        """The first user's API key."""
        return self._service.accounts.pairs[0][0]

    @property
    def crn(self) -> str:
        """The first instance's CRN."""
        return self._service.accounts.pairs[0][1]

    @property
    def control_token(self) -> str:
        """The token that `Control.connect` needs on another machine or as another user."""
        return self._service.control_token

    def connection(self, dialect: str = "cloud") -> dict[str, str]:
        """Return the fields a client needs: key, CRN, dialect and URLs."""
        return {
            "api_key": self.api_key,
            "crn": self.crn,
            "dialect": dialect,
            "base_url": self.base_url(dialect),
            "iam_url": self.iam_url,
        }

    def credentials(self, dialect: str = "cloud") -> Any:
        """Return a `QuantumRuntimeCredentials` block for this sandbox (imports prefect)."""
        # By name and at call time: the sandbox itself knows nothing of the layers above it.
        block = import_module("prefect_qruntime.credentials").QuantumRuntimeCredentials
        return block(**self.connection(dialect))

    # --- life

    def start(self) -> Sandbox:
        """Start serving; returns when the port is open.

        Raises:
            OSError: If the port is taken.
            RuntimeError: If the sandbox was started before.
        """
        if self._used:
            raise RuntimeError("a sandbox can be started once; make a new one")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # asyncio switches off Nagle's algorithm only if the protocol is named; else answers take 40 ms.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
        except BaseException:
            sock.close()
            raise
        self._used = True
        self._port = sock.getsockname()[1]
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(sock, started), name=f"sandbox-{self._port}", daemon=True
        )
        self._thread.start()
        started.result(timeout=30)
        control_token.publish(self._port, self.control_token)
        return self

    def stop(self) -> None:
        """Stop serving; open connections are closed. Stopping twice does no harm."""
        thread, loop, server = self._thread, self._loop, self._server
        if thread is None or loop is None or server is None:
            return
        control_token.withdraw(self._port, self.control_token)
        with contextlib.suppress(RuntimeError):  # The loop may have ended by itself.
            loop.call_soon_threadsafe(server.stop)
        thread.join(timeout=10)
        self._thread = self._loop = None

    def reset(self) -> None:
        """Start over while running: no jobs, sessions, faults, journal or usage, options as constructed.

        API keys are new (unless one was given), so that no token cached from before fits; URL and CRNs stay.
        """
        self.control.reset()

    def warm_up(self, timeout: float = 60.0) -> None:
        """Wait until the process that simulates is ready, which takes about a second, once per process.

        It starts by itself in the background; waiting makes the first job quick.

        Args:
            timeout: Real seconds.

        Raises:
            TimeoutError: If it takes longer.
        """
        if self._settings.physics:
            self._service.simulator.wait_until_warm(timeout)

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Sandbox:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _serve(self, sock: socket.socket, started: Future[None]) -> None:
        try:
            asyncio.run(self._main(sock, started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _main(self, sock: socket.socket, started: Future[None]) -> None:
        loop = asyncio.get_running_loop()
        service = self._service
        self._server = Server(build_app(service), service)
        self._loop = loop
        service.clock.attach(loop)
        service.simulator.start(loop)
        serving = asyncio.ensure_future(self._server.serve(sockets=[sock]))
        ready = asyncio.ensure_future(self._server.ready.wait())
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                started.set_result(None)
            await serving
        finally:
            ready.cancel()
            service.clock.clear()
            service.simulator.stop()

    # --- control

    def _call(self, name: str, fields: Mapping[str, Any]) -> Any:
        """Run a control action on the server's loop and return its result; before and after, run it here."""

        async def act() -> Any:
            result = getattr(self._actions, name)(**fields)
            return await result if inspect.isawaitable(result) else result

        loop, thread = self._loop, self._thread
        try:
            if loop is None or thread is None or not thread.is_alive():
                return asyncio.run(act()) if _no_loop() else getattr(self._actions, name)(**fields)
            return asyncio.run_coroutine_threadsafe(act(), loop).result(_CALL_TIMEOUT)
        except (TypeError, ValueError, LookupError) as error:
            raise ControlError(str(error)) from error


def _no_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _loopback(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        inside = ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise ValueError(f"the sandbox listens on loopback only, not on {host!r}")
    return host


async def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    on_start: Callable[[Sandbox], None] | None = None,
    **options: Any,
) -> None:
    """Serve a sandbox until cancelled, or until SIGINT or SIGTERM if this is the main thread.

    Args:
        host: Loopback address.
        port: TCP port; 0 takes a free one.
        on_start: Called with the running sandbox, for example to print its URL and key.
        **options: Options of `Sandbox`.
    """
    async with Sandbox(host=host, port=port, **options) as sandbox:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Not possible outside the main thread and on Windows; cancelling works everywhere.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stopped.set)
        if on_start is not None:
            on_start(sandbox)
        await stopped.wait()


def run_forever(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    on_start: Callable[[Sandbox], None] | None = None,
    **options: Any,
) -> None:
    """Do what `serve` does, from code without a loop."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(host, port, on_start=on_start, **options))
