"""Every order of a small world through the submission core; and the old rules, put back, are found out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_qruntime.client import submission_core as core
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError, SubmissionUncertain
from tests.support.explorer import Explored, Violation
from tests.support.submission_model import ACCEPTING, CLEAN, GRACE, LAGS, OUTCOMES, TOO_LARGE, Person, Setting, explore

DERIVED, EXPLICIT = Person(), Person(explicit=True)
ELSEWHERE = Person(process=1, explicit=True)
RENEWS = Person(explicit=True, renews=True)

TOLD = ("answered", "accepted, 2xx unreadable", "answered 429", "lost before")  # a caller learns of each acceptance

# How many states each world has at least; a change that makes the explorer see less is seen here.
WORLDS: dict[str, tuple[Setting, int]] = {
    "two callers of one key in one process": (Setting((DERIVED, DERIVED)), 855),
    "three callers of one key in one process": (Setting((DERIVED,) * 3, slack=0), 1_021),
    "three callers with explicit keys in one process": (Setting((EXPLICIT,) * 3, slack=0, attempts=1), 396),
    "two callers of one key and one of another": (
        Setting((DERIVED, DERIVED, Person(intent="b")), slack=0, attempts=1),
        3_854,
    ),
    "a caller that is cancelled": (Setting((DERIVED, DERIVED), cancels=1, attempts=1), 2_630),
    "two callers, one cancelled, and a crash": (
        Setting((EXPLICIT, EXPLICIT), cancels=1, crashes=1, slack=0, attempts=1),
        9_524,
    ),
    "a crash at every step, and the run resumed": (Setting((DERIVED,), crashes=2), 10_601),
    "two callers, and a crash at every step": (Setting((DERIVED, DERIVED), crashes=1, slack=0), 3_608),
    "two processes with a lock, and a crash": (
        Setting((EXPLICIT, ELSEWHERE), locked=True, crashes=1, slack=0),
        11_472,
    ),
    "two processes with a lock and marks, and a crash": (
        Setting((EXPLICIT, ELSEWHERE), locked=True, marks=True, crashes=1, slack=0, attempts=1),
        3_507,
    ),
    "two processes, three callers": (Setting((EXPLICIT, EXPLICIT, ELSEWHERE), locked=True, slack=0), 4_102),
    "two processes, three callers, marks": (
        Setting((EXPLICIT, EXPLICIT, ELSEWHERE), locked=True, marks=True, slack=0),
        4_468,
    ),
    "the list fails, the budget refuses": (Setting((DERIVED, EXPLICIT), list_failures=1, refusals=1), 3_057),
    "answers of the list that arrive late": (Setting((EXPLICIT, EXPLICIT), slow_looks=True), 1_632),
    "jobs that fail and are bought anew": (Setting((RENEWS, RENEWS), deaths=2, slack=0), 961),
    "jobs that fail, one caller wants a new one, a crash": (
        Setting((RENEWS, EXPLICIT), deaths=1, crashes=1, slack=0, attempts=1),
        3_254,
    ),
    "two processes, cancelled, the list fails": (
        Setting((EXPLICIT, ELSEWHERE), locked=True, cancels=1, list_failures=1, slack=0),
        6_137,
    ),
    "two processes, marks, a job that fails": (
        Setting((RENEWS, ELSEWHERE), locked=True, marks=True, deaths=1, slack=0),
        1_445,
    ),
    "two processes, each told and noting it": (
        Setting((EXPLICIT, EXPLICIT, ELSEWHERE), outcomes=TOLD, locked=True, marks=True, slack=0),
        3_634,
    ),
    "a copied tag": (Setting((EXPLICIT, DERIVED), foreign=True), 135),
    "a proxy that refuses what is too large": (
        Setting((DERIVED, EXPLICIT), outcomes=(*OUTCOMES, TOO_LARGE), slack=0),
        505,
    ),
    "a proxy that refuses what is too large, a caller that is cancelled, the list fails": (
        Setting((DERIVED, DERIVED), outcomes=(*CLEAN, TOO_LARGE), cancels=1, list_failures=1),
        2_842,
    ),
    "every new job has a lag of its own": (Setting((EXPLICIT, EXPLICIT), lags=(0, GRACE), crashes=1, slack=0), 8_500),
}
LEAST_STATES = 470_501  # all together


seen: dict[tuple[str, str], Explored] = {}


def world(name: str, lag: str) -> Explored:
    if (name, lag) not in seen:
        seen[name, lag] = explore(WORLDS[name][0].with_lag(LAGS[lag]))
    return seen[name, lag]


@pytest.mark.uncounted
@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("name", WORLDS)
def test_every_order(name: str, lag: str) -> None:
    assert world(name, lag).states >= WORLDS[name][1], "the explorer sees less than it did"


def test_how_much_was_explored(capsys: pytest.CaptureFixture[str]) -> None:
    found = [world(name, lag) for name in WORLDS for lag in LAGS]
    states, steps, ends = (sum(getattr(one, field) for one in found) for field in ("states", "steps", "ends"))
    with capsys.disabled():
        print(
            f"\nsubmission explorer: {states:,} states, {steps:,} steps, {ends:,} ends in {len(found)} worlds. "
            "Held in each:\n"
            "- no POST for a key in a process to which a 2xx for that key has come;\n"
            "- at most one job for each intent and generation if the list shows a job within the grace period;\n"
            "- the same for any lag, where processes hold the lock, note each 2xx, and no answer is lost;\n"
            "- a caller gets the job it asked for, and equal keys get the same one, or an error;\n"
            "- every SubmissionUncertain names the key and says how to go on;\n"
            "- a process that may have sent what was accepted ends no caller with a refusal alone;\n"
            "- no caller ends with SubmissionUncertain if each request had a clear answer;\n"
            "- no caller waits for ever, no key and no lock stays taken;\n"
            "- a later caller, in the same or another process, gets the job or advice and buys no listed job again."
        )
    assert states >= LEAST_STATES


# ---- the old rules ---------------------------------------------------------------------------------------------


class UnreadableIsLost(core.Submission):
    """Before: a 2xx that cannot be read was taken for a lost answer."""

    def unreadable(self, now: float) -> core.Action:
        return self.lost(now, QuantumRuntimeError("unreadable"))


class UnreadableIsForgotten(core.Submission):
    """A 2xx that cannot be read is not remembered for the next caller."""

    def unreadable(self, now: float) -> core.Action:
        action = super().unreadable(now)
        self.memory.note(self.memory_key).accepted = None
        return action


class WindowOfTheFirst(core.Submission):
    """Before: the window to look was counted from when the flow run began, not from this caller's turn."""

    def start(self, now: float) -> core.Action:
        self.search_until = float(GRACE)
        return self._begin(now)


class Blind(core.Submission):
    """A request whose answer was lost is sent again at once."""

    def lost(self, now: float, error: QuantumRuntimeError) -> core.Action:
        action = super().lost(now, error)
        return core.Admit(self.key) if self.posts < self.ask.attempts else action


class BuysWithoutList(core.Submission):
    """A list that fails is taken for an empty one."""

    def list_failed(self, now: float, error: QuantumRuntimeError) -> core.Action:
        return self._nothing_listed(now)


class ByAnswerTime(core.Submission):
    """Before: an answer of the list counted for the time when it arrived."""

    def _search_is_over(self, now: float) -> bool:
        return now >= self.until


class Believes(core.Submission):
    """Before: whatever carried the key was attached to."""

    def compared(self, now: float, difference: str | None) -> core.Action:
        return super().compared(now, None)


class NeverLetsGo(core.Submission):
    """A cancelled caller keeps the key."""

    def abandoned(self, now: float) -> None:
        return None


class ForgetsWhatIsOut(core.Submission):
    """A cancelled caller takes the request that is out for one that was never sent."""

    def abandoned(self, now: float) -> None:
        self.posting = False
        super().abandoned(now)


class GuessesUnsent(core.Submission):
    """A learnt lag, or any other guess, cuts the search to one look."""

    def history(self, now: float, known: core.History) -> core.Action:
        return super().history(now, core.History(never_sent=True))


class IgnoresNotes(core.Submission):
    """Before: what another process was told did not count."""

    def history(self, now: float, known: core.History) -> core.Action:
        return super().history(now, core.History(never_sent=known.never_sent))


class BelievesTheLast(core.Submission):
    """Before: a 413 of a proxy was the answer also to an earlier request that may have been accepted."""

    def lost(self, now: float, error: QuantumRuntimeError) -> core.Action:
        action = super().lost(now, error)
        self.lost_before = None
        return action


class BelievesTheOnlyOne(core.Submission):
    """Before: a 413 of a proxy was the answer also to the request of a caller that is gone."""

    def lost(self, now: float, error: QuantumRuntimeError) -> core.Action:
        action = super().lost(now, error)
        self.lost_before = None if self.posts == 1 else self.lost_before
        return action


class NeverSettles(core.Submission):
    """Before: after a 413 of a proxy the key stayed one whose answer was lost."""

    def refused(self, now: float, error: QuantumRuntimeError) -> core.Action:
        action = super().refused(now, error)
        if isinstance(error, InvalidInput):
            self.memory.note(self.memory_key).sent = now
        return action


class OnlyRefused(core.Submission):
    """Before: the refusal of a repeated request was the answer also to an earlier one that may have been accepted."""

    def refused(self, now: float, error: QuantumRuntimeError) -> core.Action:
        return self._give_up(error)


class OnlyTheList(core.Submission):
    """Before: a search that failed was told without the request of a caller that is gone."""

    def list_failed(self, now: float, error: QuantumRuntimeError) -> core.Action:
        return self._give_up(error) if self.doubt == "earlier" else super().list_failed(now, error)


class SaysNothing(core.Submission):
    """An uncertain end without a way on."""

    def _unseen(self) -> SubmissionUncertain:
        return SubmissionUncertain("it cannot be told", submission_key=self.key)


TWO_JOBS, AFTER_PROOF = "two jobs for one intent", "a POST after a proof"
SHORT, BEYOND = LAGS["short"], LAGS["beyond"]
OLD: dict[str, tuple[Setting, str]] = {
    "row 1: nothing is remembered, keys used at once": (
        Setting((EXPLICIT, EXPLICIT), SHORT, shared_memory=False, outcomes=CLEAN, slack=0),
        TWO_JOBS,
    ),
    "row 1: nothing is remembered, keys used in turn, a window long past": (
        Setting(
            (EXPLICIT, EXPLICIT), SHORT, shared_memory=False, outcomes=CLEAN, machine=WindowOfTheFirst, locked=True
        ),
        TWO_JOBS,
    ),
    "row 1: the window of the first, two processes in turn": (
        Setting((EXPLICIT, ELSEWHERE), SHORT, outcomes=CLEAN, machine=WindowOfTheFirst, locked=True, slack=4),
        TWO_JOBS,
    ),
    "row 2: an unreadable 2xx is a lost answer": (Setting((DERIVED,), BEYOND, machine=UnreadableIsLost), AFTER_PROOF),
    "row 2: an unreadable 2xx is not remembered": (
        Setting((DERIVED, DERIVED), BEYOND, machine=UnreadableIsForgotten),
        AFTER_PROOF,
    ),
    "row 3: the key changes when the circuit is built again": (
        Setting((DERIVED,), 0, crashes=1, stable_keys=False, outcomes=CLEAN),
        TWO_JOBS,
    ),
    "row 13: whatever carries the key is attached to": (
        Setting((EXPLICIT,), 0, foreign=True, machine=Believes),
        "not what was asked for",
    ),
    "a lost answer is repeated blindly": (Setting((DERIVED,), SHORT, machine=Blind), TWO_JOBS),
    "a list that fails is an empty one": (
        Setting((DERIVED,), SHORT, machine=BuysWithoutList, list_failures=4),
        TWO_JOBS,
    ),
    "a list counts for when it arrives": (
        Setting((DERIVED,), GRACE, machine=ByAnswerTime, slow_looks=True, slack=4),
        TWO_JOBS,
    ),
    "a cancelled caller keeps the key": (
        Setting((DERIVED, DERIVED), cancels=1, machine=NeverLetsGo),
        "for ever|given back",
    ),
    "a cancelled request was never sent": (
        Setting((DERIVED, DERIVED), SHORT, cancels=1, machine=ForgetsWhatIsOut),
        f"{TWO_JOBS}|{AFTER_PROOF}",
    ),
    "a guess cuts the search": (
        Setting((EXPLICIT, ELSEWHERE), SHORT, outcomes=CLEAN, locked=True, marks=True, machine=GuessesUnsent),
        f"{TWO_JOBS}|{AFTER_PROOF}",
    ),
    "what another process was told does not count": (
        Setting((EXPLICIT, ELSEWHERE), BEYOND, outcomes=TOLD, locked=True, marks=True, machine=IgnoresNotes),
        AFTER_PROOF,
    ),
    "a proxy's 413 answers for an earlier request": (
        Setting((DERIVED,), 3 * GRACE, outcomes=(*OUTCOMES, TOO_LARGE), machine=BelievesTheLast),
        "a refusal alone",
    ),
    "a proxy's 413 answers for the request of a caller that is gone": (
        Setting(
            (DERIVED, DERIVED),
            3 * GRACE,
            cancels=1,
            outcomes=("accepted, answer lost", TOO_LARGE),
            machine=BelievesTheOnlyOne,
        ),
        "a refusal alone",
    ),
    "a proxy's 413 leaves a doubt": (
        Setting((DERIVED, DERIVED), outcomes=(*CLEAN, TOO_LARGE), machine=NeverSettles),
        "each request had a clear answer",
    ),
    "a refusal answers for an earlier request": (Setting((DERIVED,), BEYOND, machine=OnlyRefused), "a refusal alone"),
    "the budget's refusal answers for an earlier request": (
        Setting((DERIVED,), BEYOND, outcomes=("answered", "accepted, answer lost"), refusals=1, machine=OnlyRefused),
        "a refusal alone",
    ),
    "a refusal answers for the request of a caller that is gone": (
        Setting((DERIVED, DERIVED), BEYOND, cancels=1, outcomes=("answered 429", *ACCEPTING), machine=OnlyRefused),
        "a refusal alone",
    ),
    "a failed search hides the request of a caller that is gone": (
        Setting((DERIVED, DERIVED), SHORT, cancels=1, list_failures=1, machine=OnlyTheList),
        "a refusal alone",
    ),
    "an uncertain end says nothing": (Setting((DERIVED,), BEYOND, machine=SaysNothing), "does not say how"),
}


def test_a_proxy_s_413_does_not_answer_for_an_earlier_request() -> None:
    explore(replace(OLD["a proxy's 413 answers for an earlier request"][0], machine=core.Submission))


@pytest.mark.parametrize("late", [False, True])
def test_a_proxy_s_413_does_not_answer_for_a_request_that_is_lost_after_it(late: bool) -> None:
    """Before: the next caller did not wait until the list must show the other request's job."""
    ask, memory = core.Ask(key_tag=lambda generation: f"qr-key:{generation}"), core.SubmissionMemory()
    gone, refused, later = (core.Submission(ask, memory, owner) for owner in range(3))
    assert isinstance(gone.start(0.0), core.Admit)
    assert isinstance(gone.admitted(0.0), core.Post)
    gone.abandoned(0.0)
    assert isinstance(refused.start(0.0), core.Look)
    refused.waited(30.0)
    assert isinstance(refused.listed(30.0, []), core.Admit)
    assert isinstance(refused.admitted(30.0), core.Post)
    refused.lost(31.0, InvalidInput("too large"))
    if late:
        gone.lost(40.0, QuantumRuntimeError("no answer"))
    refused.waited(61.0)
    assert isinstance(refused.listed(61.0, []), core.GiveUp)
    assert isinstance(later.start(61.0), core.Look)
    assert isinstance(later.listed(61.0, []), core.Pause if late else core.Admit)


@pytest.mark.parametrize("name", OLD)
def test_an_old_rule_put_back_is_found(name: str) -> None:
    setting, words = OLD[name]
    with pytest.raises(Violation, match=words) as caught:
        explore(setting)
    assert len(str(caught.value).splitlines()) > 2, "the steps that lead there are told"


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(Setting((EXPLICIT, ELSEWHERE), SHORT, outcomes=CLEAN), id="two processes without the lock"),
        pytest.param(Setting((DERIVED, Person(process=1)), 0, outcomes=CLEAN), id="an old process that still runs"),
    ],
)
def test_what_no_rule_of_one_process_can_prevent(setting: Setting) -> None:
    # The service has no idempotency key: two processes that are unaware of each other need a lock.
    with pytest.raises(Violation, match=TWO_JOBS):
        explore(setting)


def test_all_outcomes_are_explored() -> None:
    assert len(OUTCOMES) == 7
    assert set(CLEAN) <= set(OUTCOMES)


def test_the_explorer_needs_no_prefect() -> None:
    code = (
        "import sys; from tests.support.submission_model import Person, Setting, explore; "
        "explore(Setting((Person(),))); print('prefect' in sys.modules)"
    )
    root: Any = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout.strip() == "False"
