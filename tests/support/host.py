"""A host of its own: network, processes and host name in namespaces, and a few of the machine's ports let in.

`python -m tests.support.host NAME FOLDER PORT ... -- COMMAND ...` runs a command as on another machine, for whoever may
make namespaces (root). It sees of the network what `doors` lets in: 127.0.0.1:PORT leads by a unix socket in FOLDER to
the same port outside. Killing the process kills everything on the host at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from tests.support.api_proxy import pump

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def can_be_made() -> bool:
    """Whether this user may make namespaces here."""
    with contextlib.suppress(OSError):
        made = subprocess.run(
            ["unshare", "--net", "--uts", "--pid", "--fork", "ip", "link", "set", "lo", "up"],
            capture_output=True,
            check=False,
        )
        return made.returncode == 0
    return False


@contextlib.contextmanager
def doors(folder: Path, ports: Sequence[int]) -> Iterator[None]:
    """Let hosts in to these ports of this machine while the context lasts."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        for port in ports:
            await asyncio.start_unix_server(
                _to(lambda port=port: asyncio.open_connection("127.0.0.1", port)), folder / str(port)
            )
        ready.set()

    async def live() -> None:
        await serve()
        await over.wait()

    over = asyncio.Event()

    def work() -> None:
        loop.run_until_complete(live())
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


def on_host(name: str, folder: Path, ports: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command that runs another one on a host."""
    namespaces = ["unshare", "--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child"]
    here = [sys.executable, "-m", "tests.support.host", name, str(folder), *map(str, ports), "--"]
    return [*namespaces, *here, *command]


def _to(
    there: Callable[[], Awaitable[Streams]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            back, out = await there()
            await asyncio.gather(pump(reader, out), pump(back, writer))

    return serve


async def _live(folder: Path, ports: Sequence[int], command: Sequence[str]) -> int:
    for port in ports:
        await asyncio.start_server(
            _to(lambda port=port: asyncio.open_unix_connection(folder / str(port))), "127.0.0.1", port
        )
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()


def main(name: str, folder: str, *rest: str) -> int:
    """Be the first process of a host."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["hostname", name], check=True)
    end = rest.index("--")
    return asyncio.run(_live(Path(folder), [int(port) for port in rest[:end]], rest[end + 1 :]))


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(*sys.argv[1:]))
