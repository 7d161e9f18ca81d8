"""Write the page: the table of all rows, the curves' numbers, machine and versions, and how it was measured.

`python -m benchmarks.render [RESULTS.jsonl] [--out docs/benchmarks.md]`; run by `make bench`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lines import COLUMNS, GROUPS, PURCHASES, WHY, Line, shown
from benchmarks.results import Results

ROOT = Path(__file__).resolve().parent.parent
HEADS = {
    "official": "official client",
    "prefect-qiskit": "prefect-qiskit",
    "bare": "bare httpx",
    "ours": "**prefect-qruntime**",
}
UNEXPLAINED = "unexplained."
_CURVE = (
    ("requests_per_minute", "requests a minute", ""),
    ("cpu_share", "share of one core", "%"),
    ("grown_mib", "memory grown", "MiB"),
    ("lag_p50", "lag, median", "s"),
    ("lag_p99", "lag, 99 of 100", "s"),
    ("lag", "lag, worst", "s"),
)


def render(results: Results) -> str:
    """Return the page as Markdown."""
    return "\n".join([*_head(results), *_table(results), *_curve(results), *_long(results), *_method(results)]) + "\n"


def verdict(line: Line, results: Results) -> str:
    """Whether ours reached its goal, and by how much not."""
    if line.goal is None:
        return ""
    reached = line.value("ours", results)
    limit = line.goal.value(results)
    if reached is None or limit is None:
        return "not measured"
    if reached <= limit:
        return "met"
    over = f"by {(reached / limit - 1) * 100:.0f} %" if limit else f"by {shown(reached, line.unit)}"
    return f"**missed {over}**"


def missed(results: Results) -> list[Line]:
    """The lines whose goal was not reached, or not measured."""
    return [line for _, lines in GROUPS for line in lines if verdict(line, results) not in ("met", "")]


def _head(results: Results) -> Iterator[str]:
    about = results.about
    yield "# Benchmarks"
    yield ""
    if about.get("quick"):
        yield "> **A quick run**: few repeats and small sizes, to try the benchmarks out. Not for numbers to quote."
        yield ""
    lines = [line for _, lines in GROUPS for line in lines if line.goal is not None]
    met = len(lines) - len(missed(results))
    yield (
        f"{met} of {len(lines)} goals met. Written by `make bench` on {about['date']}: a row's peers in turn, "
        "in one run, against the sandbox, each measurement in a process of its own; medians of all repeats."
    )
    yield ""
    yield "![How many times more or less than this package](images/bench-peers.svg)"
    yield ""


def _table(results: Results) -> Iterator[str]:
    for title, lines in GROUPS:
        yield f"## {title}"
        yield ""
        yield "| what | " + " | ".join(HEADS[column] for column in COLUMNS) + " | goal | |"
        yield "|---" * (len(COLUMNS) + 3) + "|"
        notes = []
        for line in lines:
            cells = [_cell(line, column, results) for column in COLUMNS]
            what = _title(line, results)
            yield f"| {what} | " + " | ".join(cells) + f" | {_goal(line, results)} | {verdict(line, results)} |"
            if verdict(line, results).startswith("**missed"):
                notes.append(f"{what.lstrip('… ')}: {WHY.get((line.key, line.metric), UNEXPLAINED)}")
        yield ""
        for note in notes:
            yield note
            yield ""
        reasons = _reasons(lines, results)
        if reasons:
            yield f"n/a: {reasons}."
            yield ""


def _title(line: Line, results: Results) -> str:
    args = results.args.get(line.key, {})
    sizes = {"jobs": args.get("jobs", 0), "shots": args.get("shots", 0), "mapped": args.get("jobs", 0)}
    return line.title.format_map({name: f"{number:,}" for name, number in sizes.items()})


def _cell(line: Line, column: str, results: Results) -> str:
    peer = line.peer(column)
    value = line.value(column, results)
    if value is None:
        return "failed" if (line.key, peer) in results.errors else "n/a"
    text = shown(value, line.unit)
    if line.key in PURCHASES and not results.median(line.key, peer, "finished"):
        text += ", no result"
    return f"**{text}**" if column == "ours" else text


def _goal(line: Line, results: Results) -> str:
    if line.goal is None:
        return ""
    limit = line.goal.value(results)
    if line.goal.of is None:
        return f"≤ {shown(line.goal.limit, line.unit)}"
    reckoned = "" if limit is None else f" = {shown(limit, line.unit)}"
    return f"≤ {line.goal.limit:g} × {line.goal.said}{reckoned}"


def _reasons(lines: tuple[Line, ...], results: Results) -> str:
    """Why there are no numbers, the peers of a reason together."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for column in COLUMNS[:-1]:
            if results.median(line.key, line.peer(column), line.metric) is None and column in line.missing:
                peers = found.setdefault(line.missing[column], [])
                if HEADS[column] not in peers:
                    peers.append(HEADS[column])
    return "; ".join(f"{reason} ({', '.join(peers)})" for reason, peers in found.items())


def _curve(results: Results) -> Iterator[str]:
    sizes = sorted({int(key.removeprefix("waits-")) for key, _, _ in results.numbers if key.startswith("waits-")})
    if not sizes:
        return
    yield "## From one wait to thousands"
    yield ""
    yield "Jobs that stay queued, all awaited in one process, and then end within some seconds."
    yield ""
    yield "![Requests and CPU over the number of waits](images/bench-waits.svg)"
    yield ""
    yield "| | peer | " + " | ".join(f"{size:,}" for size in sizes) + " |"
    yield "|---" * (len(sizes) + 2) + "|"
    for metric, title, unit in _CURVE:
        for peer in ("official", "bare", "ours"):
            values = [results.median(f"waits-{size}", peer, metric) for size in sizes]
            cells = ["n/a" if value is None else shown(value, unit) for value in values]
            yield f"| {title} | {HEADS[peer]} | " + " | ".join(cells) + " |"
    yield ""


def _long(results: Results) -> Iterator[str]:
    hours = results.median("long", "ours", "hours")
    if hours is None:
        return
    numbers = {name: results.median("long", "ours", name) or 0.0 for name in ("polls", "cpu", "lag", "allowed")}
    yield "## A long queue"
    yield ""
    yield (
        f"{results.args['long']['jobs']} jobs, {hours:.1f} hours in the queue, clocks of both sides sped up: "
        f"{numbers['polls']:,.0f} polls for all together, {numbers['cpu']:.2g} s of CPU, the last end noticed after "
        f"{shown(numbers['lag'], 's')} (allowed: {shown(numbers['allowed'], 's')})."
    )
    yield ""


def _method(results: Results) -> Iterator[str]:
    about = results.about
    yield "## How it was measured"
    yield ""
    yield (
        f"{about['cores']} cores of {about['cpu']}, {about['memory_gib']} GiB, {about['system']}, Python "
        f"{about['python']}; others used {statistics.median(results.busy or [0]):.2g} cores (median) just before a "
        "measurement."
    )
    yield ""
    for side, title in (("ours", "Ours"), ("peers", "Peers, in their own environment")):
        yield f"- {title}: " + ", ".join(f"{name} {version}" for name, version in about[side].items()) + "."
    yield "- The sandbox and the Prefect server run in separate processes on the same cores."
    yield (
        "- The peers are unmodified: the official client takes the sandbox's addresses by documented parameters and "
        "its own environment variables, prefect-qiskit by the arguments of its client; its 300 s between attempts are "
        "1 s here. "
        "Bare httpx is the floor: one pool, one token, a poll every half second, no retries."
    )
    yield (
        "- Where Prefect matters (requests, money, jobs in a flow) prefect-qiskit and ours run in a flow with a "
        "Prefect server; elsewhere ours is the client alone and prefect-qiskit its `PrimitiveJob` block."
    )
    yield (
        "- Hours of queue: the sandbox and our process live on clocks sped up by the same factor, so lags include the "
        "work of a poll times that factor. The peers' poll rate does not change with the wait, so theirs is counted "
        "for some seconds and extrapolated to an hour."
    )
    yield (
        "- CPU is that of the measured process, memory its peak (jobs) or its growth (waits). Installed sizes are "
        "those of the distributions that are needed beside Prefect's own, without compiled caches."
    )
    yield "- Measure yourself: `make bench`, or `make bench-quick` in three minutes."


def main() -> None:
    """Render the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=[ROOT / ".bench" / "results.jsonl"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    results = Results.read(line for path in options.results for line in path.read_text().splitlines())
    options.out.write_text(render(results))
    for line in missed(results):
        sys.stdout.write(f"{_title(line, results)}: {verdict(line, results)}\n")


if __name__ == "__main__":
    main()
