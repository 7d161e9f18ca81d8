"""A proxy before Prefect's API that counts requests, delays them, and answers some with errors."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass
class Fault:
    """What happens to the requests that a pattern matches.

    Attributes:
        pattern: Searched for in `METHOD /path`.
        status: The answer instead of the server's.
        lose: Whether the server's answer is dropped and the connection closed.
        delay: Seconds before anything else.
        times: How often; None for always.
        hits: How often it happened.
    """

    pattern: str
    status: int | None = None
    lose: bool = False
    delay: float = 0.0
    times: int | None = None
    hits: int = 0


@dataclass
class ApiProxy:
    """Listens on a free port of this machine while its context lasts.

    Attributes:
        target: The server's port.
        faults: What happens to requests.
        refusals: So many more requests find nobody there; websockets neither, as long as there are some.
        refused: How many requests found nobody.
        seen: Every request.
        port: Its own port.
    """

    target: int
    faults: list[Fault] = field(default_factory=list)
    refusals: int = 0
    refused: int = 0
    seen: list[str] = field(default_factory=list)
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        """The API's address behind this proxy."""
        return f"http://127.0.0.1:{self.port}/api"

    def counts(self) -> Counter[str]:
        """How often each request was made, ids left out."""
        return Counter(_UUID.sub("{id}", one.split("?")[0]) for one in self.seen)

    @contextlib.contextmanager
    def running(self) -> Iterator[ApiProxy]:
        """Serve in a thread."""
        ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def work() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert ready.wait(60)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(5)

    def _fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if re.search(fault.pattern, request) and (fault.times is None or fault.hits < fault.times):
                fault.hits += 1
                return fault
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; returns whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = " ".join(lines[0].split(" ")[:2])
        websocket = headers.get("upgrade") == "websocket"
        if self.refusals > 0:
            if not websocket:
                self.refusals -= 1
                self.refused += 1
            return False
        fault = None if websocket else self._fault(request)
        if not websocket:
            self.seen.append(request)
        if fault is not None:
            await asyncio.sleep(fault.delay)
            if fault.status is not None:
                text = b'{"detail": "injected"}'
                writer.write(
                    f"HTTP/1.1 {fault.status} Injected\r\ncontent-type: application/json\r\nretry-after: 0\r\n"
                    f"content-length: {len(text)}\r\n\r\n".encode()
                    + text
                )
                await writer.drain()
                return True
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            if not websocket:
                kept = [line for line in lines[:-2] if not line.lower().startswith("connection:")]
                head = "\r\n".join([*kept, "connection: close", "", ""]).encode("latin1")
            back.write(head + body)
            await back.drain()
            if websocket:
                await asyncio.gather(pump(reader, back), pump(there, writer))
                return False
            answer = await there.read()
        finally:
            back.close()
        if fault is None or not fault.lose:
            writer.write(answer)
            await writer.drain()
        return False  # the server closed its side, and said so in its answer


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Hand on what comes, until one of the two is closed."""
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
