"""Charts as SVG, small enough to live inside a markdown artifact. No plotting library is needed."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from prefect_qruntime.redact import many

__all__ = ["Point", "bar_chart", "is_shortened", "line_chart", "markdown_image", "stacked_chart"]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 84, 20, 72, 56
# From the Okabe-Ito palette, which colour-blind readers can distinguish; the second of each pair is for dark pages.
COLOURS = (("#0072b2", "#56b4e9"), ("#c4500a", "#ff8a4c"), ("#00795a", "#2fc79b"), ("#a8568a", "#e08fc2"))
# For areas, in middle tones that stand out on both grounds.
STACK = ("#3b82c4", "#d9772b", "#2a9d78", "#b565a0", "#b8912a", "#7a7ad6", "#a83264")
OTHERS = "#8c959f"
TICKS = 6  # about so many on each axis
BAR, BARS, LABEL = 22, 16, 24  # height of a bar's row, most bars, most characters of a label
# A ground of its own, so that the text is readable even if the browser's scheme is not the page's.
_STYLE = "".join(
    (
        "<style>text{font-family:system-ui,sans-serif;font-size:12px;fill:#1f2328}.title{font-size:14px;font-weight:600}",
        ".soft{fill:#59636e}.mono{font-family:ui-monospace,monospace}.ground{fill:#fff;stroke:#d0d7de}",
        ".grid{stroke:#e3e7ec}.axis{stroke:#8c959f}",
        *(f".s{n}{{fill:{light}}}.l{n}{{stroke:{light}}}" for n, (light, _) in enumerate(COLOURS)),
        "@media(prefers-color-scheme:dark){text{fill:#ececee}.soft{fill:#a9abb2}.ground{fill:#1b1c1f;stroke:#44464d}",
        ".grid{stroke:#303238}.axis{stroke:#777a82}",
        *(f".s{n}{{fill:{dark}}}.l{n}{{stroke:{dark}}}" for n, (_, dark) in enumerate(COLOURS)),
        "}</style>",
    )
)
Point = tuple[float, float] | tuple[float, float, float | None]
"""Where a mark stands, and its standard error if that is known."""


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str = "",
    y_label: str = "",
    joined: bool = True,
) -> str:
    """Draw a mark at each point, with an error bar where an error is given, and a line through the marks.

    Args:
        title: Printed above the chart.
        series: The points (x, y) or (x, y, standard error) of each line by its name; what is not finite is left out.
        x_label: What the horizontal axis shows, with its unit.
        y_label: What the vertical axis shows, with its unit.
        joined: Whether lines join the marks.

    Returns:
        The SVG document.

    Raises:
        ValueError: There is no finite point at all.

    Example:
        ```python
        from prefect_qruntime.observability.charts import line_chart

        assert line_chart("Squares", {"x²": [(0, 0), (1, 1), (2, 4)]}).startswith("<svg")
        ```
    """
    lines = {
        name: [(x, y, _error(rest)) for x, y, *rest in points if math.isfinite(x + y)]
        for name, points in series.items()
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    # Whole numbers such as iterations get whole ticks.
    whole = all(float(x).is_integer() for x, _, _ in points)
    x_ticks = _ticks([x for x, _, _ in points], least=1.0 if whole else 0.0)
    y_ticks = _ticks([end for _, y, error in points for end in (y - error, y + error)])
    x_low, x_high = _ends([x for x, _, _ in points], margin=0.02)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [*_frame(title, HEIGHT), _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, kind="soft")]
    parts += _upright(y_label, TOP)
    for x in (tick for tick in x_ticks if x_low <= tick <= x_high):
        parts.append(_line(across(x), HEIGHT - BOTTOM, across(x), HEIGHT - BOTTOM + 5, "axis"))
        parts.append(_text(across(x), HEIGHT - BOTTOM + 20, _number(x, x_ticks)))
    for y in y_ticks:
        parts.append(_line(LEFT, down(y), WIDTH - RIGHT, down(y), "grid"))
        parts.append(_text(LEFT - 8, down(y) + 4, _number(y, y_ticks), anchor="end"))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    legend = LEFT
    for place, (name, line) in enumerate(lines.items()):
        kind = place % len(COLOURS)
        dashes = ' stroke-dasharray="6 4"' if place % 2 else ""  # a line that lies on another hides it less
        if joined and len(line) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y, _ in line)
            parts.append(f'<polyline points="{path}" fill="none" class="l{kind}" stroke-width="1.8"{dashes}/>')
        bars = [(across(x), down(y + error), down(y - error)) for x, y, error in line if error > 0]
        if bars:  # one path, as a picture may have hundreds
            path = "".join(f"M{x - 4:.0f} {top:.1f}h8m-4 0V{end:.1f}m-4 0h8" for x, top, end in bars)
            parts.append(f'<path d="{path}" fill="none" class="l{kind}"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" class="s{kind}"/>' for x, y, _ in line]
        if len(lines) > 1:
            parts.append(f'<rect x="{legend}" y="38" width="12" height="12" rx="2" class="s{kind}"/>')
            parts.append(_text(legend + 18, 48, name, anchor="start", kind="soft"))
            legend += 34 + 7 * len(name)
    return "\n".join([*parts, "</svg>"])


def bar_chart(title: str, counts: Mapping[str, int]) -> str:
    """Draw a histogram with one bar a label, in the order of the labels.

    At most 16 rows: beyond that the most frequent 15, and how often all others together as a number without a bar.

    Args:
        title: Printed above the chart.
        counts: How often by label, for instance by bitstring; long labels are shortened in their middle.

    Returns:
        The SVG document, at most 6 kB.

    Raises:
        ValueError: Nothing was counted.

    Example:
        ```python
        from prefect_qruntime.observability.charts import bar_chart

        assert "498" in bar_chart("A Bell pair", {"00": 498, "11": 502})
        ```
    """
    total = sum(counts.values())
    if total <= 0:
        raise ValueError("a histogram needs at least one count")
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    shown = sorted(ranked[: BARS if len(ranked) <= BARS else BARS - 1])
    bars = [(_short(label), counts[label], counts[label]) for label in shown]
    if len(ranked) > len(bars):
        # Without a bar: drawn to scale it would often be so long that the others vanish.
        bars.append((f"{len(ranked) - len(bars)} others", total - sum(count for _, count, _ in bars), 0))
    said = [f"{count} ({count / total:.1%})" for _, count, _ in bars]
    left = 28 + 7.5 * max(len(label) for label, _, _ in bars)
    room = WIDTH - left - 16 - 7.5 * max(len(text) for text in said)
    longest = max(length for _, _, length in bars)
    top = 42
    parts = _frame(title[:80], top + BAR * len(bars) + 12)
    for place, ((label, _, count), text) in enumerate(zip(bars, said, strict=True)):
        here, length = top + BAR * place, room * count / longest
        parts.append(_text(left - 8, here + 15, label, anchor="end", kind="mono"))
        if count:
            parts.append(f'<rect x="{left:.0f}" y="{here + 3}" width="{length:.1f}" height="16" rx="2" class="s0"/>')
        parts.append(_text(left + length + 8, here + 15, text, anchor="start", kind="soft"))
    return "\n".join([*parts, "</svg>"])


def stacked_chart(
    title: str, columns: Sequence[str], parts: Mapping[str, Sequence[float]], *, y_label: str = ""
) -> str:
    """Draw columns that are stacks of parts, with a legend.

    At most eight parts: beyond that the seven largest, and all others together in grey.

    Args:
        title: Printed above the chart.
        columns: The label of each column, for instance a day.
        parts: The part of each name in each column, none below 0.
        y_label: What the vertical axis shows, with its unit.

    Returns:
        The SVG document.

    Raises:
        ValueError: There is nothing above 0, or a part has another number of columns.

    Example:
        ```python
        from prefect_qruntime.observability.charts import stacked_chart

        assert "team a" in stacked_chart("Usage", ["Mon", "Tue"], {"team a": [1, 2], "team b": [3, 0]})
        ```
    """
    if any(len(values) != len(columns) for values in parts.values()):
        raise ValueError("each part needs a value for each column")
    ranked = sorted(parts, key=lambda name: (-sum(parts[name]), name))
    shown = {name: [*parts[name]] for name in ranked[: len(STACK)]}
    colours = dict(zip(shown, STACK, strict=False))
    if rest := ranked[len(STACK) :]:
        name = many(len(rest), "other")
        shown[name] = [sum(parts[other][place] for other in rest) for place in range(len(columns))]
        colours[name] = OTHERS
    highest = max((sum(values[place] for values in shown.values()) for place in range(len(columns))), default=0.0)
    if not highest > 0:
        raise ValueError("a chart needs at least one part above 0")
    top, foot = 48, HEIGHT + 18 * math.ceil(len(shown) / 2)
    unit = (WIDTH - LEFT - RIGHT) / len(columns)
    ticks = _ticks([0.0, highest])
    scale = (HEIGHT - top - BOTTOM) / ticks[-1]
    drawn = [*_frame(title[:80], foot), *_upright(y_label, top)]
    for value in ticks:
        y = HEIGHT - BOTTOM - scale * value
        drawn.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid" if value else "axis"))
        drawn.append(_text(LEFT - 8, y + 4, _number(value, ticks), anchor="end"))
    every = math.ceil(len(columns) / 8)  # as many labels as have room
    for place, label in enumerate(columns):
        x, y = LEFT + unit * place, float(HEIGHT - BOTTOM)
        for name, values in shown.items():
            height = scale * values[place]
            y -= height
            if height > 0:
                drawn.append(
                    f'<rect x="{x + 0.1 * unit:.1f}" y="{y:.1f}" width="{0.8 * unit:.1f}" height="{height:.1f}"'
                    f' fill="{colours[name]}"/>'
                )
        if place % every == 0:
            drawn.append(_text(x + unit / 2, HEIGHT - BOTTOM + 20, label))
    for place, name in enumerate(shown):
        x, y = LEFT + place % 2 * (WIDTH - LEFT) / 2, HEIGHT - 24 + 18 * (place // 2)
        drawn.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="12" height="12" rx="2" fill="{colours[name]}"/>')
        drawn.append(_text(x + 18, y + 10, _short(name, 36), anchor="start", kind="soft"))
    return "\n".join([*drawn, "</svg>"])


def markdown_image(title: str, svg: str) -> str:
    """The picture as a markdown image that carries its own data.

    Args:
        title: What a reader sees where the picture cannot be shown.
        svg: The SVG document.

    Returns:
        One line of markdown.
    """
    plain = title.translate(str.maketrans("[]\n", "() "))
    return f"![{plain}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _short(label: str, most: int = LABEL) -> str:
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-(most // 2) :]}"


def is_shortened(label: str) -> bool:
    """Whether `bar_chart` shows only a part of a label."""
    return len(label) > LABEL


def _error(rest: Sequence[float | None]) -> float:
    error = rest[0] if rest else None
    return error if error is not None and math.isfinite(error) else 0.0


def _ends(values: Sequence[float], *, margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A single value still needs an axis with a length.
    room = margin * (high - low) if high > low else max(abs(low), 1.0) * 0.05
    return low - room, high + room


def _ticks(values: Sequence[float], *, least: float = 0.0) -> list[float]:
    """Round numbers that enclose the values: steps of 1, 2 or 5 times a power of ten, at least `least`."""
    low, high = _ends(values, margin=0.0)
    rough = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """Format a tick's number with enough places to distinguish the ticks."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if max(map(abs, ticks)) >= 1e6 or step < 1e-6:
        return f"{value:.6g}"
    return f"{value + 0.0:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "\N{MINUS SIGN}")


def _frame(title: str, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f'{_STYLE}<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="ground"/>',
        _text(16, 26, title, anchor="start", kind="title"),
    ]


def _upright(label: str, top: float) -> list[str]:
    middle = (top + HEIGHT - BOTTOM) / 2
    return [f'<g transform="rotate(-90 20 {middle})">', _text(20, middle, label, kind="soft") + "</g>"]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
