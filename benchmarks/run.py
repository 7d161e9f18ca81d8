"""Run the plan: each measurement in a process of its own, the sandbox and the Prefect server in others.

`python -m benchmarks.run [--quick] [--repeats N] [--only KEY …] [--out FILE]` writes JSON lines, the first one
telling about the machine and the versions. Run by `make bench`, which then renders the page.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.machine import describe
from benchmarks.neighbours import PrefectServer, SandboxProcess, plain_environment
from benchmarks.plan import Measurement, plan
from benchmarks.watched import Watched

ROOT = Path(__file__).resolve().parent.parent
OURS = {"ours", "ours-legacy", "ours-flow", "empty-flow"}
_SETTLED = 10.0  # per cent of one core


class Bench:
    """Runs measurements and keeps the neighbours they need.

    Args:
        peers_python: Python of the peers' environment.
        out: Where the JSON lines go.
        patience: Most seconds to wait between measurements for the neighbours to come to rest.
    """

    def __init__(self, peers_python: Path, out: TextIO, patience: float) -> None:
        self._peers_python = peers_python
        self._patience = patience
        self._out = out
        self._stack = ExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self._sandbox: SandboxProcess | None = None
        self._server: PrefectServer | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._sandbox is not None:
            self._sandbox.stop()
        if self._server is not None:
            self._server.stop()
        self._stack.close()

    def write(self, record: dict[str, Any]) -> None:
        """Add a line."""
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    def measure(self, what: Measurement) -> Iterator[dict[str, Any]]:
        """Run one row: all peers in turn, again and again."""
        for repeat in range(what.repeats):
            for peer in what.peers:
                busy = self._calm() if what.pause else self._busy()
                record: dict[str, Any] = {"key": what.key, "peer": peer, "repeat": repeat, "busy": busy}
                record |= {"args": what.args, "scale": what.scale}
                try:
                    record["numbers"] = self._child(what, peer)
                except Exception as error:  # one measurement that fails, or whose neighbours do, ends no run of an hour
                    record["error"] = f"{type(error).__name__}: {error}"[:1500]
                self.write(record)
                yield record

    def _child(self, what: Measurement, peer: str) -> dict[str, float]:
        with ExitStack() as stack:
            return self._child_in(stack, what, peer)

    def _child_in(self, stack: ExitStack, what: Measurement, peer: str) -> dict[str, float]:
        sandbox = self._fresh_sandbox(what.sandbox)
        environment = plain_environment(self._scratch / "home")
        if what.server:
            server = self._prefect_server(what.collecting)
            environment |= server.environment
            watched = stack.enter_context(Watched(server, what.aside)) if what.aside else None
            environment |= watched.environment if watched is not None else {}
        else:
            watched = None
        out = self._scratch / "numbers.json"
        out.unlink(missing_ok=True)
        order = {
            "row": what.row,
            "peer": peer,
            "args": what.args,
            "scale": what.scale,
            "out": str(out),
            **sandbox.connection,
        }
        python = sys.executable if peer in OURS or peer == "bare" else str(self._peers_python)
        try:
            done = subprocess.run(
                [python, "-m", "benchmarks.child"],
                input=json.dumps(order),
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=what.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done within {what.timeout:.0f} s") from None
        if done.returncode or not out.exists():
            said = done.stderr.strip()
            shown = said if len(said) <= 1400 else f"{said[:700]} … {said[-700:]}"
            raise RuntimeError(f"exit code {done.returncode}: {shown}")
        numbers: dict[str, float] = json.loads(out.read_text())
        return numbers if watched is None else watched.numbers(numbers)

    def _prefect_server(self, collecting: bool) -> PrefectServer:
        """The one that runs, if it is of the kind; each kind has a database of its own."""
        last = self._server
        if last is not None and last.alive and last.collecting == collecting:
            return last
        if last is not None and last.alive:
            last.stop()
        self._server = PrefectServer(self._scratch / ("collecting" if collecting else "server"), collecting=collecting)
        return self._server

    def _fresh_sandbox(self, options: dict[str, Any]) -> SandboxProcess:
        last, self._sandbox = self._sandbox, None
        if last is not None and last.options == options and last.alive:
            try:
                last.reset()
            except OSError:  # stuck, or gone: the next measurement gets another one
                last.stop()
            else:
                self._sandbox = last
                return last
        elif last is not None:
            last.stop()
        self._sandbox = SandboxProcess(options)
        return self._sandbox

    def _calm(self) -> float:
        """Wait until what the last measurement left to do is done; return how busy the machine is, in cores."""
        until = time.monotonic() + self._patience
        watched = [process for process in (self._server, self._sandbox) if process is not None and process.alive]
        while watched and time.monotonic() < until:
            if sum(process.cpu_percent(0.5) for process in watched) < _SETTLED:
                break
        return self._busy()

    def _busy(self) -> float:
        return round(float(psutil.cpu_percent(0.5)) * (psutil.cpu_count() or 1) / 100, 2)


def main() -> None:
    """Run the plan and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and few, to try it out")
    parser.add_argument("--repeats", type=int, default=99, help="at most so many repeats of each row")
    parser.add_argument("--only", nargs="*", default=[], help="keys of rows")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "results.jsonl")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # The sandboxes' control port takes this token; they inherit it.
    os.environ.setdefault("QRUNTIME_SANDBOX_TOKEN", secrets.token_urlsafe(32))
    # Ended from outside, it takes its neighbours along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    patience = 3.0 if options.quick else 20.0
    with options.out.open("w") as out, Bench(options.peers_python, out, patience) as bench:
        bench.write(describe(options.peers_python, quick=options.quick))
        for what in plan(quick=options.quick):
            if options.only and what.key not in options.only:
                continue
            for record in bench.measure(replace(what, repeats=min(what.repeats, options.repeats))):
                shown = record.get("error") or " ".join(f"{k}={v:.4g}" for k, v in record["numbers"].items())
                minutes, seconds = divmod(int(time.monotonic() - begun), 60)
                sys.stdout.write(f"{minutes:3d}:{seconds:02d}  {record['key']:<11} {record['peer']:<20} {shown}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
