"""The policy on a real Prefect server: what is refused reaches neither IAM nor the service, and doctor says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow

from prefect_qruntime import (
    JobStatus,
    PolicyRefused,
    QuantumRuntimeCredentials,
    QuantumRuntimePolicy,
    cancel_job,
    close_session,
    load_credentials,
    open_session,
    run_job,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.admission.policy import PolicyRule, _Known
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport import auth
from prefect_qruntime.operations.doctor import run_doctor
from prefect_qruntime.operations.sweep import run_sweep
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP

pytestmark = pytest.mark.server


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[QuantumRuntimePolicy], None]]:
    """Put a policy in force, under a name of its own."""
    name = f"policy-{uuid4().hex[:8]}"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", name)
    yield lambda wanted: wanted.save(name, overwrite=True) and None
    QuantumRuntimePolicy.delete(name)


def test_a_changed_address_is_refused_before_a_token_is_asked_for(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, policy: Callable[[QuantumRuntimePolicy], None]
) -> None:
    # The sandbox stands for the host that somebody has put into the block.
    policy(QuantumRuntimePolicy())
    name = f"changed-{uuid4().hex[:8]}"
    credentials.save(name)

    @flow
    def three() -> list[Any]:
        found = []
        for ask in (
            lambda: run_job(credentials, [FLIP], backend=BACKEND),
            lambda: wait_for_completion(credentials, "d1abc"),
            lambda: load_credentials(name),
        ):
            with pytest.raises(PolicyRefused, match="not among the policy's hosts") as caught:
                ask()
            found.append(caught.value.advice.may_repeat)
        return found

    assert three() == [False] * 3
    (finding,) = [one for one in run_doctor([name]).findings if one.block == name and one.check == "policy"]
    assert (finding.level, "This block is refused" in finding.finding) == ("problem", True)
    # Reads of other jobs are the background work of earlier tests.
    assert sandbox.control.journal("POST") == []
    assert [one["path"] for one in sandbox.control.journal() if "d1abc" in one["path"]] == []


def test_what_a_rule_forbids_is_not_sent_and_its_limit_is(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, policy: Callable[[QuantumRuntimePolicy], None]
) -> None:
    rule = PolicyRule(backends=[BACKEND], programs=["sampler"], max_execution_time=77, max_session_seconds=0)
    policy(QuantumRuntimePolicy(hosts=[], rules=[rule]))

    @flow
    def several() -> None:
        for wrong in ({"backend": "sandbox_other"}, {"program_id": "estimator"}, {"max_execution_time": 78}):
            with pytest.raises(PolicyRefused):
                run_job(credentials, [FLIP], submission_key="refused", **{"backend": BACKEND, **wrong})  # type: ignore[arg-type]
        with pytest.raises(PolicyRefused, match="use a batch"):
            open_session(credentials, BACKEND)
        assert sandbox.control.journal() == [], "refused before the search for the key asks the service"
        run_job(credentials, [FLIP], backend=BACKEND)

    several()
    assert [job["cost"] for job in sandbox.control.jobs()] == [77]


@pytest.mark.parametrize("known", [True, False], ids=["read before", "a new process"])
def test_what_was_bought_under_a_policy_that_is_gone_can_be_followed_and_stopped(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    policy: Callable[[QuantumRuntimePolicy], None],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """The sandbox stands for a private endpoint."""
    sandbox.control.set_times(queue_time=60)
    credentials.save(block := f"private-{uuid4().hex[:8]}")
    policy(QuantumRuntimePolicy(hosts=[]))

    @flow
    def stopped() -> None:
        session = open_session(credentials, BACKEND)
        job = submit_job(credentials, [FLIP], backend=BACKEND)
        monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", f"gone-{uuid4().hex[:8]}")
        monkeypatch.setattr(auth, "_CHECKED_AGAIN", 0.0)
        if not known:
            network_loop().forget(_Known)
        with pytest.raises(PolicyRefused, match="No policy is named"):
            submit_job(credentials, [FLIP], backend=BACKEND)
        saved = load_credentials(block)
        assert cancel_job(saved, job).status is JobStatus.CANCELLED
        assert close_session(saved, session).is_closed
        assert run_sweep([block]).problems == []

    stopped()
    assert len([one for one in sandbox.control.journal("POST") if one["path"].endswith("/jobs")]) == 1
