"""The long campaign: `python -m tests.chaos --runs 500`, and `--plain` for an unaided Prefect server.

Each run is written to a file as soon as it is over; the table at the end is what `docs/testing.md` shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos import campaign
from tests.support.prefect_server import running_server


def main() -> int:
    """Run the campaign; the exit code tells whether everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000, help="the first one")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time, each with a sandbox")
    parser.add_argument("--plain", action="store_true", help="an unaided `prefect server start`; no lock is freed")
    parser.add_argument("--out", type=Path, default=None, help="a file that gets a line for each run")
    parser.add_argument("--show", type=Path, nargs="+", default=None, help="only print the table of such files")
    options = parser.parse_args()
    if options.show:
        outcomes = [json.loads(line) for path in options.show for line in path.read_text().splitlines()]
    else:
        seeds = iter(range(options.seed, options.seed + options.runs))
        out = options.out or Path(tempfile.mkdtemp(prefix="chaos-")) / "outcomes.jsonl"
        outcomes = run(seeds, lanes=options.lanes, plain=options.plain, out=out)
        sys.stdout.write(f"Written to {out}.\n")
    sys.stdout.write("\n".join(table(outcomes)) + "\n")
    return int(any(outcome["wrong"] for outcome in outcomes))


def run(seeds: Iterator[int], *, lanes: int, plain: bool, out: Path) -> list[dict[str, Any]]:
    """Carry out the runs, some at a time."""
    from tests.chaos.lane import Lane, open_lane

    outcomes: list[dict[str, Any]] = []
    mutex = threading.Lock()

    def work(lane: Lane) -> None:
        while True:
            with mutex:
                seed = next(seeds, None)
            if seed is None:
                return
            try:
                outcome = asdict(lane.run(campaign.draw(seed)))
            except Exception:
                outcome = {"seed": seed, "wrong": [traceback.format_exc()]}
            with mutex:
                outcomes.append(outcome)
                with out.open("a") as file:
                    file.write(json.dumps(outcome) + "\n")
                if outcome["wrong"]:
                    sys.stdout.write(f"seed {seed}: {outcome['wrong']}\n")
                    sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="chaos-") as home, ExitStack() as stack:
        server = stack.enter_context(running_server(Path(home), plain=plain))
        opened = [stack.enter_context(open_lane(n, server.env, frees_locks=not plain)) for n in range(lanes)]
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


def table(outcomes: list[dict[str, Any]]) -> Iterable[str]:
    """What was seen, in lines of Markdown."""

    def counted(name: str) -> str:
        counts = Counter(itertools.chain.from_iterable(outcome.get(name, ()) for outcome in outcomes))
        return ", ".join(f"{word} {number}" for word, number in sorted(counts.items()))

    seeds = [outcome["seed"] for outcome in outcomes]
    met: Counter[str] = Counter()
    for outcome in outcomes:
        met.update(outcome.get("met", {}))
    odd = {name.removeprefix("odd: "): number for name, number in sorted(met.items()) if name.startswith("odd: ")}
    faults = {name: number for name, number in sorted(met.items()) if not name.startswith("odd: ")}
    ways = Counter(outcome.get("way", "?").split(",")[0] for outcome in outcomes)
    dialects = Counter(outcome.get("way", "?").split(", ")[-1] for outcome in outcomes)
    errors = Counter(error.split(":")[0] for outcome in outcomes for error in outcome.get("errors", ()))
    rows = {
        "runs": f"{len(outcomes)}, seeds {min(seeds)} to {max(seeds)}" if seeds else "0",
        "ways": _words(ways),
        "dialects": _words(dialects),
        "runs with a killed process": sum(bool(outcome.get("killed")) for outcome in outcomes),
        "processes killed, by what they had begun": counted("killed"),
        "odd answers met, by request": f"{sum(odd.values())}: {_words(odd)}",
        "other faults met": f"{sum(faults.values())}: {_words(faults)}",
        "processes that ended with an error": _words(errors) or "0",
        "ended": _words(Counter(outcome.get("ended", "?") for outcome in outcomes)),
        "more than one job, where that is not promised": sum(bool(outcome.get("excused")) for outcome in outcomes),
        "**something wrong**": sum(bool(outcome["wrong"]) for outcome in outcomes),
    }
    return ["| | seen |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
