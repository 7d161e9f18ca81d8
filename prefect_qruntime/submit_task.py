"""The task class of `submit_job`: numbers equal submissions where the flow makes them.

Which of several equal calls a submission is belongs to its key. Calls that run in this process are
counted when they run; but with `.submit` and `.map` they may run in other processes (process pool, Dask,
Ray), which cannot see each other's count. So those get their number here, in the flow's process.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from prefect import Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import BaseAnnotation, unmapped
from prefect.utilities.collections import isiterable

from prefect_qruntime import keys
from prefect_qruntime.client.home import home
from prefect_qruntime.client.inputs import make_spec
from prefect_qruntime.errors import InvalidInput

__all__ = ["SubmitTask", "numbered"]

TaskT = TypeVar("TaskT", bound=Task[..., Any])

_SPEC_FIELDS = ("pubs", "program_id", "shots", "options", "params", "max_execution_time", "private")
_BY_ORDER = 1_000_000


def _holds_future(value: Any) -> bool:
    if isinstance(value, PrefectFuture):
        return True
    if isinstance(value, dict):
        return any(_holds_future(item) for item in value.values())
    return isinstance(value, list | tuple | set) and any(_holds_future(item) for item in value)


class SubmitTask(Task[..., Any]):
    """A task whose `.submit` and `.map` give each call its number among equal ones."""

    def _bound(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(inspect.signature(self.fn).bind_partial(*args, **kwargs).arguments)

    def _number(self, arguments: dict[str, Any]) -> int | None:
        """The call's number, or None outside a flow run, where each call is its own anyway."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None or context.detached:
            return None
        plain = {name: arguments[name] for name in _SPEC_FIELDS if name in arguments}
        where = home().run(keys.origin())
        if any(_holds_future(value) for value in plain.values()):
            # The payload comes from another task: numbered by the order of calls, apart from those counted by payload.
            return _BY_ORDER + keys.count(where, "unknown payload")
        try:
            digest = make_spec(plain.pop("pubs", None), backend="any", **plain).digest()
        except InvalidInput:
            return None  # the task itself will say what is wrong
        return keys.count(where, digest)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.submit`."""
        if kwargs.get("call_index") is None:
            extra = {name: kwargs[name] for name in ("return_state", "wait_for", "deferred") if name in kwargs}
            plain = {name: value for name, value in kwargs.items() if name not in extra}
            plain["call_index"] = self._number(self._bound(args, plain))
            return super().submit(*args, **plain, **extra)
        return super().submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.map`."""
        if kwargs.get("call_index") is None:
            extra = {name: kwargs[name] for name in ("return_state", "wait_for", "deferred") if name in kwargs}
            bound = self._bound(args, {name: value for name, value in kwargs.items() if name not in extra})
            # Read twice, here and by Prefect: a generator would be empty the second time.
            plain: dict[str, Any] = {
                name: list(value) if isinstance(value, Iterator) else value for name, value in bound.items()
            }
            plain["call_index"] = self._numbers(plain)
            return super().map(**plain, **extra)
        return super().map(*args, **kwargs)

    def _numbers(self, arguments: dict[str, Any]) -> Any:
        """A number for each mapped call, in Prefect's own reading of what is mapped."""
        mapped = {
            name: list(value)
            for name, value in arguments.items()
            if not isinstance(value, BaseAnnotation) and isiterable(value)
        }
        length = max((len(value) for value in mapped.values()), default=0)
        if length == 0:
            return unmapped(None)
        fixed = {
            name: value.unwrap() if isinstance(value, BaseAnnotation) else value
            for name, value in arguments.items()
            if name not in mapped
        }
        return [
            self._number({**fixed, **{name: value[i] for name, value in mapped.items() if i < len(value)}})
            for i in range(length)
        ]

    def with_options(self, *args: Any, **kwargs: Any) -> SubmitTask:
        """As `Task.with_options`; Prefect would hand back a plain task."""
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = SubmitTask
        return changed  # type: ignore[return-value]


def numbered(plain: TaskT) -> TaskT:
    """Make a task number its calls; used as a decorator above `@task`."""
    plain.__class__ = SubmitTask  # type: ignore[assignment]
    return plain
