"""The lines of the table: what is shown, in which unit, and what ours is to reach."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.results import Results

COLUMNS = ("official", "prefect-qiskit", "bare", "ours")
IN_FLOW = {"prefect-qiskit": "prefect-qiskit-flow", "ours": "ours-flow"}


@dataclass(frozen=True)
class Goal:
    """An upper limit: a number, or a multiple of what a peer (or ours in another metric) was measured with.

    Attributes:
        limit: The number or the factor.
        of: Row, peer and metric that the factor applies to.
        said: How the reference is called in the table.
    """

    limit: float
    of: tuple[str, str, str] | None = None
    said: str = ""

    def value(self, results: Results) -> float | None:
        """The limit in the line's own unit, or None where the reference was not measured."""
        if self.of is None:
            return self.limit
        reference = results.median(*self.of)
        return None if reference is None else self.limit * reference


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        title: What it is.
        key: Row of the measurement.
        metric: Which of its numbers.
        unit: `s`, `MiB`, `%` …, or nothing for counts.
        goal: What ours is to reach; None for information.
        peers: Column to peer, where it is another than the column's own.
        missing: Column to the reason why nothing was measured.
        worst: Whether the worst of all repeats is shown for ours and held to the goal, rather than the median.
    """

    title: str
    key: str
    metric: str
    unit: str = ""
    goal: Goal | None = None
    peers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    worst: bool = False

    def value(self, column: str, results: Results) -> float | None:
        """What is shown in a column."""
        read = results.worst if self.worst and column == "ours" else results.median
        return read(self.key, self.peer(column), self.metric)

    def peer(self, column: str) -> str:
        """The peer measured for a column."""
        return self.peers.get(column, column)


NO_FLOW = "not a Prefect integration"
ONLY_OURS = dict.fromkeys(COLUMNS[:3], "measured only for ours")
FLAT = "polls at one rate everywhere"
_DECODE = {"prefect-qiskit": "uses the official decoder", "bare": "decodes nothing"}

_WEIGHT = {"bare": "part of Prefect"}


def _purchase(title: str, key: str) -> Line:
    return Line(title, key, "bought", goal=Goal(1), peers=IN_FLOW, missing={"bare": "left to its caller"})


def _in_flow(title: str, where: tuple[str, str, str], goal: Goal) -> tuple[Line, Line]:
    """The median, and the worst of all repeats, of what prefect-qiskit and ours do in a flow."""
    key, metric, unit = where
    missing = {"official": NO_FLOW, "bare": NO_FLOW}
    return (
        Line(title, key, metric, unit, goal, peers=IN_FLOW, missing=missing),
        Line("… … worst", key, metric, unit, goal, peers=IN_FLOW, missing=missing, worst=True),
    )


def _at_once(title: str, key: str) -> tuple[Line, ...]:
    """What became of flow runs that were started at once."""
    return (
        Line(f"{title}: failed", key, "failed", goal=Goal(0), peers=IN_FLOW, missing=ONLY_OURS),
        Line("… not started by Prefect's worker", key, "unbegun", peers=IN_FLOW, missing=ONLY_OURS),
        Line("… jobs bought", key, "jobs", peers=IN_FLOW, missing=ONLY_OURS),
        Line("… the last one over after", key, "wall", "s", peers=IN_FLOW, missing=ONLY_OURS),
    )


GROUPS: tuple[tuple[str, tuple[Line, ...]], ...] = (
    (
        "Requests",
        (
            Line("Requests for one job, not counting polls", "one", "first", goal=Goal(4), peers=IN_FLOW),
            Line("… for the second job of a process", "one", "second", goal=Goal(2), peers=IN_FLOW),
            Line(
                "Requests for ten jobs in sequence, not counting polls", "ten", "requests", goal=Goal(22), peers=IN_FLOW
            ),
            Line("… TCP connections for them", "ten", "connections", goal=Goal(2), peers=IN_FLOW),
        ),
    ),
    (
        "Waiting",
        (
            Line("Polls in one hour of queue, one job", "hour", "polls", goal=Goal(200)),
            Line(
                "… and the end noticed after",
                "hour",
                "lag",
                "s",
                Goal(1, ("hour", "ours", "allowed"), "max(0.5 s, 2 %)"),
            ),
            Line("Polls in one hour of queue, {jobs} jobs in one process", "hours", "polls", goal=Goal(250)),
            Line(
                "… and the last end noticed after",
                "hours",
                "lag",
                "s",
                Goal(1, ("hours", "ours", "allowed"), "max(0.5 s, 2 %)"),
            ),
            Line(
                "Job done → caller knows, median: websocket",
                "socket",
                "p50",
                "s",
                Goal(0.02),
                peers={"ours": "ours-legacy"},
                missing={
                    "official": "no websocket since 0.38.0",
                    "prefect-qiskit": "no websocket",
                    "bare": "no websocket",
                },
            ),
            Line("… polling while jobs run", "running", "p50", "s", Goal(0.3)),
            Line("… … polls for each job", "running", "polls_per_job"),
            Line(
                "… polling in a session",
                "session",
                "p50",
                "s",
                Goal(0.3),
                missing={"prefect-qiskit": "does not support sessions", "bare": FLAT},
            ),
        ),
    ),
    (
        "Speed",
        (
            Line(
                "{jobs} concurrent jobs, clients alone: wall time",
                "crowd",
                "wall",
                "s",
                Goal(1.1, ("crowd", "bare", "wall"), "bare httpx"),
            ),
            Line("… CPU time", "crowd", "cpu", "s", Goal(0.6, ("crowd", "bare", "cpu"), "bare httpx")),
            Line("… requests", "crowd", "requests", goal=Goal(500)),
            *_in_flow(
                "{jobs} concurrent jobs in a flow, to the end of its process: wall time",
                ("flow", "wall", "s"),
                Goal(0.7, ("flow", "prefect-qiskit-flow", "wall"), "prefect-qiskit"),
            ),
            *_in_flow(
                "… CPU time", ("flow", "cpu", "s"), Goal(1, ("flow", "prefect-qiskit-flow", "cpu"), "prefect-qiskit")
            ),
            Line(
                "… wall time, after Prefect's server has rested",
                "rest",
                "wall",
                "s",
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… pages in Prefect then",
                "flow",
                "pages",
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… Prefect server's CPU time until it rests",
                "rest",
                "server_cpu",
                "s",
                Goal(1.3, ("rest", "empty-flow", "server_cpu"), "as many empty tasks"),
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… Prefect server at rest after the process's end",
                "rest",
                "rest",
                "s",
                Goal(1, ("rest", "empty-flow", "rest"), "as many empty tasks"),
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… peak memory of the process",
                "flow",
                "memory",
                "MiB",
                Goal(1, ("flow", "prefect-qiskit-flow", "memory"), "prefect-qiskit"),
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… requests to the service",
                "flow",
                "requests",
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "Calls of Prefect's API for ten jobs gathered in a flow",
                "calls",
                "calls",
                goal=Goal(25),
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
                worst=True,
            ),
            Line(
                "Prefect server's slowest answer during {mapped} mapped jobs",
                "mapped",
                "standstill",
                "s",
                Goal(5),
                peers=IN_FLOW,
                missing=ONLY_OURS,
                worst=True,
            ),
            Line(
                "… wall time",
                "mapped",
                "wall",
                "s",
                Goal(1.3, ("mapped", "empty-flow", "wall"), "as many empty tasks"),
                peers=IN_FLOW,
                missing=ONLY_OURS,
            ),
            *_at_once("{jobs} flow runs at once on two workers, plain Prefect server", "workers"),
            *_at_once("{jobs} flow runs at once, with `prefect-qruntime server`", "team"),
            *_at_once("{jobs} flow runs at once, the same, `--limit 5` for each worker", "limited"),
            Line(
                "Submission with a fresh explicit key",
                "key",
                "seconds",
                "s",
                Goal(5),
                peers=IN_FLOW,
                missing=ONLY_OURS,
                worst=True,
            ),
            Line(
                "Seven-task flow, beside empty tasks plus the raw calls",
                "lifecycle",
                "ratio",
                "×",
                Goal(1.15),
                missing=ONLY_OURS,
            ),
            Line(
                "{shots} shots → counts, plain JSON",
                "decode",
                "plain",
                "s",
                Goal(2, ("decode", "ours", "loads"), "orjson.loads"),
                missing={**_DECODE, "official": "does not read it"},
            ),
            Line("… encoded form", "decode", "encoded", "s", Goal(0.06), missing=_DECODE),
        ),
    ),
    (
        "Many waits in one process",
        (
            Line(
                "1,000 waits: memory grown, for each job",
                "waits-1000",
                "kb_per_job",
                "kB",
                Goal(50),
                missing={
                    "official": "a thread for each wait",
                    "prefect-qiskit": "not measured: it waits as bare httpx does, with a new connection each time",
                },
            ),
            Line(
                "… share of one core",
                "waits-1000",
                "cpu_share",
                "%",
                Goal(0.1),
                missing={
                    "official": "a thread for each wait",
                    "prefect-qiskit": "not measured: it waits as bare httpx does, with a new connection each time",
                },
            ),
        ),
    ),
    (
        "Money",
        (
            _purchase("Jobs submitted: connection cut after the job was accepted", "cut"),
            _purchase("… 503 instead of that answer", "gateway"),
            _purchase("… two 503 on the job's status", "two"),
            _purchase("… eight of them", "eight"),
        ),
    ),
    (
        "Weight",
        (
            Line("`import` of the package, beyond Prefect's", "import", "seconds", "s", Goal(0.15), missing=_WEIGHT),
            Line("… and of the names that a flow uses", "import", "names", "s", Goal(0.15), missing=_WEIGHT),
            Line("… how many of qiskit and numpy it imports", "import", "heavy", goal=Goal(0), missing=_WEIGHT),
            Line("Installed size beyond Prefect's", "size", "mib", "MiB", Goal(10), missing=_WEIGHT),
        ),
    ),
)
# Shown only under a line that missed its goal; one that has no word here is shown as unexplained.
WHY: dict[tuple[str, str], str] = {
    ("flow", "wall"): (
        "here a job is three task runs, in prefect-qiskit one. Prefect's server, one process on the same cores, takes "
        "some 9 ms for each of their nine events, and SQLite gives a page its turn among them."
    ),
    ("flow", "cpu"): (
        "three task runs for each job in place of one, each with its own states and events, and the calls to Prefect "
        "that write the job's artifact."
    ),
    ("rest", "server_cpu"): "one artifact and three events for each job come on top of its three task runs.",
    ("rest", "rest"): (
        "Prefect's server works off the events of the task runs after the flow is over; what as many empty tasks leave "
        "it to do is the floor."
    ),
    ("mapped", "standstill"): (
        "Prefect's own: cyclic garbage of SQLite cursors is collected on the server's event loop while another thread "
        "waits for SQLite's lock. `prefect-qruntime server` avoids it."
    ),
    ("lifecycle", "ratio"): (
        "empty tasks write nothing; here the job and the session are noted in Prefect as they open, change and end, "
        "which is five calls to its server that the tasks wait for."
    ),
    ("socket", "p50"): (
        "after the socket's sign the state is read by a request of its own, on cores that the sandbox and whatever "
        "else runs there share."
    ),
    ("decode", "plain"): (
        "after `orjson.loads`, which is the unit here, each outcome is still to be counted; in a small result what is "
        "done once for each counts more."
    ),
    ("import", "names"): (
        "the first name that a flow uses loads client and tasks, about a hundred small modules of which none takes "
        "more than a tenth of the time; `import prefect_qruntime` by itself loads none of them."
    ),
}

# Rows whose numbers say how many jobs, and how often a result came in the end.
PURCHASES = frozenset({"cut", "gateway", "two", "eight"})


def shown(value: float, unit: str) -> str:
    """A number as the table shows it."""
    if unit == "%":
        return f"{value * 100:.3g} %"
    if unit == "s" and value < 0.1:
        return f"{value * 1000:.2g} ms"
    text = f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
    return f"{text} {unit}".strip()
