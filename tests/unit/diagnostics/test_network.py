"""What doctor finds on the way to the service before anything is sent there."""

from __future__ import annotations

import ast
import asyncio
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pytest

import prefect_qruntime
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.transport.http import Probe, Trouble
from prefect_qruntime.diagnostics.network import Address, _in_the_way, check_api, check_iam, check_proxy_reached

REMOTE = Connection(api_key="not-a-key-0123456789", crn="crn:v1:bluemix:public:quantum-computing:us-east:a/0:0::")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    with socket.socket() as held:  # bound, never listening
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def found(connection: Connection = REMOTE) -> list[tuple[str, str]]:
    return [(one.level, str(one)) for one in asyncio.run(check_proxy_reached(connection))]


def test_without_a_proxy_there_is_nothing_to_say() -> None:
    assert found() == []


def test_a_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{listening}")
    ((level, said),) = found()
    assert level == "ok"
    assert f"sets the proxy 127.0.0.1:{listening} to" in said
    assert "iam.cloud.ibm.com" in said
    assert "secret" not in said


def test_one_that_cannot_be_reached_is_a_problem(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed}")
    ((level, said),) = found()
    assert level == "problem"
    assert "HTTPS_PROXY" in said
    assert "NO_PROXY" in said


@pytest.mark.parametrize("wrong", ["http://me:pass-word/x@127.0.0.1:9", "socks5://me:pass-word@127.0.0.1:9"])
def test_one_that_is_no_address_is_a_problem(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", wrong)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as in a plain install
    ((level, said),) = found()
    assert level == "problem"
    assert "HTTPS_PROXY" in said
    assert "pass-word" not in said


def test_what_no_proxy_lists_goes_directly(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("NO_PROXY", "fd00::/8, .ibm.com")
    assert found() == []


def test_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed}")
    here = Connection(
        api_key=REMOTE.api_key, crn=REMOTE.crn, base_url="http://127.0.0.1:1/api/v1", iam_url="http://127.0.0.1:1"
    )
    assert found(here) == []


WORDS = (
    "{policy-17}",
    "{",
    "}",
    "{0}",
    "{host!z}",
    "{host.__class__}",
    "%s %(x)d %",
    "[/red]",
    "{setting:>9999999999}",
)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("trouble", get_args(Trouble))
def test_what_a_proxy_says_is_no_template(trouble: Trouble, words: str) -> None:
    met = Probe("https://iam.cloud.ibm.com/identity/token", trouble=trouble, text=f"403 {words}")
    finding = _in_the_way(met, REMOTE, "iam_url")
    assert (words in finding.finding) is (trouble == "proxy")
    assert "{" not in finding.fix


@pytest.mark.parametrize("setting", ["base_url", "iam_url"])
@pytest.mark.parametrize(
    ("url", "sandbox"), [("http://127.0.0.1:8765/api/v1/backends", True), ("http://10.0.0.7", False)]
)
def test_the_block_of_a_sandbox_that_ended_may_be_deleted(
    setting: Literal["base_url", "iam_url"], url: str, sandbox: bool
) -> None:
    finding = _in_the_way(Probe(url, trouble="refused"), REMOTE, setting)
    assert ("delete the block" in finding.fix) is sandbox
    assert f"port of {setting}" in finding.fix


@pytest.mark.parametrize("words", WORDS)
def test_a_proxy_that_blocks_is_a_finding(words: str) -> None:
    async def check() -> list[Address]:
        async def blocks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 403 {words}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(blocks, "127.0.0.1", 0) as server:
            proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return [await one(replace(REMOTE, proxy=proxy)) for one in (check_api, check_iam)]

    for address in asyncio.run(check()):
        assert address.finding is not None
        assert address.finding.check == "proxy"
        assert words in address.finding.finding


def test_no_text_from_elsewhere_is_a_template() -> None:
    """Each template of the package is written in it; who adds one adds it here after a look at where it comes from."""
    calls = {
        (path.name, ast.unparse(node.func))
        for path in Path(prefect_qruntime.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("format", "format_map", "vformat", "safe_substitute", "substitute")
    }
    assert calls == {
        ("connection.py", "self._url.format"),
        ("definitions.py", "pattern.format_map"),
        ("network.py", "'{0.scheme}://{0.netloc}'.format"),
        ("network.py", "said.format_map"),
        ("network.py", "fix.format_map"),
    }
