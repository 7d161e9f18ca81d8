"""The benchmarks' page is right about a canned run; what is planned and what is shown fit together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.lab import is_poll
from benchmarks.lines import GROUPS, WHY, Goal, Line
from benchmarks.plan import plan
from benchmarks.render import UNEXPLAINED, missed, render, verdict
from benchmarks.results import Results

ABOUT = {
    "quick": False,
    "date": "2026-11-23",
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gib": 8,
    "system": "Linux",
    "python": "3.11.7",
    "ours": {"prefect-qruntime": "0.1.0"},
    "peers": {"qiskit-ibm-runtime": "0.51.0"},
}


def record(key, peer, **numbers):
    return {"key": key, "peer": peer, "repeat": 0, "busy": 0.1, "args": {"jobs": 200}, "scale": 1, "numbers": numbers}


RUN = [
    ABOUT,
    record("one", "official", first=12, second=8),
    record("one", "ours-flow", first=3, second=2),
    record("crowd", "bare", wall=4.0, cpu=3.0, requests=1300),
    record("crowd", "ours", wall=4.0, cpu=1.0, requests=400),
    record("crowd", "ours", wall=6.0, cpu=1.1, requests=410),
    record("crowd", "ours", wall=5.0, cpu=1.2, requests=420),
    record("eight", "prefect-qiskit-flow", bought=6, finished=0),
    record("eight", "ours-flow", bought=1, finished=1),
    {**record("crowd", "official"), "error": "exit code 1"},
    record("waits-10", "ours", requests_per_minute=120, cpu_share=0.02, grown_mib=0.5, lag_p50=0.3, lag=0.4),
    record("waits-1000", "ours", kb_per_job=12.5, cpu_share=0.2, requests_per_minute=600),
    record("long", "ours", polls=900, hours=4.0, cpu=2.0, lag=30, allowed=288),
]


@pytest.fixture
def results() -> Results:
    return Results.read(json.dumps(line) for line in RUN)


def row(page, start):
    (found,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_page_shows_medians_goals_and_verdicts(results):
    page = render(results)
    assert row(page, "Requests for one job")[1:] == ["12", "n/a", "n/a", "**3**", "≤ 4", "met"]
    assert row(page, "200 concurrent jobs, clients alone: wall time")[1:] == [
        "failed",
        "n/a",
        "4 s",
        "**5 s**",
        "≤ 1.1 × bare httpx = 4.4 s",
        "**missed by 14 %**",
    ]
    assert row(page, "… eight of them")[1:5] == ["n/a", "6, no result", "n/a", "**1**"]
    assert row(page, "1,000 waits: memory")[4:] == ["**12.5 kB**", "≤ 50 kB", "met"]
    assert row(page, "… share of one core")[4:] == ["**20 %**", "≤ 10 %", "**missed by 100 %**"]
    assert row(page, "requests a minute | **prefect")[2:] == ["120", "600"]
    assert "200 jobs, 4.0 hours in the queue" in page
    assert "2 cores of Some CPU, 8 GiB" in page
    assert "A quick run" not in page
    assert "left to its caller (bare httpx)" in page


def test_a_quick_run_says_so(results):
    results.about["quick"] = True
    assert "A quick run" in render(results)


def test_what_was_not_measured_is_not_met(results):
    titles = {line.metric for line in missed(results)}
    assert {"wall", "cpu_share", "polls", "mib"} <= titles
    assert "cpu" not in {line.metric for line in missed(results) if line.key == "crowd"}


def test_what_was_missed_is_explained_or_said_to_be_unexplained(results):
    results.numbers["import", "ours", "names"] = [0.4]
    page = render(results)
    assert f"and of the names that a flow uses: {WHY['import', 'names']}" in page
    assert f"share of one core: {UNEXPLAINED}" in page


def test_explanations_are_of_lines_with_a_goal():
    assert set(WHY) <= {(line.key, line.metric) for _, lines in GROUPS for line in lines if line.goal is not None}


def test_the_published_page_explains_what_it_missed():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    if "A quick run" in page:
        pytest.skip("the page is of a quick run")
    for what in re.findall(r"^\| (?:… )*(.+?) \|.*\*\*missed", page, re.MULTILINE):
        (why,) = re.findall(rf"^{re.escape(what)}: (.+)$", page, re.MULTILINE)
        assert why != UNEXPLAINED, what


def test_a_goal_of_zero_is_missed_by_a_number():
    results = Results(about=ABOUT)
    results.numbers["import", "ours", "heavy"].append(2.0)
    line = Line("heavy", "import", "heavy", goal=Goal(0))
    assert verdict(line, results) == "**missed by 2**"


@pytest.mark.parametrize("quick", [True, False])
def test_every_line_is_planned(quick):
    planned = {(what.key, peer) for what in plan(quick=quick) for peer in what.peers}
    wanted = {(line.key, line.peer("ours")) for _, lines in GROUPS for line in lines}
    absent = {key for key, _ in wanted - planned}
    assert absent <= ({"waits-1000"} if quick else set())


def test_no_line_without_a_reason_where_a_peer_is_not_planned():
    planned = {(what.key, peer) for what in plan(quick=False) for peer in what.peers}
    for _, lines in GROUPS:
        for line in lines:
            for column in ("official", "prefect-qiskit", "bare"):
                assert (line.key, line.peer(column)) in planned or column in line.missing, (line.title, column)


@pytest.mark.parametrize(
    ("method", "path", "poll"),
    [
        ("GET", "/jobs/d1?exclude_params=true", True),
        ("GET", "/jobs?limit=200&pending=true", True),
        ("GET", "/jobs/d1/results", False),
        ("GET", "/jobs?tags=qr-key%3Aabc&limit=200", False),
        ("POST", "/jobs", False),
        ("WS", "/stream/jobs/d1", False),
    ],
)
def test_looks_are_told_from_other_requests(method, path, poll):
    assert is_poll(method, path) is poll
