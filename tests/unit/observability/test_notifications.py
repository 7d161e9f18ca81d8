"""What is reported about a job neither holds up the network loop nor ends the process."""

from __future__ import annotations

import logging
import threading
from base64 import b64encode
from contextlib import nullcontext
from typing import Any
from zlib import compress

import pytest

import prefect_qruntime as qr
from prefect_qruntime.client.encodings.tensors import Tensor
from prefect_qruntime.observability import notifications, telemetry
from tests.support.closed_pipe import EndsProcess

PLAIN = {"results": [{"data": {"c": {"samples": ["0x3", "0x0"] * 300, "num_bits": 2}}}]}
# Three kilobytes that unfold to two megabytes: expectation values of which a table takes half a second.
HEAD = b"{'descr': '<f8', 'fortran_order': False, 'shape': (250000,), }".ljust(117) + b"\n"
NPY = b"\x93NUMPY\x01\x00" + len(HEAD).to_bytes(2, "little") + HEAD + bytes(2_000_000)
VALUES = {"__type__": "ndarray", "__value__": b64encode(compress(NPY, 9)).decode()}
BITS = Tensor("bool", (1_000_000, 2), bytes(250_000)).encoded()


@pytest.mark.parametrize(
    ("body", "here"),
    [
        (PLAIN, True),
        ({"results": [{"data": {"evs": 0.5}}]}, True),
        ({"results": [{"data": {"evs": VALUES}}]}, False),
        ({"schema_version": "v2.0", "data": [{"results": {"c": BITS}}]}, False),
        ({"results": [{"data": {"evs": 2**70}}]}, False),
        ({"results": PLAIN["results"] * 2}, False),
    ],
)
async def test_only_a_small_result_without_encoded_arrays_is_read_on_the_loop(body: Any, here: bool) -> None:
    result = qr.JobResult.from_body(body, job_id="d1")
    reader = await notifications._read(result, lambda _: threading.current_thread())
    assert (reader is threading.current_thread()) == here


@pytest.mark.parametrize("by_pipe", [True, False])
def test_a_line_of_a_run_whose_pipe_was_closed_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch, by_pipe: bool
) -> None:
    logger = logging.Logger("of-a-run")
    logger.addHandler(EndsProcess(by_pipe=by_pipe))
    monkeypatch.setattr(telemetry, "_logger", lambda: logger)
    with nullcontext() if by_pipe else pytest.raises(SystemExit):
        telemetry.log_to_run("said")
