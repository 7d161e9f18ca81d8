"""Shares of the create rate: 200 flows on virtual time, kills among them, and the rules one by one."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from prefect_qruntime.admission.share_core import PATIENCE, Row, Share, Waiter, in_order, is_spent

COUNT, PERIOD = 5, 60.0


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@dataclass
class Simulation:
    """Flows of several teams that each want some creates, one after the other, and look when the core says so.

    Attributes:
        shares: By team.
        rows: What is in Prefect.
        turns: Who got a turn when, and how long it had waited.
    """

    shares: dict[str, Share]
    seed: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    turns: list[tuple[float, str, float]] = field(default_factory=list)
    killed: set[str] = field(default_factory=set)
    looks: int = 0

    def run(
        self, flows: Sequence[tuple[str, float, int]], until: float, kills: Sequence[tuple[float, int]] = ()
    ) -> None:
        """Run flows, given as team, arrival and wanted creates; each kill is a moment and a place in the order."""
        draw, number = random.Random(self.seed), itertools.count()
        left = {f"f{index}": wanted for index, (_, _, wanted) in enumerate(flows)}
        team = {f"f{index}": one for index, (one, _, _) in enumerate(flows)}
        waiters: dict[str, Waiter] = {}
        events: list[tuple[float, int, str]] = [(at, next(number), f"f{i}") for i, (_, at, _) in enumerate(flows)]
        events += [(at, next(number), f"kill {place}") for at, place in kills]
        heapq.heapify(events)
        while events:
            now, _, what = heapq.heappop(events)
            if now > until:
                return
            if what.startswith("kill"):
                order = [row for row, _, _ in in_order(self.rows.values(), self.shares, now, PERIOD)]
                place = int(what.split()[1])
                if place < len(order):
                    self.killed.add(next(flow for flow, one in waiters.items() if one.id == order[place].id))
                continue
            if what in self.killed or not left[what]:
                continue
            if what not in waiters:
                waiters[what] = Waiter(f"t{next(number)}", COUNT, PERIOD)
                self.rows[waiters[what].id] = Row(waiters[what].id, team[what], now)
            waiter = waiters[what]
            self.looks += 1
            turn = waiter.look(list(self.rows.values()), self.shares, server=now, now=now)
            for one in turn.drop:
                self.rows.pop(one, None)
            pause = turn.pause * draw.uniform(0.8, 1.2)
            if turn.do == "renew":
                self.rows[waiter.id] = Row(waiter.id, team[what], now)
            elif turn.do == "go":
                row = self.rows[waiter.id]
                self.rows[waiter.id] = replace(row, granted=now, start=turn.start, finish=turn.finish)
                self.turns.append((now, team[what], now - row.since))
                left[what] -= 1
                del waiters[what]
                pause = 0.1
            heapq.heappush(events, (now + pause, next(number), what))

    def check_rate(self) -> None:
        moments = [moment for moment, _, _ in self.turns]
        assert all(later - earlier >= PERIOD for earlier, later in zip(moments, moments[COUNT:], strict=False))


@pytest.mark.uncounted
def test_two_hundred_flows_get_turns_by_weight_and_none_starves(capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"a": 4.0, "b": 2.0, "c": 1.0, "d": 1.0}
    world = Simulation({team: Share(weight) for team, weight in weights.items()})
    draw = random.Random(1)
    flows = [(team, draw.uniform(0, 60), 10) for team in weights for _ in range(50)]
    hours = 0.8
    world.run(flows, until=hours * 3600)
    world.check_rate()
    got = {team: sum(one == team for _, one, _ in world.turns) for team in weights}
    fairness = jain([got[team] / weight for team, weight in weights.items()])
    # Nobody's team waits longer between two turns than its weight says, and one round more.
    gaps = {}
    for team, weight in weights.items():
        moments = [0.0, *(moment for moment, one, _ in world.turns if one == team)]
        gaps[team] = max(later - earlier for earlier, later in itertools.pairwise(moments))
        assert gaps[team] <= sum(weights.values()) / weight * PERIOD / COUNT + 2 * PERIOD, team
    used = len(world.turns) / (hours * 3600 / PERIOD * COUNT)
    with capsys.disabled():
        shown = ", ".join(f"{team} {got[team]} (gap {gaps[team]:.0f} s)" for team in weights)
        rate = world.looks / (hours * 3600)
        print(f"\nshares: Jain {fairness:.4f}, {used:.1%} of the rate, {rate:.1f} looks a second; {shown}")
    assert fairness > 0.99
    assert used > 0.9


@pytest.mark.uncounted
def test_a_small_team_is_not_starved_by_a_crowd_that_never_rests(capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"crowd": Share(100.0), "small": Share(1.0)}
    world = Simulation(shares)
    world.run([*(("crowd", 0.0, 50) for _ in range(60)), ("small", 300.0, 2)], until=2 * 3600)
    world.check_rate()
    waits = [waited for _, team, waited in world.turns if team == "small"]
    with capsys.disabled():
        print(f"\nshares: a team with 1 of 101 waits {', '.join(f'{waited:.0f}' for waited in waits)} s")
    assert len(waits) == 2
    # Its first turn comes at once, the next ones after 100 of the others.
    assert waits[0] <= 2 * PERIOD
    assert max(waits) <= 101 * PERIOD / COUNT + 2 * PERIOD


def test_killed_processes_delay_the_others_by_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"a": Share(1.0), "b": Share(1.0)}
    flows = [(team, 0.0, 3) for team in shares for _ in range(20)]
    calm, rough = Simulation(shares), Simulation(shares)
    calm.run(flows, until=1500)
    # Always the next in turn, just before it is.
    kills = [(59.0 + 60 * minute, place) for minute in range(0, 12, 3) for place in (0, 1)]
    rough.run(flows, until=1500, kills=kills)
    rough.check_rate()
    assert len(rough.killed) == len(kills)
    number = min(len(calm.turns), len(rough.turns))
    delays = [after[0] - before[0] for before, after in zip(calm.turns[:number], rough.turns[:number], strict=True)]
    with capsys.disabled():
        print(
            f"\nshares: {len(kills)} kills of the next in turn delay the others by {max(delays):.1f} s at most, in all"
        )
    assert max(delays) < (PATIENCE + 10) * 4
    assert not rough.killed & {row.id for row in rough.rows.values()}


def test_an_idle_team_saves_up_nothing_and_a_late_one_starts_with_the_others() -> None:
    grants = [Row(f"g{n}", "a", 0, granted=n * 10.0, start=float(n), finish=n + 1.0) for n in range(10)]
    rows = [*grants, Row("1", "a", 100), Row("2", "a", 101), Row("3", "b", 102), Row("4", "b", 103)]
    order = [row.id for row, _, _ in in_order(rows, {}, 1000.0, PERIOD)]
    assert order == ["3", "1", "4", "2"]


def test_a_ceiling_holds_and_others_use_the_rest() -> None:
    rows = [Row("g", "a", 0, granted=90.0, finish=1.0), Row("1", "a", 0), Row("2", "a", 1), Row("3", "b", 2)]
    order = [row.id for row, _, _ in in_order(rows, {"a": Share(5.0, ceiling=2)}, 100.0, PERIOD)]
    assert set(order) == {"1", "3"}
    waiter = Waiter("2", COUNT, PERIOD)
    assert waiter.look(rows, {"a": Share(5.0, ceiling=2)}, server=100.0, now=0.0).do == "wait"
    assert waiter.look(rows, {"a": Share(5.0, ceiling=2)}, server=200.0, now=9.0).do == "go"


def test_a_ceiling_counts_the_turns_of_the_last_period_only() -> None:
    shares = {"a": Share(ceiling=1)}
    rows = [Row("g", "a", 0, granted=0.0, finish=1.0), Row("1", "a", 5)]
    assert in_order(rows, shares, PERIOD - 1, PERIOD) == []
    assert [row.id for row, _, _ in in_order(rows, shares, PERIOD, PERIOD)] == ["1"]


def test_one_whose_row_is_gone_renews_it() -> None:
    assert Waiter("1", COUNT, PERIOD).look([Row("2", "a", 0)], {}, server=0.0, now=0.0).do == "renew"


def test_a_turn_that_is_not_taken_goes_on_after_a_while_of_ones_own_clock() -> None:
    rows = [Row("dead", "a", 0), Row("me", "a", 1)]
    waiter = Waiter("me", 1, PERIOD)
    assert waiter.look(rows, {}, server=5.0, now=100.0).do == "wait"
    assert waiter.look(rows, {}, server=900.0, now=100.0 + PATIENCE - 1).do == "wait"
    turn = waiter.look(rows, {}, server=6.0, now=100.0 + PATIENCE)
    assert (turn.do, turn.drop) == ("go", ("dead",))
    # One that was not in turn all the time has not been waited for.
    waiter = Waiter("me", 1, PERIOD)
    waiter.look(rows, {}, server=5.0, now=0.0)
    full = [*rows, Row("g", "b", 0, granted=5.0)]
    assert waiter.look(full, {}, server=5.0, now=5.0).do == "wait"
    assert waiter.look(rows, {}, server=5.0, now=8.0).do == "wait"


def test_spent_grants_are_removed_and_tags_stay_right() -> None:
    old = [Row("g1", "a", 0, granted=0.0, start=0.0, finish=1.0), Row("g2", "a", 0, granted=1.0, start=1.0, finish=2.0)]
    heavy = Row("g3", "b", 0, granted=2.0, start=0.0, finish=9.0)
    rows = [*old, heavy]
    now = 2 * PERIOD + 10
    assert [is_spent(row, rows, now, PERIOD) for row in rows] == [True, False, False]
    assert not is_spent(old[0], rows, PERIOD, PERIOD)
    assert not is_spent(Row("t", "a", 0), rows, now, PERIOD)
    waiting = [Row("1", "a", 5), Row("2", "b", 5)]
    before = in_order([*rows, *waiting], {}, now, PERIOD)
    assert in_order([*rows[1:], *waiting], {}, now, PERIOD) == before
    assert Waiter("1", COUNT, PERIOD).look([*rows, *waiting], {}, server=now, now=0.0).drop == ("g1",)


def test_the_last_grant_of_a_team_that_left_is_spent_when_others_have_passed_it() -> None:
    left, other = Row("g1", "a", 0, granted=0.0, finish=1.0), Row("g2", "b", 0, granted=9.0, start=1.0, finish=2.0)
    assert is_spent(left, [left, other], 2 * PERIOD, PERIOD)
    assert not is_spent(left, [left, replace(other, start=0.5)], 2 * PERIOD, PERIOD)
