"""Key and token in nothing that can be printed, logged, pickled or walked to."""

from __future__ import annotations

import io
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.client import service_of
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.waiting.subscription import JobStream
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import JobRef
from prefect_qruntime.redact import MASK
from prefect_qruntime.sandbox import Sandbox
from tests.support.mock_client import QUICK, TOKEN

HASTY = replace(QUICK, read=0.05, wait=0.05, fetch=0.05, change=0.05)
KEY = "the-key-of-this-test-0001"
Connect = Callable[..., QuantumRuntimeClient]
SPEC = make_spec(["OPENQASM 3.0; qubit q; bit[1] c; c[0] = measure q;"], backend="b")
CALLS: list[Callable[[QuantumRuntimeClient], Any]] = [
    lambda c: c.usage(),
    lambda c: c.fetch_job("d1"),
    lambda c: c.cancel("d1"),
    lambda c: c.result(JobRef(id="d1")),
    lambda c: c.post_job(SPEC, (), None),
    lambda c: c.post_session("b", mode="batch", max_ttl=None),
]
ECHO = f"you sent Authorization: Bearer {TOKEN} and apikey {KEY}"


def answers(trouble: str, mock: HTTPXMock) -> None:
    if trouble == "exception":
        # What a library might put into its text.
        mock.add_exception(httpx.ReadError(ECHO), is_reusable=True)
    elif trouble == "text":
        mock.add_response(status_code=400, text=ECHO, is_reusable=True)
    elif trouble == "not JSON":
        mock.add_response(status_code=200, text=ECHO, is_reusable=True)
    else:
        body = {"errors": [{"code": ECHO, "message": ECHO, "solution": ECHO, "more_info": ECHO}], "trace": ECHO}
        mock.add_response(status_code=int(trouble), json=body, is_reusable=True)


@pytest.mark.parametrize("trouble", ["400", "401", "403", "404", "409", "503", "text", "not JSON", "exception"])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_no_error_holds_a_secret(iam: HTTPXMock, connect: Connect, trouble: str, number: int) -> None:
    client = connect(api_key=KEY, patience=HASTY)
    client.run(client.authenticate())
    answers(trouble, iam)
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(CALLS[number](client))
    error: BaseException | None = caught.value
    shown = [str(error), repr(error), repr(caught.value.args), repr(caught.value.fields), repr(caught.value.__dict__)]
    shown += traceback.format_exception(caught.value)
    shown.append(pickle.dumps(error).decode("latin-1"))
    for text in shown:
        assert TOKEN not in text
        assert KEY not in text
    while error is not None:  # no httpx object to be found by walking back
        assert type(error).__module__.split(".")[0] != "httpx"
        error = error.__context__


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
def test_an_acceptance_that_echoes_a_secret_leaves_it_in_no_job(iam: HTTPXMock, connect: Connect, dialect: str) -> None:
    client = connect(dialect, api_key=KEY, patience=HASTY)
    client.run(client.authenticate())
    body = {"id": "d1", **dict.fromkeys(("backend", "session_id", "calibration_id", "messages"), f"\x1b[31m{ECHO}")}
    iam.add_response(method="POST", json=body)
    ref = client.run(client.post_job(SPEC, (), None))
    assert ref.id == "d1"
    for text in (repr(ref), ref.model_dump_json(), pickle.dumps(ref).decode("latin-1")):
        assert TOKEN not in text
        assert KEY not in text
        assert "\\x1b" not in text
        assert "\\u001b" not in text


# The body of a result is the user's own, so its frames may show it.
@pytest.mark.parametrize(
    ("trouble", "number"),
    [
        (trouble, number)
        for trouble in ("400", "401", "503", "not JSON", "exception")
        for number in range(len(CALLS))
        if (trouble, number) != ("not JSON", 3)
    ],
)
def test_no_frame_of_a_traceback_holds_a_secret(iam: HTTPXMock, connect: Connect, trouble: str, number: int) -> None:
    client = connect(api_key=KEY, patience=HASTY)
    client.run(client.authenticate())
    answers(trouble, iam)
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(CALLS[number](client))
    assert_frames_are_clean(caught.value)


@pytest.mark.parametrize("answer", [{"status_code": 400, "text": ECHO}, {"text": ECHO}, {"json": {"access_token": ""}}])
def test_no_frame_of_a_failed_token_exchange_holds_a_secret(
    httpx_mock: HTTPXMock, connect: Connect, answer: dict[str, Any]
) -> None:
    httpx_mock.add_response(is_reusable=True, **answer)
    client = connect(api_key=f"{KEY}-{len(str(answer))}", patience=HASTY)  # a new one, which has no token yet
    with pytest.raises(QuantumRuntimeError) as caught:
        client.run(client.usage())
    assert_frames_are_clean(caught.value)


def assert_frames_are_clean(error: BaseException) -> None:
    """What tools that print the locals of each frame would show of the package's frames."""
    frame, seen = error.__traceback__, 0
    while frame is not None:
        code = frame.tb_frame.f_code
        if "prefect_qruntime" in code.co_filename and "tests" not in code.co_filename:
            seen += 1
            shown = repr(list(frame.tb_frame.f_locals.values()))
            assert TOKEN not in shown, code.co_qualname
            assert KEY not in shown, code.co_qualname
        frame = frame.tb_next
    assert seen > 3


def test_clients_show_and_hand_on_no_secret(connect: Connect) -> None:
    client = connect(api_key=KEY)
    assert repr(client) == "QuantumRuntimeClient(quantum.cloud.ibm.com, cloud)"
    with pytest.raises(TypeError, match="block"):
        pickle.dumps(client)

    async def wire() -> str:
        return repr(service_of(client.connection, QUICK))

    assert KEY not in client.run(wire())


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All loggers at DEBUG, by a formatter that shows tracebacks."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    names = (
        "",
        "httpx",
        "httpcore",
        "websockets",
        "asyncio",
        "prefect_qruntime",
        "prefect_qruntime.client.waiting.subscription",
    )
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel("DEBUG")
    # The service's own side of the socket runs in this process too and is none of the client's business.
    handler.addFilter(lambda record: not record.name.startswith("uvicorn"))
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_nothing_is_logged_at_debug_with_a_real_key_token_and_socket(
    everything_logged: io.StringIO, connect: Connect
) -> None:
    with Sandbox(physics=False, run_time=0.3, websocket=True) as sandbox:
        client = connect(**sandbox.connection("legacy"))
        client.run(client.authenticate())
        tokens = list(_tokens(client))
        spec = make_spec(["OPENQASM 3.0; qubit q; bit[1] c; c[0] = measure q;"], backend="sandbox_ideal")
        ref = client.run(client.post_job(spec, ("qr-key:1",), None))
        client.run(client.wait(ref.id))
        client.run(client.result(ref))
        sandbox.control.revoke_tokens()
        client.run(client.usage())
        tokens += _tokens(client)

        async def broken_socket() -> str:
            wire = service_of(client.connection, QUICK)
            stream = JobStream(wire.transport, "/stream/jobs/nobody", lambda: None)
            return await stream.follow()

        assert client.run(broken_socket()) == "refused"
    text = everything_logged.getvalue()
    for name in (
        "httpx INFO HTTP Request",
        "httpcore.http11 DEBUG",
        "prefect_qruntime.client.waiting.subscription DEBUG > GET /stream",
    ):
        assert name in text, name
    assert f"> Authorization: Bearer {MASK}" in text
    assert len(set(tokens)) == 2
    for secret in (client.connection.api_key, *tokens):
        assert secret not in text


def _tokens(client: QuantumRuntimeClient) -> list[str]:
    async def read() -> str:
        return await service_of(client.connection, QUICK).tokens.get()

    return [client.run(read())]
