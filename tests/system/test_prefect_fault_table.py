"""Every fault of Prefect's API in every phase of a flow: one job, the right result, and nothing left open.

The faults come from a proxy before a plain server, by count, and the flow waits at each phase, so nothing here depends
on the clock. Each fault is tried in one phase, and each phase with one fault at least;
`QRUNTIME_PREFECT_FAULTS=counted` tries each in all of them. `QRUNTIME_PREFECT_FAULTS=real` adds those with real
processes and real seconds: restarts and kills of the server, half a minute without it, and a second for each of its
answers.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from prefect_qruntime.observability.artifacts import artifact_key
from prefect_qruntime.sandbox import Sandbox
from tests.support.api_proxy import ApiProxy, Fault
from tests.support.plain_server import ROOT, PlainServer
from tests.system.story import PHASES

LIMIT = 400.0
WANTED = os.environ.get("QRUNTIME_PREFECT_FAULTS", "few")
REAL = WANTED == "real"
# What the flow's engine itself asks for is Prefect's to repeat: a flow run's own states and the like.
OURS = r"/api/(artifacts|variables|flow_run_states|flow_runs/[^/]+$|v2)"
_keys = itertools.count()


def answers(status: int) -> Callable[[ApiProxy, str], None]:
    def begin(proxy: ApiProxy, phase: str) -> None:
        # Before the purchase a fault must pass for the flow to go on; afterwards it need not.
        proxy.faults.append(Fault(OURS, status=status, times=2 if phase == "open" else None))

    return begin


def lost(proxy: ApiProxy, _phase: str) -> None:
    proxy.faults.append(Fault(OURS, lose=True, times=3))


def slow(proxy: ApiProxy, _phase: str) -> None:
    proxy.faults.append(Fault(OURS, delay=0.3))


def restarted(proxy: ApiProxy, _phase: str) -> None:
    proxy.refusals = 2


def killed(proxy: ApiProxy, _phase: str) -> None:
    proxy.faults.append(Fault(OURS, lose=True, times=1))
    proxy.refusals = 3


def down(proxy: ApiProxy, _phase: str) -> None:
    proxy.refusals = 4


FAULTS: dict[str, Callable[[ApiProxy, str], None]] = {
    "500": answers(500),
    "503": answers(503),
    "429": answers(429),
    "409": answers(409),
    "lost answers": lost,
    "slow": slow,
    "restart": restarted,
    "kill": killed,
    "down": down,
}


class Story:
    """A process that runs `story`."""

    def __init__(self, server: PlainServer, url: str) -> None:
        env = server.env(url) | {"PREFECT_INTEGRATIONS_QRUNTIME_CANCEL_LOOK_SECONDS": "0.5"}
        if REAL:
            env["QRUNTIME_STORY_LIMITS"] = "real"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.story"],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put("ended")

    def say(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def next(self) -> str:
        return self.lines.get(timeout=LIMIT)

    def end(self) -> int:
        """Let the process end, with all that it does then; returns its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(LIMIT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class World:
    """A plain server, a sandbox, a proxy, and the process of the flow."""

    def __init__(self, server: PlainServer, sandbox: Sandbox, proxy: ApiProxy) -> None:
        self.server, self.sandbox, self.proxy = server, sandbox, proxy
        self._story: Story | None = None

    def story(self) -> Story:
        if self._story is None or self._story.process.poll() is not None:
            self._story = Story(self.server, self.proxy.url)
        return self._story

    def calm(self) -> None:
        self.proxy.faults.clear()
        self.proxy.refusals = 0

    def run(self, phase: str, begin: Callable[[], Any], finish: Callable[[], Any]) -> Any:
        """Run the flow once, with a fault from the beginning of a phase to its end; returns the result."""
        try:
            return self._run(phase, begin, finish)
        except BaseException:
            finish()  # the server is there again for the next case
            self.calm()
            self.stop()  # nobody knows where it stands
            raise

    def _run(self, phase: str, begin: Callable[[], Any], finish: Callable[[], Any]) -> Any:
        self.sandbox.reset()
        self.sandbox.control.hold()
        before = set(self.server.locks())  # of a process that was stopped; the next case is not to fail for it
        story, result = self.story(), None
        story.say(
            orjson.dumps({"connection": self.sandbox.connection("cloud"), "key": f"table-{next(_keys)}"}).decode()
        )
        while True:
            line = story.next()
            word, _, said = line.partition(" ")
            if word != "at":
                assert word == "result", line
                result = orjson.loads(said)
                continue
            finish()  # the phase before is over
            if said == "end":  # where a busy server took long to free the key's lock, it is no part of the end
                assert until(lambda: not set(self.server.locks()) - before), self.server.locks()
            if said == phase:
                begin()
            if said == "wait":
                self.sandbox.control.release()
            if said == "end":
                break
            story.say()
        if phase == "end":
            story.say()
            assert story.end() == 0
            finish()
        else:
            story.say()
        return result

    def check(self, result: Any) -> None:
        assert result == {"1": 10}
        (job,) = self.sandbox.control.jobs()
        assert self.sandbox.control.open_sessions() == []
        # A process that lives on completes the page; one that ended has said that it did not.
        alive = self._story is not None and self._story.process.poll() is None
        if alive:
            assert until(lambda: self.page(job["id"]) == "Completed"), self.page(job["id"])

    def page(self, job_id: str) -> str | None:
        """The state that the newest version of a job's page tells; a lost answer to its creation makes two."""
        wanted = {"artifacts": {"key": {"any_": [artifact_key("job", job_id)]}}, "sort": "UPDATED_DESC", "limit": 1}
        found = self.server.ask("/artifacts/filter", wanted)
        return found[0]["metadata_"].get("state") if found else None

    def stop(self) -> None:
        if self._story is not None:
            self._story.stop()


def until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server = PlainServer(tmp_path_factory.mktemp("plain"))
    server.start()
    with Sandbox(queue_time=0, run_time=0) as sandbox, ApiProxy(server.port).running() as proxy:
        sandbox.warm_up()
        made = World(server, sandbox, proxy)
        try:
            yield made
        finally:
            made.stop()
            server.stop()


FEW = list(zip(FAULTS, itertools.cycle(PHASES), strict=False))
CASES = FEW if WANTED == "few" else list(itertools.product(FAULTS, PHASES))


def test_each_fault_and_each_phase_is_tried() -> None:
    assert WANTED in ("few", "counted", "real"), "QRUNTIME_PREFECT_FAULTS is few, counted or real"
    assert {fault for fault, _ in FEW} == set(FAULTS)
    assert {phase for _, phase in FEW} == set(PHASES)


@pytest.mark.parametrize(("fault", "phase"), CASES)
def test_one_job_the_right_result_and_nothing_open(world: World, fault: str, phase: str) -> None:
    result = world.run(phase, lambda: FAULTS[fault](world.proxy, phase), world.calm)
    world.check(result)


def real_faults(world: World) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Faults that begin with the first function; the second one ends them, if they have not ended by themselves."""
    server, proxy = world.server, world.proxy

    def stop_and_start(how: signal.Signals, pause: float) -> Callable[[], None]:
        def begin() -> None:
            server.stop(how)

            def later() -> None:
                time.sleep(pause)
                server.start()

            begun.append(thread := threading.Thread(target=later))
            thread.start()

        return begin

    begun: list[threading.Thread] = []

    def wait() -> None:
        while begun:
            begun.pop().join()

    def crawl() -> None:
        proxy.faults.append(Fault("/api/", delay=1.0))

    return {
        "restart": (stop_and_start(signal.SIGTERM, 0), wait),
        "kill": (stop_and_start(signal.SIGKILL, 0), wait),
        "30 s down": (stop_and_start(signal.SIGTERM, 30), wait),
        "1 s latency": (crawl, world.calm),
    }


if REAL:  # minutes of them

    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize("fault", ["restart", "kill", "30 s down", "1 s latency"])
    def test_with_real_restarts_and_seconds(world: World, fault: str, phase: str) -> None:
        begin, finish = real_faults(world)[fault]
        result = world.run(phase, begin, finish)
        world.check(result)
