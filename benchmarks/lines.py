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
    """

    title: str
    key: str
    metric: str
    unit: str = ""
    goal: Goal | None = None
    peers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def peer(self, column: str) -> str:
        """The peer measured for a column."""
        return self.peers.get(column, column)


NO_FLOW = "not a Prefect integration"
ONLY_OURS = "only ours is held to it"
FLAT = "keeps one pace everywhere"
_DECODE = {"prefect-qiskit": "uses the official decoder", "bare": "decodes nothing"}

_WEIGHT = {"bare": "part of Prefect"}


def _purchase(title: str, key: str) -> Line:
    return Line(title, key, "bought", goal=Goal(1), peers=IN_FLOW, missing={"bare": "leaves it to its caller"})


GROUPS: tuple[tuple[str, tuple[Line, ...]], ...] = (
    (
        "Requests",
        (
            Line("Requests for one job, looks at its state aside", "one", "first", goal=Goal(4), peers=IN_FLOW),
            Line("… for the second job of a process", "one", "second", goal=Goal(2), peers=IN_FLOW),
            Line("Requests for ten jobs in sequence, looks aside", "ten", "requests", goal=Goal(22), peers=IN_FLOW),
            Line("… TCP connections for them", "ten", "connections", goal=Goal(2), peers=IN_FLOW),
        ),
    ),
    (
        "Waiting",
        (
            Line("Looks in one hour of queue, one job", "hour", "polls", goal=Goal(400)),
            Line(
                "… and the end noticed after",
                "hour",
                "lag",
                "s",
                Goal(1, ("hour", "ours", "allowed"), "max(0.5 s, 2 %)"),
            ),
            Line("Looks in one hour of queue, {jobs} jobs in one process", "hours", "polls", goal=Goal(800)),
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
            Line("… … looks for each job", "running", "polls_per_job"),
            Line(
                "… polling in a session",
                "session",
                "p50",
                "s",
                Goal(0.3),
                missing={"prefect-qiskit": "knows no sessions", "bare": FLAT},
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
            Line(
                "{jobs} concurrent jobs in a flow: wall time",
                "flow",
                "wall",
                "s",
                Goal(0.7, ("flow", "prefect-qiskit-flow", "wall"), "prefect-qiskit"),
                peers=IN_FLOW,
                missing={"official": NO_FLOW, "bare": NO_FLOW},
            ),
            Line(
                "… CPU time",
                "flow",
                "cpu",
                "s",
                Goal(1, ("flow", "prefect-qiskit-flow", "cpu"), "prefect-qiskit"),
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
                "Seven-task flow, beside empty tasks plus the raw calls",
                "lifecycle",
                "ratio",
                "×",
                Goal(1.15),
                missing=dict.fromkeys(COLUMNS[:3], ONLY_OURS),
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
            _purchase("Jobs bought: connection cut after the job was taken", "cut"),
            _purchase("… 503 in place of that answer", "gateway"),
            _purchase("… two 503 on the job's status", "two"),
            _purchase("… eight of them", "eight"),
        ),
    ),
    (
        "Weight",
        (
            Line("`import` of the package, beyond Prefect's", "import", "seconds", "s", Goal(0.15), missing=_WEIGHT),
            Line("… and of the names that a flow uses", "import", "names", "s", Goal(0.15), missing=_WEIGHT),
            Line("… of qiskit and numpy, how many come along", "import", "heavy", goal=Goal(0), missing=_WEIGHT),
            Line("Installed size beyond Prefect's", "size", "mib", "MiB", Goal(10), missing=_WEIGHT),
        ),
    ),
)
# Shown only under a line that missed its goal; one that has no word here is shown as unexplained.
WHY: dict[tuple[str, str], str] = {
    ("flow", "wall"): (
        "here a job is three task runs and an artifact that is kept up to date from its submission on, in "
        "prefect-qiskit one task run and one artifact at its end. Prefect's server, one process on the same cores, "
        "takes some 25 ms for each write of an artifact: most of the time is spent there."
    ),
    ("flow", "cpu"): (
        "three task runs for each job in place of one, each with its own states and events, and the calls to Prefect "
        "that write the job's artifact."
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
