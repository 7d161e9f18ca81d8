"""A service that charges by a law of its own: the estimate, learnt job by job, keeps its stated rate."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.cost_core import COVERAGE, ENOUGH, PastJob, busy_seconds
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.sandbox import Sandbox
from tests.support.scenario import BELL, QUICK

JOBS = 160


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.0, "run_time": 1.0, "clock_scale": 10_000.0, "token_lifetime": 1e9, "physics": False}


def test_the_interval_covers_what_the_service_charges_and_becomes_narrow(sandbox: Sandbox) -> None:
    chance = random.Random(3)
    client = QuantumRuntimeClient(Connection(**sandbox.connection("cloud")), patience=QUICK)
    sandbox.control.set_usage(limit=1e6)
    past: list[PastJob] = []
    inside, widths = [], []
    for number in range(JOBS):
        shots = round(math.exp(chance.uniform(math.log(100), math.log(1e6))))
        given: dict[str, Any] = {"backend": "sandbox_ideal", "shots": shots, "max_execution_time": 3000}
        told = client.run(client.estimate_cost([BELL], past=past, **given))
        # The law: an overhead, another pace than the model's, and noise. Nothing of it is known here.
        sandbox.control.set_times(run_time=(6.0 + shots / 700) * chance.lognormvariate(0, 0.2))
        spec = make_spec([BELL], **given)
        job_id = client.run(client.post_job(spec, (f"qr-key:{number:032x}",), None)).id
        sandbox.control.wait_job(job_id)
        job = client.run(client.job(job_id))
        assert job.usage_final
        charged = job.usage_seconds or 0.0
        if number < ENOUGH:
            assert (told.coverage, told.low_seconds, told.high_seconds) == (None, 0, 3000)
            assert "The interval is as wide as the limits" in str(told)
        else:
            assert told.coverage == COVERAGE
            inside.append(told.low_seconds <= charged <= told.high_seconds)
            widths.append((told.high_seconds - told.low_seconds) / charged)
        assert told.remaining_seconds == pytest.approx(1e6 - sum(one.charged_seconds for one in past), abs=1e-3)
        past.insert(0, PastJob(busy_seconds(spec), charged))
    slack = 3 * math.sqrt(COVERAGE * (1 - COVERAGE) / len(inside))
    assert COVERAGE - slack <= sum(inside) / len(inside)
    # What the noise alone leaves: exp(0.33) - exp(-0.33) of the cost.
    assert sum(widths[-40:]) / 40 < 1.3 * 0.67
    assert sum(widths[-40:]) < sum(widths[:40])
