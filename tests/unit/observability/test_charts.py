"""Charts as SVG documents: right marks in right places, and nothing in a text that breaks them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from prefect_qruntime.observability.charts import bar_chart, line_chart, markdown_image, stacked_chart

SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_has_a_mark_for_each_finite_point_in_its_place() -> None:
    drawn = ElementTree.fromstring(
        line_chart("a < b & c", {"up": [(0, 0), (1, 5), (2, 10)], "none": [(0, math.nan)]}, x_label="x", y_label="y")
    )
    marks = [(float(mark.get("cx", "")), float(mark.get("cy", ""))) for mark in drawn.iter(f"{SVG}circle")]
    assert len(marks) == 3
    assert marks[0][0] < marks[1][0] < marks[2][0]
    assert marks[0][1] > marks[1][1] > marks[2][1], "larger values stand higher"
    assert "a < b & c" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_a_chart_of_one_point_or_a_flat_line_has_axes() -> None:
    for points in ([(3.0, 0.0)], [(0.0, 2.0), (1.0, 2.0)]):
        drawn = line_chart("flat", {"line": points})
        assert "nan" not in drawn
        assert len(list(ElementTree.fromstring(drawn).iter(f"{SVG}circle"))) == len(points)


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart("nothing", {"line": [(0, math.inf)]})


def test_a_title_cannot_end_the_image_early() -> None:
    shown = markdown_image("a](b\n[c", "<svg/>")
    assert "\n" not in shown
    assert shown.index("](") == shown.index("](data:image/svg+xml;base64,")


def test_a_histogram_has_a_bar_for_each_label_in_proportion() -> None:
    drawn = ElementTree.fromstring(bar_chart("a < b", {"11": 75, "00": 25}))
    bars = [float(bar.get("width", "")) for bar in drawn.iter(f"{SVG}rect")][1:]
    assert bars[1] == pytest.approx(3 * bars[0], rel=0.01), "in the order of the labels"
    assert [text.text for text in drawn.iter(f"{SVG}text")] == ["a < b", "00", "25 (25.0%)", "11", "75 (75.0%)"]


def test_a_histogram_of_many_labels_is_bounded_and_says_what_it_leaves_out() -> None:
    counts = {format(number, "0127b"): 1000 + number for number in range(500)}
    chart = bar_chart("many", counts)
    drawn = ElementTree.fromstring(chart)
    texts = [str(text.text) for text in drawn.iter(f"{SVG}text")]
    assert len(list(drawn.iter(f"{SVG}rect"))) == 1 + 15
    assert texts[-2] == "485 others"
    assert texts[-1].startswith(str(sum(counts.values()) - sum(sorted(counts.values())[-15:])))
    assert max(len(text) for text in texts) <= 24
    assert len(chart) < 5000


def test_a_histogram_of_nothing_is_refused() -> None:
    for counts in ({}, {"0": 0}):
        with pytest.raises(ValueError, match="at least one count"):
            bar_chart("nothing", counts)


def test_a_stack_has_a_part_for_each_name_in_proportion_one_upon_the_other() -> None:
    drawn = ElementTree.fromstring(
        stacked_chart("a < b", ["Mon", "Tue"], {"small": [1, 0], "large": [2, 4]}, y_label="s")
    )
    parts = [part for part in drawn.iter(f"{SVG}rect") if float(part.get("width", "0")) > 20][1:]
    found = [(part.get("fill"), float(part.get("y", "")), float(part.get("height", ""))) for part in parts]
    (first, low, high), (second, upper, small), (third, _, whole) = found
    assert first == third != second, "a name keeps its colour, and what is 0 has no part"
    assert high == pytest.approx(2 * small, abs=0.1)
    assert whole == pytest.approx(2 * high, abs=0.2)
    assert upper + small == pytest.approx(low, abs=0.1)
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"a < b", "Mon", "Tue", "small", "large", "s"} <= set(texts)


def test_a_stack_of_many_names_and_days_is_bounded() -> None:
    parts = {f"{'owner' * 20}-{number}": [float(number)] * 60 for number in range(30)}
    drawn = ElementTree.fromstring(stacked_chart("many", [f"day {n}" for n in range(60)], parts))
    texts = [str(text.text) for text in drawn.iter(f"{SVG}text")]
    assert "23 others" in texts
    assert sum(text.startswith("day") for text in texts) <= 8
    assert max(map(len, texts)) <= 36


@pytest.mark.parametrize(("parts", "words"), [({}, "above 0"), ({"a": [0.0]}, "above 0"), ({"a": []}, "each column")])
def test_a_stack_of_nothing_is_refused(parts: dict[str, list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stacked_chart("nothing", ["Mon"], parts)
