"""The token of the control calls: kept in a file that only the server's own user can read.

`Control.connect` finds it there by the server's port, so processes of one user need not pass it on, and other
users of the machine cannot control the sandbox. The environment variable `QRUNTIME_SANDBOX_TOKEN`
sets the token for servers and clients that share no temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "QRUNTIME_SANDBOX_TOKEN"
HEADER = "x-sandbox-token"


def new_token() -> str:
    """Return the token of the environment, or a random one."""
    return os.environ.get(VARIABLE) or secrets.token_urlsafe(32)


def publish(port: int, token: str) -> None:
    """Write the token to its file; if that is impossible, clients need it as an argument."""
    with contextlib.suppress(OSError):
        place = _folder(create=True) / str(port)
        # Never through a link, and never readable by others, not even for a moment.
        place.unlink(missing_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(token)


def withdraw(port: int, token: str) -> None:
    """Remove the token again, unless it is another server's by now."""
    with contextlib.suppress(OSError):
        place = _folder() / str(port)
        if place.read_text() == token:
            place.unlink()


def find(url: str) -> str:
    """Return the token for the server at a URL, or an empty string."""
    if given := os.environ.get(VARIABLE):
        return given
    with contextlib.suppress(OSError, ValueError):
        return (_folder() / str(urlsplit(url).port)).read_text()
    return ""


def _folder(*, create: bool = False) -> Path:
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"qruntime-sandbox-{user}"
    if create:
        folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        found = folder.lstat()
        # Another user may have created a folder of this name in a world-writable place.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} is not private")
    return folder
