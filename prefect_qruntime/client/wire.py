"""What one connection shares within a process: HTTP client, token, transport. Lives on the home loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import httpx

from prefect_qruntime.client.auth import TokenSource
from prefect_qruntime.client.dialects import Dialect, dialect_of
from prefect_qruntime.client.home import home
from prefect_qruntime.client.retrying import Patience
from prefect_qruntime.client.transport import Transport, http_client
from prefect_qruntime.connection import Connection
from prefect_qruntime.redact import install

__all__ = ["Wire", "wire_of"]


@dataclass(slots=True)
class Wire:
    """One connection's sockets and token."""

    connection: Connection
    http: httpx.AsyncClient = field(repr=False)
    tokens: TokenSource = field(repr=False)
    transport: Transport = field(repr=False)
    dialect: Dialect
    stream_refused: float = -math.inf
    """When this host turned a websocket down last, on the monotonic clock; for a while it is not asked again."""
    unfinished: dict[str, set[str]] = field(default_factory=dict)
    """Jobs bought here, by session, that were not seen at their end yet: a list may not show them yet."""


def wire_of(connection: Connection, patience: Patience | None = None) -> Wire:
    """The wire of a connection; the same one for every caller of this process.

    Must be called on the home loop.
    """
    here = home()
    name = f"wire:{connection.fingerprint}:{patience!r}"
    wire: Wire | None = here.shared.get(name)
    if wire is None:
        install()
        http = http_client(connection)
        dialect = dialect_of(connection)
        tokens = TokenSource(connection, http, patience=patience)
        transport = Transport(connection, http, tokens, headers=dialect.headers(connection), patience=patience)
        wire = Wire(connection, http, tokens, transport, dialect)
        here.shared[name] = wire
        here.on_close(http.aclose)
    return wire
