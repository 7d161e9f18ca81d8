"""Every order in which watchers claim the resumption of one flow run; and weaker rules are found out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from prefect_qruntime.suspend.suspend import STALE, next_claim
from tests.support.explorer import Violation, explore_from, twin_of

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = "resume"
Rule = Callable[[str, Mapping[str, datetime | None], datetime], str | None]


@dataclass(frozen=True)
class Watcher:
    """One watcher on its way.

    Attributes:
        step: What it does next.
        seen: The claims it has read.
        wants: The claim it is about to create.
        holds: The claim it has.
        left: How often it may look again.
    """

    step: str = "look"
    seen: tuple[tuple[str, int], ...] = ()
    wants: str = FIRST
    holds: str | None = None
    left: int = 3


@dataclass
class Row:
    """Prefect's side: the claims, and whether the flow run is still suspended."""

    watchers: tuple[Watcher, ...]
    rule: Rule = next_claim
    now: float = 0  # minutes and a bit: each is longer than a claim is taken for fresh
    claims: tuple[tuple[str, int], ...] = ()
    suspended: bool = True
    resumed: int = 0
    crashes: int = 1
    errors: int = 1
    minutes: int = 4

    def state(self) -> Hashable:
        return (
            *(self.watchers, self.now, self.claims, self.suspended, self.resumed),
            *(self.crashes, self.errors, self.minutes),
        )

    def with_(self, number: int, watcher: Watcher, **fields: object) -> Row:
        after = twin_of(self)
        after.watchers = (*self.watchers[:number], watcher, *self.watchers[number + 1 :])
        for name, value in fields.items():
            setattr(after, name, value)
        return after

    def steps(self) -> Iterator[tuple[str, Row]]:
        for number, watcher in enumerate(self.watchers):
            if watcher.step in ("gone", "done"):
                continue
            for label, after in self.steps_of(number, watcher):
                yield f"watcher {number} {label}", after
            if self.crashes:
                yield f"watcher {number} dies", self.with_(number, Watcher("gone"), crashes=self.crashes - 1)
        # A watcher never takes longer for a claim than one is taken for fresh: the one assumption of the rule.
        if self.minutes and all(watcher.step in ("look", "gone", "done") for watcher in self.watchers):
            after = twin_of(self)
            after.now, after.minutes = self.now + 1, self.minutes - 1
            yield "a minute passes", after

    def steps_of(self, number: int, watcher: Watcher) -> Iterator[tuple[str, Row]]:
        if watcher.step == "look":
            if not self.suspended:
                yield "sees that it runs", self.with_(number, replace(watcher, step="done"))
            elif watcher.left:
                yield (
                    "sees that it is suspended",
                    self.with_(number, Watcher("create", left=watcher.left - 1)),
                )
        elif watcher.step == "create":
            taken = watcher.wants in dict(self.claims)
            if not taken:
                after = self.with_(
                    number,
                    replace(watcher, step="check", holds=watcher.wants),
                    claims=(*self.claims, (watcher.wants, int(self.now))),
                )
                yield f"creates {watcher.wants}", after
            elif watcher.wants == FIRST:
                yield "finds a claim", self.with_(number, replace(watcher, step="read"))
            else:
                yield "comes second", self.with_(number, Watcher(left=watcher.left))
        elif watcher.step == "read":
            yield "reads the claims", self.with_(number, replace(watcher, step="decide", seen=self.claims))
        elif watcher.step == "decide":
            minute = STALE + timedelta(seconds=1)
            row = {name: BEGIN + made * minute for name, made in watcher.seen}
            name = self.rule(FIRST, row, BEGIN + self.now * minute)
            follows = (
                Watcher(left=watcher.left) if name is None else replace(watcher, step="create", wants=name, seen=())
            )
            yield f"decides for {name}", self.with_(number, follows)
        elif watcher.step == "check":
            follows = "resume" if self.suspended else "done"
            yield f"is told to {follows}", self.with_(number, replace(watcher, step=follows))
            if self.errors:
                kept = tuple(claim for claim in self.claims if claim[0] != watcher.holds)
                after = self.with_(number, Watcher(left=watcher.left), claims=kept, errors=self.errors - 1)
                yield "fails and gives its claim back", after
        else:  # between check and change Prefect lets another one pass
            yield (
                "resumes",
                self.with_(number, replace(watcher, step="done"), suspended=False, resumed=self.resumed + 1),
            )

    def check(self) -> None:
        if self.resumed > 1:
            raise Violation("the flow run was resumed twice")
        if sum(watcher.step in ("check", "resume") for watcher in self.watchers) > 1:
            raise Violation("two watchers resume at once")

    def check_end(self) -> None:
        """Two minutes later another watcher comes, and nothing goes wrong any more."""
        later = twin_of(self)
        later.watchers, later.now = (*self.watchers, Watcher(left=1)), self.now + 2
        later.crashes = later.errors = later.minutes = 0
        while options := [one for one in later.steps() if one[0].startswith(f"watcher {len(self.watchers)}")]:
            later = options[0][1]
            later.check()
        if later.suspended:
            raise Violation("nobody resumes it")


def test_every_order(capsys: pytest.CaptureFixture[str]) -> None:
    found = [explore_from(Row((Watcher(),) * number)) for number in (1, 2)]
    found.append(explore_from(Row((Watcher(left=2),) * 3, minutes=2)))
    states = sum(one.states for one in found)
    with capsys.disabled():
        print(
            f"\nclaim explorer: {states:,} states, {sum(one.steps for one in found):,} steps in {len(found)} worlds. "
            "Held in each:\n"
            "- never two watchers resume a flow run at once, and none resumes it a second time;\n"
            "- a claim of a dead watcher, or one given back, does not stop the others."
        )
    assert states >= 25_000


def anybody(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """Takes over at once."""
    return f"{first}-{len(row) + 1}"


def by_the_first(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """Looks at the age of the first claim only."""
    made = row.get(first)
    return f"{first}-{len(row) + 1}" if made is not None and now - made > STALE else None


def only_once(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """Takes over from the first watcher, but from no other."""
    name = next_claim(first, row, now)
    return name if name == f"{first}-2" else None


def nobody(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """Never takes over."""
    return None


@pytest.mark.parametrize(
    ("rule", "words"),
    [(anybody, "at once"), (by_the_first, "at once"), (only_once, "nobody resumes"), (nobody, "nobody resumes")],
)
def test_a_weaker_rule_is_found(rule: Rule, words: str) -> None:
    with pytest.raises(Violation, match=words):
        explore_from(Row((Watcher(left=2),) * 3, rule=rule, crashes=2, minutes=2))


def test_an_undated_claim_is_fresh() -> None:
    assert next_claim(FIRST, {FIRST: None}, BEGIN) is None
    assert next_claim(FIRST, {}, BEGIN) is None
    old = BEGIN - 2 * STALE
    assert next_claim(FIRST, {FIRST: old, f"{FIRST}-2": old, f"{FIRST}-11": old}, BEGIN) == f"{FIRST}-12"
