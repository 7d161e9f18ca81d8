"""Answer `GET /workloads`: sessions, batches and the jobs outside them, in pages with a cursor."""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from prefect_qruntime.sandbox.api_errors import invalid
from prefect_qruntime.sandbox.call import Call, json_response
from prefect_qruntime.sandbox.views import job_workload, session_workload

_STATUSES = frozenset({"completed", "canceled", "failed", "pending", "in_progress"})


def list_workloads(call: Call) -> Response:
    """Answer one page of the caller's workloads."""
    query = call.query
    limit = call.whole("limit", 10, 1, 50)
    sort = query.get("sort", "-createdAt")
    if sort not in ("createdAt", "-createdAt"):
        raise invalid("sort must be createdAt or -createdAt.")
    if query.get("user", "me") != "me":
        raise invalid("user must be me.")
    items = [item for item in _all(call) if _wanted(call, item)]
    keys = [_key(item) for item in items]
    if sort == "-createdAt":
        items.reverse()
        keys.reverse()
    start = 0
    if "next" in query:
        start = _position(keys, query["next"], sort) + 1
    elif "previous" in query:
        start = max(0, _position(keys, query["previous"], sort, before=True) - limit)
    page = items[start : start + limit]
    answer: dict[str, Any] = {"workloads": page, "total_count": len(items), "limit": limit}
    if page and start + limit < len(items):
        answer["next"] = {"href": _href(call, "next", _key(page[-1]))}
    if page and start > 0:
        answer["previous"] = {"href": _href(call, "previous", _key(page[0]))}
    return json_response(answer)


def _all(call: Call) -> list[dict[str, Any]]:
    service, now = call.service, call.now
    found = [
        job_workload(job, now)
        for job in service.visible_jobs(call.user, call.instance, [], mocks=call.mocks)
        if job.session_id is None
    ]
    found.extend(session_workload(session, now) for session in service.visible_sessions(call.user, call.instance))
    found.sort(key=_key)
    return found


def _wanted(call: Call, item: dict[str, Any]) -> bool:
    query = call.query
    statuses, mode = query.getlist("status"), query.get("mode")
    if not _STATUSES.issuperset(statuses):
        raise invalid(f"status must be one of {', '.join(sorted(_STATUSES))}.")
    if mode not in (None, "job", "session", "batch"):
        raise invalid("mode must be job, session or batch.")
    after, before = call.moment("created_after"), call.moment("created_before")
    search = query.get("search")
    return (
        (not statuses or item["status"] in statuses)
        and (mode is None or item["mode"] == mode)
        and ("backend" not in query or item["backend"] == query["backend"])
        and set(query.getlist("tags")) <= set(item["tags"])
        and (not search or search in item["id"] or any(search in tag for tag in item["tags"]))
        and (after is None or _seconds(item) >= after)
        and (before is None or _seconds(item) <= before)
    )


def _seconds(item: dict[str, Any]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(item["created"]).timestamp()


def _key(item: dict[str, Any]) -> str:
    return f"{item['created']}|{item['id']}"


def _position(keys: list[str], cursor: str, sort: str, *, before: bool = False) -> int:
    """Return the index of the last item up to the cursor, or of the first from it on.

    Compared by key, so that the page after an item that has gone is still found.
    """
    try:
        key = base64.urlsafe_b64decode(cursor.encode()).decode()
    except (binascii.Error, ValueError):
        key = ""
    if "|" not in key:  # The decoder skips what it does not know, so garbage may come out as nothing.
        raise invalid("The cursor is not valid.")
    down = sort == "-createdAt"
    if before:
        return sum(1 for one in keys if (one > key if down else one < key))
    return sum(1 for one in keys if (one >= key if down else one <= key)) - 1


def _href(call: Call, name: str, key: str) -> str:
    pairs = [(k, v) for k, v in call.query.multi_items() if k not in ("next", "previous")]
    pairs.append((name, base64.urlsafe_b64encode(key.encode()).decode()))
    return f"{call.request.url.replace(query='')}?{urlencode(pairs)}"
