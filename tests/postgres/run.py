"""Run tests against a Prefect server on PostgreSQL: a cluster of its own, in a temporary folder, on a free port.

Usage: `python tests/postgres/run.py [pytest arguments]`; by default the system tests and some of the flow tests.
Needs Debian's `postgresql` package, or `initdb` and `postgres` on the path; without them it fails, unless
QRUNTIME_POSTGRES_OPTIONAL is set. As root, they run as an unprivileged user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    "tests/system",
    *(f"tests/flows/test_{name}.py" for name in ("main_story", "money", "suspend", "sweep", "hooks", "simultaneous")),
]
START_LIMIT = 400.0


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; the newest version's where there are several."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    folders = [*([Path(found).resolve().parent] if found else []), *reversed(installed)]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def unprivileged() -> str | None:
    """Whom to run as, where we are root: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise SystemExit("PostgreSQL does not run as root, and there is no user postgres or nobody")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit(f"PostgreSQL ended with {server.returncode}:\n{log.read_text()}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise SystemExit(f"PostgreSQL did not start:\n{log.read_text()}")


def main(arguments: list[str]) -> int:
    programs = binaries()
    if programs is None:
        optional = bool(os.environ.get("QRUNTIME_POSTGRES_OPTIONAL"))
        print(f"{'SKIPPED' if optional else 'FAILED'}: no PostgreSQL found; on Debian: apt-get install postgresql")
        if not optional:
            print("With QRUNTIME_POSTGRES_OPTIONAL=1 that is no failure.")
        return 0 if optional else 1
    user, port = unprivileged(), free_port()
    with tempfile.TemporaryDirectory(prefix="qruntime-postgres-") as name:
        folder = Path(name)
        data, log = folder / "data", folder / "postgres.log"
        if user is not None:
            shutil.chown(folder, user)
        initdb = [programs / "initdb", "-D", data, "-U", "prefect", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
        command = [programs / "postgres", "-D", data, "-p", str(port)]
        for option in ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=200"):
            command += ["-c", option]
        with log.open("wb") as out:
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            started(server, port, log)
            version = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
            print(f"{version.stdout.strip()} on port {port}")
            url = f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
            env = {**os.environ, "QRUNTIME_TEST_DATABASE_URL": url}
            tests = [sys.executable, "-m", "pytest", *(arguments or TESTS)]
            return subprocess.run(tests, env=env, cwd=ROOT, check=False).returncode
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
