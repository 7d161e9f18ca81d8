"""What the tasks do that open and close sessions. Runs on the network loop."""

from __future__ import annotations

import logging
import secrets

from prefect_qruntime import binding, keys, observe
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import SessionRef
from prefect_qruntime.settings import current_settings

__all__ = ["close_session", "note_session", "open_session"]


async def note_session(
    credentials: QuantumRuntimeCredentials,
    token: str | None,
    session: SessionRef,
    where: keys.Origin,
    *,
    new: bool = False,
) -> None:
    """Keep the session's record in Prefect up to date."""
    if token is not None:
        await observe.session_record(
            token, session, block=block_name(credentials), flow_run_id=where.flow_run_id, new=new
        )


async def open_session(
    credentials: QuantumRuntimeCredentials, backend: str, mode: str, max_ttl: int | None
) -> SessionRef:
    """Open a session or batch."""
    if mode not in ("dedicated", "batch"):
        raise InvalidInput("must be 'dedicated' or 'batch'", field="mode")
    if max_ttl is not None and (isinstance(max_ttl, bool) or not isinstance(max_ttl, int) or max_ttl < 1):
        raise InvalidInput("must be a whole number of seconds, at least 1", field="max_ttl")
    ttl = max_ttl if max_ttl is not None else current_settings().session_max_ttl_seconds
    where = await keys.origin()
    wanted = SessionRef(
        mode="batch" if mode == "batch" else "dedicated", backend=backend, max_ttl=ttl, token=secrets.token_hex(8)
    )
    # Noted before it is opened: if this process dies in between, the sweep knows what to look for.
    await note_session(credentials, wanted.token, wanted, where, new=True)
    try:
        opened = await credentials.get_client().open_session(backend, mode=mode, max_ttl=ttl)
    except QuantumRuntimeError as error:
        if not isinstance(error, SubmissionUncertain):  # else the sweep would look for it
            await note_session(credentials, wanted.token, wanted.model_copy(update={"state": "closed"}), where)
        raise
    session = opened.model_copy(update={"token": wanted.token, "max_ttl": opened.max_ttl or ttl})
    kind = "batch" if session.mode == "batch" else "session"
    if session.id is None:
        binding.expect(session)
        observe.say(f"{kind} on {backend}: opens with its first job, at most {ttl} s")
        return session
    await note_session(credentials, session.token, session, where)
    observe.say(f"opened {kind} {session.id} on {session.backend or backend}, at most {session.max_ttl} s")
    observe.session_event("opened", session, max_ttl=session.max_ttl)
    return session


async def close_session(
    credentials: QuantumRuntimeCredentials, session: SessionRef, drain: bool, *, event: str = "closed"
) -> SessionRef:
    """Close, read back, and tell."""
    token, session = session.token, binding.bound(session)
    where = await keys.origin()
    if session.id is None:
        observe.say("the session was never opened: no job was submitted in it")
        closed = session.model_copy(update={"state": "closed", "accepting_jobs": False})
        await note_session(credentials, token, closed, where)
        return closed
    read = await credentials.get_client().close_session(session.id, drain=drain)
    if read is None:
        observe.say(f"session {session.id} is not known to the service any more")
        closed = session.model_copy(update={"state": "closed", "accepting_jobs": False})
    else:
        closed = read.ref().model_copy(update={"mode": session.mode})
        if closed.is_closed:
            observe.say(f"session {session.id} is closed")
        elif drain and closed.accepting_jobs is False:
            observe.say(f"session {session.id} takes no more jobs and closes when its queued ones are done")
        else:
            observe.say(
                f"session {session.id} was asked to close but is still {closed.state!r}; "
                "`prefect-qruntime sweep` looks after it",
                level=logging.WARNING,
            )
    await note_session(credentials, token, closed, where)
    observe.session_event(event, closed, drain=drain)
    return closed
