"""No secret anywhere: logs at DEBUG, server database, result storage, artifacts, events, process arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.prefect_server import PrefectServer

pytestmark = [pytest.mark.server]
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(900, func_only=True)
def test_no_secret_is_written_anywhere(prefect_server: PrefectServer, tmp_path: Path) -> None:
    found, output = tmp_path / "found.json", tmp_path / "output.log"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.canary.scenarios", str(found)],
            cwd=ROOT,
            env={**prefect_server.env, "PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert process.wait(timeout=150) == 0, output.read_text()[-3000:]
    facts = json.loads(found.read_text())
    ended, secrets = facts["ended"], facts["secrets"]
    assert len(ended) == 20
    # The scenarios are no shadow play: good ones ended well, bad ones with their error.
    good = (
        "cloud",
        "legacy with websocket",
        "async",
        "mapped",
        "private",
        "cancel",
        "lost answer",
        "503 while waiting",
    )
    assert {name: ended[name] for name in good} == dict.fromkeys(good, "ok")
    assert ended["wrong key"] == "AuthenticationError"
    assert ended["401 twice"] == "AuthenticationError"
    assert ended["bad input"] == "InvalidInput"
    assert ended["key and token in an error body"] == "InvalidInput"
    assert len([secret for secret in secrets if secret.startswith("ey")]) >= 3, "no tokens were seen"
    log = output.read_text()
    assert "DEBUG" in log
    assert "GET /stream/jobs/" in log, "the websocket's own DEBUG lines are missing"

    places = {output: output.read_bytes()}
    places |= {path: path.read_bytes() for path in prefect_server.home.rglob("*") if path.is_file()}
    assert any(path.suffix == ".db" for path in places), "the server's database was not searched"
    assert any("storage" in path.parts for path in places), "result storage was not searched"
    hits = [
        f"{path}: ...{content[max(0, at - 80) : at + 20]!r}"
        for path, content in places.items()
        for secret in secrets
        if (at := content.find(secret.encode())) >= 0
    ]
    assert not hits, "\n".join(hits[:20])
    assert not any(secret.encode() in arguments for secret in secrets)
