"""The two kinds of tasks: those that create something, and those that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import SessionRef

__all__ = ["may_retry", "once", "repeatable"]

P = ParamSpec("P")
R = TypeVar("R")

_TAGS = {"qruntime"}
_RETRIES = 2
_DELAYS: list[float] = [5, 30]


async def may_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect may run a task again: only where the error's advice says that it can help.

    A plain function on purpose: Prefect 3.8 silently never retries for methods and partials.
    """
    try:
        await state.aresult()
    except QuantumRuntimeError as error:
        return error.advice.may_repeat
    except Exception:
        return False
    return False


def run_name_of(pattern: str) -> Callable[..., str]:
    """A task run name from parameters, with handles shortened to their ids."""

    def short(value: Any) -> str:
        if isinstance(value, SessionRef) and value.id is None:
            return "unbound session"
        return str(getattr(value, "id", None) or getattr(value, "name", None) or value)

    # Only what the pattern names: Prefect prints a block by making its whole JSON schema, which takes 10 ms.
    named = {field for _, field, _, _ in Formatter().parse(pattern) if field}

    def run_name(parameters: dict[str, Any]) -> str:
        return pattern.format_map({field: short(parameters[field]) for field in named})

    return run_name


def once(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that creates something: Prefect never retries it by itself, and its handle is stored."""
    return task(name=name, task_run_name=run_name_of(run_name), tags=_TAGS, cache_policy=NO_CACHE, persist_result=True)


def repeatable(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that can be run again without harm; Prefect does so where the error's advice says it can help."""
    return task(
        name=name,
        task_run_name=run_name_of(run_name),
        tags=_TAGS,
        cache_policy=NO_CACHE,
        retries=_RETRIES,
        retry_delay_seconds=_DELAYS,
        retry_condition_fn=may_retry,
    )
