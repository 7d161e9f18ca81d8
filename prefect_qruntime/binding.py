"""Sessions that their first job opens: only one first submit goes through before the others.

In the legacy dialect a session's id is its first job's id. Until that job is accepted the `SessionRef` has
no id but a token; everyone in this process who holds the token shares the binding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect_qruntime.client.home import home
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef, SessionRef

__all__ = ["bind", "bound", "expect", "first_through"]

_KEEP = 1024
_unbound: OrderedDict[str, SessionRef | None] = OrderedDict()


def expect(session: SessionRef) -> None:
    """Remember a session that waits for its first job."""
    if session.id is None and session.token is not None:
        _unbound[session.token] = None
        while len(_unbound) > _KEEP:
            _unbound.popitem(last=False)


def bound(session: SessionRef) -> SessionRef:
    """The session as it stands now: with its id once the first job is accepted."""
    if session.id is not None or session.token is None:
        return session
    return _unbound.get(session.token) or session


def bind(session: SessionRef, ref: JobRef) -> None:
    """Note the id that the first job brought."""
    if session.token is not None and ref.session is not None and ref.session.id is not None:
        _unbound[session.token] = ref.session


@asynccontextmanager
async def first_through(session: SessionRef | None) -> AsyncIterator[SessionRef | None]:
    """Hold back all submits but one while a session has no id. Runs on the home loop.

    Raises:
        InvalidInput: The unbound session comes from another process, where its binding cannot be shared.
    """
    if session is None or session.id is not None:
        yield session
        return
    if session.token is None or session.token not in _unbound:
        raise InvalidInput(
            "this session has no id yet and was opened in another process; submit its first job there and pass "
            "that job's .session on",
            field="session",
        )
    now = bound(session)
    if now.id is not None:
        yield now
        return
    async with home().lock(f"session:{session.token}"):
        yield bound(session)
