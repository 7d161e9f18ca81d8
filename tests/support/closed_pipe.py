"""A handler of log lines that would end the process, as rich does on a closed pipe and as a signal's handler may."""

from __future__ import annotations

import logging


class EndsProcess(logging.Handler):
    """Ends the process at each line.

    Args:
        by_pipe: As rich does, with which Prefect writes, if its pipe was closed; else as a signal's handler.
    """

    def __init__(self, *, by_pipe: bool) -> None:
        super().__init__()
        self._by_pipe = by_pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Raise `SystemExit`."""
        if not self._by_pipe:
            raise SystemExit(143)
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - as rich does
