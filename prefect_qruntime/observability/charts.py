"""Charts as SVG, small enough to live inside a markdown artifact. No plotting library is needed."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["bar_chart", "line_chart", "markdown_image", "stacked_chart"]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 40, 52
# The Okabe-Ito palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
TICKS = 5
STACK = (*COLOURS, "#56b4e9", "#882255")
OTHERS = "#999999"
BAR, BARS, LABEL = 20, 16, 24  # height of a bar's row, most bars, most characters of a label


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str = "",
    y_label: str = "",
) -> str:
    """Draw lines with a mark at each point.

    Args:
        title: Printed above the chart.
        series: The points (x, y) of each line by its name; what is not finite is left out.
        x_label: What the horizontal axis shows, with its unit.
        y_label: What the vertical axis shows, with its unit.

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
    lines = {name: [(x, y) for x, y in points if math.isfinite(x + y)] for name, points in series.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    x_low, x_high = _bounds([x for x, _ in points])
    y_low, y_high = _bounds([y for _, y in points], margin=0.05)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        # A ground of its own, because the page may be dark.
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, title, anchor="start", size=14),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, y_label)}</g>',
    ]
    for step in range(TICKS):
        x = x_low + (x_high - x_low) * step / (TICKS - 1)
        y = y_low + (y_high - y_low) * step / (TICKS - 1)
        parts.append(_line(across(x), TOP, across(x), HEIGHT - BOTTOM))
        parts.append(_line(LEFT, down(y), WIDTH - RIGHT, down(y)))
        parts.append(_text(across(x), HEIGHT - BOTTOM + 18, f"{x:.4g}"))
        parts.append(_text(LEFT - 6, down(y) + 4, f"{y:.4g}", anchor="end"))
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in line]
        parts.append(_text(WIDTH - RIGHT - 6, TOP + 16 + 16 * place, name, anchor="end", colour=colour))
    return "\n".join([*parts, "</svg>"])


def bar_chart(title: str, counts: Mapping[str, int]) -> str:
    """Draw a histogram with one bar a label, in the order of the labels.

    At most 16 rows: beyond that the most frequent 15, and how often all others together as a number without a bar.

    Args:
        title: Printed above the chart.
        counts: How often by label, for instance by bitstring; long labels are shortened in their middle.

    Returns:
        The SVG document, at most 5 kB.

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
    left = 24 + 7.5 * max(len(label) for label, _, _ in bars)
    room = WIDTH - left - 16 - 7.5 * max(len(text) for text in said)
    longest = max(length for _, _, length in bars)
    height = TOP + BAR * len(bars) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="monospace" font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 22, title[:80], anchor="start", size=14),
    ]
    for place, ((label, _, count), text) in enumerate(zip(bars, said, strict=True)):
        top, length = TOP + BAR * place, room * count / longest
        parts.append(f'<text x="{left - 8:.0f}" y="{top + 14}" text-anchor="end">{escape(label)}</text>')
        if count:
            parts.append(f'<rect x="{left:.0f}" y="{top + 2}" width="{length:.1f}" height="15" fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{left + length + 6:.0f}" y="{top + 14}">{text}</text>')
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
        name = f"{len(rest)} others"
        shown[name] = [sum(parts[other][place] for other in rest) for place in range(len(columns))]
        colours[name] = OTHERS
    highest = max((sum(values[place] for values in shown.values()) for place in range(len(columns))), default=0.0)
    if not highest > 0:
        raise ValueError("a chart needs at least one part above 0")
    foot = HEIGHT + 18 * math.ceil(len(shown) / 2)
    unit = (WIDTH - LEFT - RIGHT) / len(columns)
    tick = _round_up(highest / (TICKS - 1))
    scale = (HEIGHT - TOP - BOTTOM) / (tick * (TICKS - 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {foot}" width="{WIDTH}" height="{foot}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{foot}" fill="#ffffff"/>',
        _text(LEFT, 18, title[:80], anchor="start", size=14),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, y_label)}</g>',
    ]
    for step in range(TICKS):
        value = tick * step
        y = HEIGHT - BOTTOM - scale * value
        lines += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, f"{value:.4g}", anchor="end")]
    every = math.ceil(len(columns) / 8)  # as many labels as have room
    for place, label in enumerate(columns):
        x, y = LEFT + unit * place, float(HEIGHT - BOTTOM)
        for name, values in shown.items():
            height = scale * values[place]
            y -= height
            if height > 0:
                lines.append(
                    f'<rect x="{x + 0.1 * unit:.1f}" y="{y:.1f}" width="{0.8 * unit:.1f}" height="{height:.1f}"'
                    f' fill="{colours[name]}"/>'
                )
        if place % every == 0:
            lines.append(_text(x + unit / 2, HEIGHT - BOTTOM + 18, label))
    for place, name in enumerate(shown):
        x, y = LEFT + place % 2 * (WIDTH - LEFT) / 2, HEIGHT - 20 + 18 * (place // 2)
        lines.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="11" height="11" fill="{colours[name]}"/>')
        lines.append(_text(x + 17, y + 10, _short(name, 36), anchor="start"))
    return "\n".join([*lines, "</svg>"])


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


def _round_up(value: float) -> float:
    """The next number that reads well, a few times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        power * factor for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * factor >= value * (1 - 1e-9)
    )


def _bounds(values: list[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A single value still needs an axis with a length.
    room = margin * (high - low) if high > low else max(abs(low), 1.0) * 0.05
    return low - room, high + room


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, colour: str = "#222222") -> str:
    shown = escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{shown}</text>'
