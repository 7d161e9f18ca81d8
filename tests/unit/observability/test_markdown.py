"""The texts of records: what stays when a later wait attaches, one line for lists, plain words."""

from __future__ import annotations

import re
from typing import Any

import pytest

import prefect_qruntime as qr
from prefect_qruntime.client.programs.agreement import Agreement, RouteComparison, compare_values
from prefect_qruntime.observability.markdown import (
    comparison_card,
    fetched_line,
    history,
    job_card,
    job_description,
    join_sections,
    result_section,
    section,
    session_description,
    session_title,
    summary_card,
    summary_description,
    with_history,
    with_progress,
)

QUEUED, RUNNING, DONE = "queued (0.1 s)", "running (4.0 s)", "completed (9.0 s)"


def seen(*states: str, began: str = "first") -> dict[str, str]:
    return {"seen": " → ".join(states), "began": began}


def test_the_history_of_one_wait_grows_and_that_of_another_is_added() -> None:
    facts = with_history({}, seen(QUEUED))
    facts = with_history(facts, seen(QUEUED, RUNNING))
    assert history(facts) == f"{QUEUED} → {RUNNING}"
    facts = with_history(facts, seen("running (0.0 s)", began="second"))
    facts = with_history(facts, seen("running (0.0 s)", DONE, began="second"))
    told = f"{QUEUED} → {RUNNING}; attached: running (0.0 s) → {DONE}"
    assert history(facts) == told
    assert history(with_history(facts, seen("completed (0.0 s)", began="third"))) == told, "nothing new"
    assert f"| seen | {told} |" in job_card({"id": "d1", **facts}, "")


def test_a_history_stays_short_however_often_is_attached() -> None:
    facts = with_history({}, seen(QUEUED))
    for number in range(200):
        facts = with_history(facts, seen("running (0.0 s)", f"odd{number} (1.0 s)", began=str(number)))
    assert max(map(len, facts.values())) < 500
    assert history(facts).startswith(QUEUED)
    assert history(facts).endswith("odd199 (1.0 s)")


def test_progress_that_comes_late_does_not_hide_an_end() -> None:
    going_on = {"state": "Running", "now": "running 40 s", "began": "second"}
    assert with_progress({"state": "Queued", "block": "ibm"}, going_on) == {**going_on, "block": "ibm"}
    for state in ("Completed", "Failed", "Cancelled", "Cancelled - Ran too long"):
        over = {"state": state, "seen": DONE}
        assert with_progress(over, going_on) == over


def test_a_history_that_is_not_known_now_stays() -> None:
    assert with_history(seen(QUEUED), {"usage_seconds": "2"})["seen"] == QUEUED


@pytest.mark.parametrize(
    ("facts", "ran"),
    [
        ({"seen": f"{QUEUED} → {DONE}"}, "not seen running"),
        ({"seen": f"{RUNNING} → {DONE}"}, "first seen running"),
        ({"seen": DONE}, "first seen completed"),
        ({"seen": f"{QUEUED} → {DONE}", "run_seconds": "5.0"}, "about 5.0 s"),
    ],
)
def test_how_long_a_job_ran_is_said_in_plain_words(facts: dict[str, str], ran: str) -> None:
    assert f"| ran | {ran} |" in job_card({"id": "d1", "state": "Completed", **facts}, "")


def test_what_goes_on_is_shown_until_the_end() -> None:
    facts = {"id": "d1", "state": "Queued", "now": "queued 12 min, 14 jobs in the queue, ibm_torino online"}
    assert "| now | queued 12 min, 14 jobs in the queue, ibm_torino online |" in job_card(facts, "")
    assert "queued 12 min" not in job_card({**facts, "state": "Completed"}, "")


@pytest.mark.parametrize("word", ["Completed", "Failed", "Cancelled", "canceled", "Cancelled - Ran too long"])
def test_cost_is_said_in_lists_once_a_job_is_over(word: str) -> None:
    facts = {"state": word, "backend": "ibm_torino", "usage_seconds": "1.5"}
    assert job_description(facts) == f"{word[:1].upper()}{word[1:]} · ibm_torino · 1.5 QPU s"
    assert job_description({**facts, "state": "Running"}) == "Running · ibm_torino"
    assert job_description({"state": "submitted"}) == "Submitted"


def test_the_lines_of_sessions_and_summaries() -> None:
    assert session_title(qr.SessionRef(id="s1", mode="batch")) == "Batch s1"
    assert session_title(qr.SessionRef()) == "Session, not opened yet"
    assert session_description({"state": "open", "mode": "batch", "backend": "b"}) == "Open · batch · b"
    assert summary_description({"jobs": "1", "usage_seconds": "2"}) == "1 job · 2 QPU s"
    assert summary_description({"jobs": "12", "usage_seconds": "2.5"}) == "12 jobs · 2.5 QPU s"


@pytest.mark.parametrize("odd", ["", "|", "[a](b)", "<img src=x>", "**b**", "1.", "- a"])
@pytest.mark.parametrize("length", [1, 64, 65, 300])
def test_a_long_word_may_be_broken_and_reads_as_it_was(length: int, odd: str) -> None:
    """Prefect's pages have a column beside the text, which a wider table would cover."""
    reason = f"{odd}{'w' * length}{odd}"
    (row,) = (line for line in job_card({"id": "d1", "reason": reason}, "").split("\n") if "reason" in line)
    assert max(map(len, re.split(r"[\u200b\s]", row.replace("\\", "")))) <= (32 if length > 64 else 64)
    assert re.sub(r"\u200b|\\", "", row) == f"| reason | {reason} |"
    assert "\\\u200b" not in row, "what a backslash escapes comes next"


def test_what_may_be_copied_is_not_broken() -> None:
    facts = {"id": "d1", "payload": "f" * 64, "key": "qr-key:" + "f" * 32, "backend": "b" * 64}
    assert "\u200b" not in job_card(facts, "")


def test_a_summary_says_once_what_is_the_same_for_all_jobs() -> None:
    jobs = [{"id": f"d{n}", "program": "sampler", "backend": "ibm_|", "state": "Completed"} for n in range(3)]
    text = summary_card(jobs)
    assert "\n\nprogram: sampler · backend: ibm\\_\\|\n\n| job | state |" in text
    assert text.count("sampler") == 1
    other = summary_card([*jobs, {**jobs[0], "program": "estimator"}])
    assert "\n\nbackend: ibm" in other
    assert "| job | program | state |" in other
    assert "| d0 | sampler | completed |" in other
    assert "| job | program | backend | state |" in summary_card(jobs[:1])
    for unknown in ([], [{"id": "d1"}, {"id": "d2"}], [{"id": "d1"}, {**jobs[0]}]):
        assert "·" not in summary_card(unknown)


@pytest.mark.parametrize(
    ("samples", "title"), [(["0x1"], "PUB 0: 1 shot, 1 outcome"), (["0x1", "0x0"], "PUB 0: 2 shots, 2 outcomes")]
)
def test_the_title_of_a_picture_agrees_in_number(samples: list[str], title: str) -> None:
    pub = {"data": {"c": {"samples": samples, "num_bits": 2}}, "metadata": {}}
    assert f"![{title}]" in result_section(qr.JobResult.from_body({"results": [pub]}, job_id="d1"))


def result(*pubs: Any) -> qr.JobResult:
    return qr.JobResult.from_body({"results": list(pubs)}, job_id="d1")


def sampled(shots: int) -> dict[str, Any]:
    return {"data": {"c": {"samples": ["0x1"] * shots, "num_bits": 2}}, "metadata": {}}


@pytest.mark.parametrize(
    ("pubs", "said"),
    [
        ([sampled(1)], "1 PUB, 1 shot, "),
        ([sampled(2000)], "1 PUB, 2,000 shots, 12.1 kB"),
        ([sampled(5), sampled(5)], "2 PUBs, 5 shots each, "),
        ([sampled(5), sampled(7)], "2 PUBs, 5 to 7 shots each, "),
        ([{"data": {"evs": 1.0}, "metadata": {}}], "1 PUB, "),
        ([sampled(1)] * 60, "60 PUBs, "),
    ],
)
def test_a_fetch_says_its_shots_and_its_size(pubs: list[Any], said: str) -> None:
    line = fetched_line(result(*pubs))
    assert line.startswith(f"fetched the result of job d1: {said}")
    assert line.endswith("B") or line.endswith(" bytes")


def test_a_result_of_another_shape_says_its_size() -> None:
    assert (
        fetched_line(qr.JobResult.from_body({"a": 1}, job_id="d1")) == "fetched the result of job d1: 0 PUBs, 7 bytes"
    )


@pytest.mark.parametrize("text", [f"[NaN, {2**127}]", "9" * 400, "[" * 190 + "]" * 190])
def test_a_result_with_what_json_seldom_holds_says_its_size(text: str) -> None:
    found = qr.JobResult.from_body(f'{{"results": [], "metadata": {{"entropy": {text}}}}}', job_id="d1")
    assert fetched_line(found).startswith("fetched the result of job d1: 0 PUBs, ")


def test_what_people_look_for_stands_above_the_result_and_the_details_below() -> None:
    facts = {"id": "d1", "state": "Completed", "backend": "ibm_torino", "key": "qr-key:ab", "pid": "7", "odd": "new"}
    text = job_card(facts, "", join_sections(section("Circuit", "a drawing"), section("Result", "a picture")))
    order = ["| state |", "| backend |", "#### Result", "a picture", "#### Circuit", "a drawing", "#### Details"]
    order += ["| submission key |", "| process |", "| odd |"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    again = job_card({**facts, "pid": "8"}, text, section("Result", "another picture"))
    assert again.count("#### Details") == again.count("a drawing") == 1
    assert "| process | 8 |" in again
    assert "another picture" in again
    assert "a picture" not in again


@pytest.mark.parametrize(
    ("agrees", "errors", "verdict"),
    [
        (True, [0.1], "agree"),
        (False, [0.001, float("nan")], "differ"),
        (False, [float("nan")], "cannot be compared"),
    ],
)
def test_a_card_of_two_routes_has_the_verdict_of_their_comparison(
    agrees: bool, errors: list[float], verdict: str
) -> None:
    job = qr.JobRef(id="a", backend="b", program_id="estimator")
    compared = tuple(compare_values(0.1, 0.2, (error, error)) for error in errors)
    card = comparison_card(RouteComparison(service=job, executor=job, agreement=Agreement(agrees, 0.001, compared)))
    assert card.startswith(f"### The two routes {verdict}\n")
    assert card.count("| cannot be compared |") == sum(error != error for error in errors)


@pytest.mark.parametrize("values", [[None, None], [None], None])
def test_values_that_are_not_known_are_listed_without_a_picture(values: Any) -> None:
    body = {"results": [{"data": {"evs": values, "stds": values}}]}
    shown = result_section(qr.JobResult.from_body(body, job_id="d1"))
    assert "nan" in shown
    assert "svg" not in shown
