"""What each task does, once, for its sync and its async face alike. Runs on the network loop."""

from prefect_qruntime.work.instance import authenticate, get_usage, list_backends, select_backend
from prefect_qruntime.work.jobs import cancel, fetch, submit, wait
from prefect_qruntime.work.sessions import close_session, note_session, open_session

__all__ = [
    "authenticate",
    "cancel",
    "close_session",
    "fetch",
    "get_usage",
    "list_backends",
    "note_session",
    "open_session",
    "select_backend",
    "submit",
    "wait",
]
