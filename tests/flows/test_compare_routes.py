"""`compare_routes`: the same PUBs on both routes, two jobs, each found again on its own route."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

import prefect_qruntime as qr
from prefect_qruntime.cli.jobs import compare as compare_command
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, ran
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server

BELL = (
    'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c;'
    "h q[0]; cx q[0], q[1]; c[0] = measure q[0]; c[1] = measure q[1];"
)
STATE = 'OPENQASM 3.0; include "stdgates.inc"; input float[64] a; qubit[1] q; rx(a) q[0];'
UNMITIGATED = {"resilience_level": 0}


def programs(sandbox: Sandbox) -> list[str]:
    return [job["program_id"] for job in sandbox.control.jobs()]


def test_two_jobs_agree_and_are_found_again_by_a_retried_flow(credentials: Any, sandbox: Sandbox, capsys: Any) -> None:
    seen: list[qr.RouteComparison] = []

    @flow(retries=1)
    def compared() -> None:
        for _ in range(2):  # two equal comparisons are four jobs
            seen.append(qr.compare_routes(credentials, [BELL], backend=BACKEND, shots=500, false_alarm=1e-9))
        if len(seen) == 2:
            raise RuntimeError("after both")

    _, state = ran(compared)
    assert state.is_completed()
    assert programs(sandbox) == ["sampler", "executor", "sampler", "executor"]
    first, second, *again = seen
    assert first.agrees
    assert [sandbox.control.job(one.id)["program_id"] for one in (first.service, first.executor)] == [
        "sampler",
        "executor",
    ]
    assert [(one.service.id, one.executor.id) for one in again] == [
        (one.service.id, one.executor.id) for one in (first, second)
    ]
    assert all(job.attached for one in again for job in (one.service, one.executor))
    assert qr.RouteComparison.model_validate_json(first.model_dump_json()) == first
    key = f"qruntime-comparison-{first.service.id}"
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    (artifact,) = asked(lambda client: client.read_artifacts(artifact_filter=wanted))
    assert "### The two routes agree" in str(artifact.data)
    assert "| pubs[0] point 0 |" in str(artifact.data)
    assert first.executor.id in str(artifact.data)

    credentials.save("comparing", overwrite=True)
    jobs = first.service.id, first.executor.id
    capsys.readouterr()
    assert compare_command(*jobs, false_alarm=1e-9, block="comparing", json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["jobs"], shown["agrees"], shown["false_alarm"]) == ([*jobs], True, 1e-9)
    assert [one["what"] for one in shown["comparisons"]] == ["pubs[0] point 0"]
    with pytest.raises(qr.InvalidInput, match="between"):
        compare_command(*jobs, false_alarm=0, block="comparing")
    assert compare_command(*jobs, false_alarm=1e-9, block="comparing") == 0
    assert "The two results agree" in " ".join(capsys.readouterr().out.split())


def test_estimators_one_key_and_comparisons_at_once(credentials: Any, sandbox: Sandbox) -> None:
    @flow
    async def compared() -> list[qr.RouteComparison]:
        given: Any = {"backend": BACKEND, "program_id": "estimator", "options": UNMITIGATED, "false_alarm": 1e-9}
        pubs = [(STATE, ["Z", "X"], {"a": [0.3]})]
        return list(
            await asyncio.gather(
                *(qr.acompare_routes(credentials, pubs, submission_key="one", **given) for _ in range(2)),
                qr.acompare_routes(credentials, pubs, **given),
            )
        )

    _, state = ran(compared)
    one, same, other = state.result()  # type: ignore[misc]
    assert sorted(programs(sandbox)) == ["estimator", "estimator", "executor", "executor"]
    assert (one.service.id, one.executor.id) == (same.service.id, same.executor.id) != (other.service.id, "")
    assert all(found.agrees for found in (one, same, other))
    assert len(one.to_table()) == 2


def test_nothing_is_bought_where_there_can_be_no_comparison(credentials: Any, sandbox: Sandbox) -> None:
    legacy = qr.QuantumRuntimeCredentials(**sandbox.connection("legacy"))
    plain: Any = {"backend": BACKEND}
    estimator: Any = plain | {"program_id": "estimator"}
    for block, pubs, given, word in (
        (credentials, [BELL], plain | {"route": "auto"}, "Leave route out"),
        (credentials, None, plain | {"params": {"pubs": [[BELL]], "version": 2}}, "takes PUBs"),
        (credentials, [BELL], plain | {"dry_run": True}, "random"),
        (credentials, [BELL], plain | {"false_alarm": 1.5}, "between 0 and 1"),
        (credentials, [BELL], plain | {"program_id": "executor"}, "not 'executor'"),
        (credentials, [(STATE, "Z", [0.3])], estimator, "resilience_level"),
        (credentials, [BELL, (BELL, None, 7)], plain | {"shots": 5}, "shots"),
        (legacy, [BELL], plain, "legacy"),
    ):
        with pytest.raises(qr.InvalidInput, match=word):
            qr.compare_routes(block, pubs, **given)
    assert sandbox.control.jobs() == []
