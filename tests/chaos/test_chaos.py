"""Kill it anywhere, break the network, run it again: one job for each intent, no session left open, nothing untold.

These are a few seeds; `python -m tests.chaos --runs 500` is the long campaign.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import campaign
from tests.chaos.campaign import Kill, Plan, circuit_for
from tests.chaos.lane import Lane, Outcome, open_lane
from tests.support.prefect_server import PrefectServer

pytestmark = [pytest.mark.server]
# Drawn so that each is killed for certain or soon after it began something: flows of all kinds, one that leaves its
# job, one that is suspended, a script; both dialects; a list that lags beyond the grace.
# 700,056 and 700,299 found faults.
SEEDS = (1012, 1016, 1098, 1161, 1247, 1253, 1308, 1422, 700056, 700299)


@pytest.fixture(scope="module")
def lane(prefect_server: PrefectServer) -> Iterator[Lane]:
    with open_lane(0, prefect_server.env, frees_locks=True) as opened:
        yield opened


@pytest.mark.timeout(1800)
def test_one_job_for_each_intent_whatever_happens(lane: Lane) -> None:
    outcomes: list[Outcome] = [lane.run(campaign.draw(seed)) for seed in SEEDS]
    broken = [outcome for outcome in outcomes if outcome.wrong]
    assert not broken, "\n\n".join(map(str, broken))
    assert sum(bool(outcome.killed) for outcome in outcomes) >= len(SEEDS) / 2, "hardly a process was killed"


@pytest.mark.timeout(600)
def test_the_campaign_sees_a_second_job(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "forgets_keys", True)
    circuit, expected = circuit_for(1)
    outcome = lane.run(
        Plan(
            seed=1,
            way="flow",
            runner="sync",
            dialect="cloud",
            explicit=False,
            session=False,
            kills=(Kill("after-submit"),),
            watcher=Kill(),
            again="again",
            fault="none",
            odd=(),
            lag=0.0,
            circuit=circuit,
            expected=expected,
        )
    )
    assert (outcome.jobs, outcome.excused) == (2, False)
    assert any(word.startswith("2 jobs") for word in outcome.wrong)
