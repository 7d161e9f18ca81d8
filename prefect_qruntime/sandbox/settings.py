"""The options of a sandbox and their checks; all but `seed` may change at run time."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

_NON_NEGATIVE = (
    "queue_time",
    "run_time",
    "token_lifetime",
    "list_lag",
    "get_lag",
    "results_lag",
    "usage_lag",
    "cancel_lag",
    "ws_lead",
    "resource_unit_rate",
)
_POSITIVE = ("clock_scale", "max_ttl", "interactive_ttl", "idle_close")


@dataclass(slots=True)
class Settings:
    """The options of a sandbox. All durations are service seconds (real seconds x `clock_scale`).

    Attributes:
        queue_time: Time a job stays Queued, unless its backend has its own.
        run_time: Time a job stays Running; this is also what it costs in QPU seconds.
        clock_scale: How many service seconds pass in one real second.
        token_lifetime: Life of an IAM token.
        create_limit: Job creates per minute and user; `None` is no limit (the service: 5).
        retry_after: Whether a 429 carries `Retry-After`.
        allow_dedicated: `False` refuses dedicated sessions (code 1352), as the Open Plan does.
        websocket: `True` offers the legacy socket, `"both"` also under `/api/v1`, `False` none.
        list_lag: Time until a new job or session shows in lists.
        get_lag: Time a new job answers 404.
        results_lag: Time the results of a completed job answer 204.
        usage_lag: Time until the usage of an ended job is final and booked.
        cancel_lag: Time until an accepted cancel takes effect on a running job.
        ws_lead: Time by which the socket ends before the job's status says so.
        usage_limit_seconds: QPU seconds an instance may use; `None` is no limit.
        resource_unit_rate: Resource units that a QPU second costs, shown beside the seconds; 0 shows none.
        whole_seconds: Whether each job is charged whole QPU seconds, rounded up.
        usage_limit_queues: At the limit, accept jobs and leave them Queued instead of answering 409.
        seed: Makes results a function of the submission order.
        strict_isa: Fail circuits that do not fit the backend's basis gates and coupling map.
        physics: `False` skips the simulation: every shot reads 0, every expectation value is 0. For load tests.
        max_ttl: Default life of a session.
        interactive_ttl: Default idle time after which a session becomes inactive.
        idle_close: Idle time after which a session is closed.
    """

    queue_time: float = 0.05
    run_time: float = 0.05
    clock_scale: float = 1.0
    token_lifetime: float = 3600.0
    create_limit: int | None = None
    retry_after: bool = True
    allow_dedicated: bool = True
    websocket: bool | str = True
    list_lag: float = 0.0
    get_lag: float = 0.0
    results_lag: float = 0.0
    usage_lag: float = 0.0
    cancel_lag: float = 0.0
    ws_lead: float = 0.0
    usage_limit_seconds: float | None = None
    resource_unit_rate: float = 0.0
    usage_limit_queues: bool = False
    whole_seconds: bool = False
    seed: int | None = None
    strict_isa: bool = False
    physics: bool = True
    max_ttl: int = 28800
    interactive_ttl: int = 60
    idle_close: float = 1800.0

    def __post_init__(self) -> None:
        limits = [name for name in ("create_limit", "usage_limit_seconds") if getattr(self, name) is not None]
        for name in (*_NON_NEGATIVE, *_POSITIVE, *limits):
            _number(name, getattr(self, name), positive=name in _POSITIVE)
        if self.websocket not in (True, False, "both"):
            raise ValueError(f"websocket must be True, False or 'both', not {self.websocket!r}")

    def changed(self, name: str, value: Any) -> Settings:
        """Return a copy with one option changed.

        Raises:
            ValueError: If there is no such option, it is fixed at start, or the value does not fit.
        """
        if name == "seed" or name not in OPTION_NAMES:
            raise ValueError(f"no option {name!r} that can change at run time")
        return replace(self, **{name: value})


OPTION_NAMES = frozenset(field.name for field in fields(Settings))


def _number(name: str, value: Any, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{name} must be a number, not {value!r}")
    if value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {'above' if positive else 'at least'} 0, not {value!r}")
