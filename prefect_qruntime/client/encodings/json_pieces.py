"""Write JSON piece by piece, so that a large payload never holds the interpreter's lock for long.

`orjson.dumps` keeps the lock from its first byte to its last, so that a large payload stops the network loop even
when it is written in another thread. Between two pieces the loop can run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

__all__ = ["PIECE", "json_pieces", "weight"]

PIECE = 1 << 16
"""Characters and values that are written at once: at most a few milliseconds of work."""


def weight(value: Any, limit: int) -> int:
    """Characters and values in a value together; any larger number above the limit, as counting ends there."""
    found, stack = 0, [value]
    while stack and found <= limit:
        one = stack.pop()
        found += 1
        if isinstance(one, str):
            found += len(one)
        elif isinstance(one, dict | list | tuple):
            found += len(one)
            if found <= limit:
                stack += one
                if isinstance(one, dict):
                    stack += one.values()
    return found


def json_pieces(value: Any, *, sort_keys: bool = False, piece: int = PIECE) -> Iterator[bytes]:
    """The bytes of `orjson.dumps`, cut into pieces of bounded size.

    Args:
        value: What `orjson` can write.
        sort_keys: As `orjson.OPT_SORT_KEYS`.
        piece: Most characters and values in a piece.

    Yields:
        Pieces that together are the same JSON text.

    Raises:
        TypeError: `orjson` cannot write it.
    """
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    if weight(value, piece) <= piece:
        yield orjson.dumps(value, option=option)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), piece):
            yield orjson.dumps(value[start : start + piece])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        comma = b"{"
        # orjson sorts keys by their UTF-8, which is the order of Python's texts.
        for key in sorted(value) if sort_keys else value:
            if not isinstance(key, str):
                raise TypeError(f"Dict key must be str, not {type(key).__name__}")
            yield comma + orjson.dumps(key) + b":"
            yield from json_pieces(value[key], sort_keys=sort_keys, piece=piece)
            comma = b","
        yield b"}"
    else:
        comma = b"["
        for group in _groups(value, piece):
            yield comma
            if len(group) == 1:
                yield from json_pieces(group[0], sort_keys=sort_keys, piece=piece)
            else:
                yield orjson.dumps(group, option=option)[1:-1]
            comma = b","
        yield b"]"


def _groups(items: list[Any] | tuple[Any, ...], piece: int) -> Iterator[list[Any]]:
    """Group neighbours that fit into one piece; a value that is too large stands alone."""
    group: list[Any] = []
    left = piece
    for item in items:
        needed = weight(item, piece) + 1
        if group and needed > left:
            yield group
            group, left = [], piece
        group.append(item)
        left -= needed
    yield group
