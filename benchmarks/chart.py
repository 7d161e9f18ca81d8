"""Draw the charts of the page: ours beside each peer, and the curves over the number of waits.

`python -m benchmarks.chart [RESULTS.jsonl] [--out docs/images]`; needs matplotlib, which only the peers' environment
has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.lines import COLUMNS, IN_FLOW
from benchmarks.results import Results

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"official": "#6929c4", "prefect-qiskit": "#1192e8", "bare": "#8d8d8d", "ours": "#198038"}
NAMES = {
    "official": "official client",
    "prefect-qiskit": "prefect-qiskit",
    "bare": "bare httpx",
    "ours": "this package",
}

# Where less is better: row, metric, name, whether the flow variants are meant.
BARS = (
    ("one", "first", "requests, one job", True),
    ("ten", "requests", "requests, ten jobs", True),
    ("hour", "polls", "polls in an hour of queue", False),
    ("hours", "polls", "… {jobs} jobs", False),
    ("crowd", "requests", "{jobs} jobs: requests", False),
    ("crowd", "wall", "{jobs} jobs: wall time", False),
    ("crowd", "cpu", "{jobs} jobs: CPU time", False),
    ("flow", "wall", "{jobs} jobs in a flow: wall time", True),
    ("flow", "cpu", "{jobs} jobs in a flow: CPU time", True),
    ("flow", "memory", "{jobs} jobs in a flow: memory", True),
    ("eight", "bought", "jobs bought, eight 503 on the status", True),
    ("decode", "encoded", "{shots} shots → counts, encoded", False),
    ("import", "names", "import time", False),
    ("size", "mib", "installed size", False),
)


def peers_chart(results: Results, path: Path) -> None:
    """How many times as much each peer needs, ours being 1."""
    rows = []
    for key, metric, name, flows in BARS:
        ours = results.median(key, IN_FLOW["ours"] if flows else "ours", metric)
        if not ours:
            continue
        ratios = {}
        for column in COLUMNS[:-1]:
            value = results.median(key, IN_FLOW.get(column, column) if flows else column, metric)
            if value:
                ratios[column] = value / ours
        args = results.args.get(key, {})
        rows.append((name.format_map({what: f"{args.get(what, 0):,}" for what in ("jobs", "shots")}), ratios))
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.1), layout="constrained")
    for place, (_, ratios) in enumerate(rows):
        height = 0.8 / max(1, len(ratios))
        for number, (column, ratio) in enumerate(ratios.items()):
            at = place - 0.4 + height * (number + 0.5)
            axes.barh(at, ratio - 1, height, left=1, color=COLOURS[column])
            axes.annotate(
                f"{ratio:.2g}×" if ratio < 100 else f"{ratio:,.0f}×",
                (ratio, at),
                xytext=(3 if ratio >= 1 else -3, 0),
                textcoords="offset points",
                va="center",
                ha="left" if ratio >= 1 else "right",
                fontsize=7,
            )
    axes.set_xscale("log")
    axes.axvline(1, color=COLOURS["ours"], linewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel("how many times as much a peer needs (this package: 1), log scale")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[column]) for column in COLUMNS[:-1]]
    figure.legend(
        handles, [NAMES[column] for column in COLUMNS[:-1]], loc="outside upper right", ncols=3, frameon=False
    )
    _save(figure, path)


def waits_chart(results: Results, path: Path) -> None:
    """Requests a minute and the share of a core over the number of waits."""
    sizes = sorted({int(key.removeprefix("waits-")) for key, _, _ in results.numbers if key.startswith("waits-")})
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    shown = (("requests_per_minute", "requests a minute", 1.0), ("cpu_share", "% of one core", 100.0))
    for axes, (metric, title, factor) in zip(panels, (*shown, ("lag_p50", "median lag (s)", 1.0)), strict=True):
        for peer in ("official", "bare", "ours"):
            found = [(size, results.median(f"waits-{size}", peer, metric)) for size in sizes]
            points = [(size, value * factor) for size, value in found if value is not None]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[peer], label=NAMES[peer], markersize=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_plain)
        if metric == "lag_p50":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter("")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("jobs awaited in one process")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _plain(value: float, place: int) -> str:
    return f"{value:,g}"


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random ids: the same numbers give the same file.
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Draw both charts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=[ROOT / ".bench" / "results.jsonl"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--format", default="svg", choices=("svg", "png"))
    options = parser.parse_args()
    results = Results.read(line for path in options.results for line in path.read_text().splitlines())
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "benchmarks", "svg.fonttype": "path"})
    peers_chart(results, options.out / f"bench-peers.{options.format}")
    waits_chart(results, options.out / f"bench-waits.{options.format}")


if __name__ == "__main__":
    main()
