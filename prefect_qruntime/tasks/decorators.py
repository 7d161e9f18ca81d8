"""The two kinds of tasks, each as a pair: those that create something, and those that may be repeated.

A pair is written once, as an async body that runs on the process's network loop. `creates` and `repeats` make
the async task of it; `blocking` makes the task for sync flows, with the same parameters.

The tasks carry no tags: for each run of a tagged task Prefect asks its server for a concurrency slot first, and an
error there would fail the fetch of a job that is paid for, or the closing of its session.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Coroutine
from string import Formatter
from typing import Any, NoReturn, ParamSpec, TypeVar

from prefect import Task, task
from prefect.blocks.abstract import CredentialsBlock
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from prefect_qruntime.admission.policy import check_hosts
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import SessionRef
from prefect_qruntime.observability.telemetry import trace_task
from prefect_qruntime.prefect_api import in_run
from prefect_qruntime.run_context import submission_in_flight

__all__ = ["InFlowTask", "blocking", "creates", "in_flow", "may_retry", "repeats", "run_blocking"]

P = ParamSpec("P")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound=Task[..., Any])

_RETRIES = 2
_DELAYS: list[float] = [5, 30]


async def may_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect may run a task again: only if the error's advice is to repeat it.

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


async def _may_use(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse credentials that lead to a host which the installation's policy does not allow."""
    credentials = kwargs.get("credentials", args[0] if args else None)
    if isinstance(credentials, CredentialsBlock):
        await check_hosts(credentials.get_client().connection)


_names: set[str] = set()
"""Names of our tasks."""


def _reaches_prefect(record: logging.LogRecord) -> bool:
    """Suppress Prefect's warning that one of our tasks outside any flow has no flow run for its log lines.

    It logs the end of each task run outside the run's context, and would warn each time.
    """
    outside = not getattr(record, "flow_run_id", None) and not in_run()
    if outside and getattr(record, "task_name", None) in _names:
        record.send_to_api = False
    return True


logging.getLogger("prefect.task_runs").addFilter(_reaches_prefect)


def creates(
    name: str, run_name: str
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make an async task of a body that creates something: never retried by Prefect, its handle is stored."""
    _names.add(name)

    def decorate(body: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(body)
        async def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with trace_task(name), submission_in_flight():  # calls that come together are recorded together
                await _may_use(args, kwargs)
                return await body(*args, **kwargs)

        return task(
            name=name,
            task_run_name=run_name_of(run_name),
            cache_policy=NO_CACHE,
            persist_result=True,
        )(on_network_loop(counted))

    return decorate


def repeats(
    name: str, run_name: str
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make an async task of a body that can run again without harm; Prefect retries it if the advice allows."""
    _names.add(name)

    def decorate(body: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(body)
        async def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            with trace_task(name):
                await _may_use(args, kwargs)
                return await body(*args, **kwargs)

        return task(
            name=name,
            task_run_name=run_name_of(run_name),
            cache_policy=NO_CACHE,
            retries=_RETRIES,
            retry_delay_seconds=_DELAYS,
            retry_condition_fn=may_retry,
        )(on_network_loop(traced))

    return decorate


def run_blocking(body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Make a plain function of an async body: it runs on the network loop while the caller waits."""

    @functools.wraps(body)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return network_loop().run(body(*args, **kwargs))

    return call


def blocking(twin: Task[P, Coroutine[Any, Any, R]]) -> Task[P, R]:
    """Make the task for sync flows from its async twin: same name, parameters, retries, result and errors."""
    changed: Any = copy.copy(twin)  # `with_options` would read the source file once more
    changed.fn = run_blocking(twin.fn)
    changed.isasync = False
    return changed  # type: ignore[no-any-return]


class InFlowTask(Task[P, R]):
    """A task that is called, submitted and mapped, but not deferred to a task worker.

    Prefect stores the parameters of a deferred task run, including the credentials block with its unencrypted API key.
    """

    def delay(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error, because a deferred task run would store the API key.

        Raises:
            InvalidInput: Always, with what to do instead.
        """
        self._refuse("delay")

    def apply_async(self, *args: Any, **kwargs: Any) -> NoReturn:
        """As `delay`."""
        self._refuse("apply_async")

    def serve(self) -> NoReturn:
        """As `delay`."""
        self._refuse("serve")

    def with_options(self, *args: Any, **kwargs: Any) -> InFlowTask[P, R]:
        """As `Task.with_options`; Prefect would return a plain task."""
        changed: Any = super().with_options(*args, **kwargs)
        changed.__class__ = InFlowTask
        return changed  # type: ignore[no-any-return]

    def _refuse(self, method: str) -> NoReturn:
        name = self.name.replace(" ", "_")
        raise InvalidInput(
            f"`{name}` has no `{method}`. Prefect would store the credentials block with its unencrypted API key, for "
            "a task worker to read. Start a deployment with `run_deployment`, or defer a task of your own that takes "
            "the block's name and loads it with `load_credentials`.",
            field=method,
        )


def in_flow(made: TaskT) -> TaskT:
    """Make a task refuse to be deferred."""
    changed: Any = made
    changed.__class__ = InFlowTask
    return made
