"""Answers that are not the service's own, as gateways, proxies, caches and half-dead servers give them."""

from __future__ import annotations

import itertools
from typing import Any

PAGE = "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head><body>ray</body></html>"
HTML, JSON, TEXT = ({"content-type": kind} for kind in ("text/html; charset=UTF-8", "application/json", "text/plain"))
BODIES: dict[str, tuple[Any, dict[str, str]]] = {
    "page": (PAGE, HTML),
    "page as JSON": (PAGE, JSON),
    "text": ("default backend - 404", TEXT),
    "empty": ("", JSON),
    "gateway's JSON": ({"message": "Forbidden", "requestid": "1"}, JSON),
    "HTTP status as code": ({"error": {"code": 403, "message": "denied", "status": "PERMISSION_DENIED"}}, JSON),
}
REFUSALS = (400, 401, 403, 404, 405, 409, 410, 413, 418, 451)
NEVER_ITS_OWN = (407, 408, 425, 499, 500, 501, 502, 503, 504, 505, 507, 520, 521, 525, 526, 529, 530, 598)
REDIRECTS = (301, 302, 303, 307, 308)
WHERE = (("login page", PAGE, "https://login.example/sso"), ("empty", "", "/elsewhere"))
SUCCESSES: dict[str, tuple[Any, dict[str, str]]] = {
    "null": ("null", JSON),
    "list": ([], JSON),
    "object": ({}, JSON),
    "gateway's JSON": BODIES["gateway's JSON"],
    "single error": BODIES["HTTP status as code"],
    "page": (PAGE, HTML),
    "text": ("ok", TEXT),
    "cut": ('{"id": "d1", "state": {"status": "Que', JSON),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(
        (f"{status} {name}", {"status": status, "body": body, "headers": headers})
        for status in REFUSALS
        for name, (body, headers) in BODIES.items()
    ),
    *(
        (f"{status} {name}", {"status": status, "body": BODIES[name][0], "headers": BODIES[name][1]})
        for status, name in zip(NEVER_ITS_OWN, itertools.cycle(("page", "empty")), strict=False)
    ),
    *(
        (f"{status} {name}", {"status": status, "body": body, "headers": {"location": where}})
        for status, (name, body, where) in zip(REDIRECTS, itertools.cycle(WHERE), strict=False)
    ),
    *(
        (f"200 {name}", {"status": 200, "body": body, "headers": headers})
        for name, (body, headers) in SUCCESSES.items()
    ),
]
"""The name of each, and the fault of the sandbox that gives it."""
PHASES: dict[str, tuple[str, str]] = {
    "token": ("POST", "/identity/token"),
    "read": ("GET", "/instances/usage"),
    "list": ("GET", "/jobs"),
    "wait": ("GET", "/jobs/*"),
    "fetch": ("GET", "/jobs/*/results"),
    "change": ("PUT", "/jobs/*/tags"),
}
"""What is being done, and the request of the sandbox that does it."""
