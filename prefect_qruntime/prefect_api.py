"""One open Prefect API client for the network loop, with retries for each request to Prefect.

Making a client costs tens of milliseconds and Prefect's own one belongs to the flow's loop, so the
network loop keeps one per Prefect API address. All our requests to Prefect go through `patiently`: a server that
restarts, is overloaded or answers 5xx for a moment fails no flow. Every write here may be repeated: artifacts of
one key are versions of each other, and a process recognises the lock it created.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar, cast
from uuid import UUID

import httpx
import orjson
from cachetools import LRUCache
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import BlockDocument, ConcurrencyLimitStrategy, FlowRun, State, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from pydantic import ConfigDict, GetJsonSchemaHandler, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from prefect_qruntime.client.network_loop import SingleFlight, network_loop, on_network_loop
from prefect_qruntime.errors import SAME_REQUEST, InvalidInput, QuantumRuntimeError
from prefect_qruntime.redact import get_logger, nearest

__all__ = [
    "Lineage",
    "Loadable",
    "NotAwaited",
    "api",
    "check_block_name",
    "clock_offset",
    "current_flow_run_id",
    "dropping_limit",
    "family",
    "flow_runs_by_id",
    "ids_of",
    "in_run",
    "is_dropped",
    "lineage",
    "load_saved",
    "not_sent",
    "now",
    "over",
    "patience",
    "patiently",
    "read_variables",
    "reason",
    "saved_documents",
    "saved_names",
    "unknown_block",
    "unknown_fields",
    "wrong_fields",
]

# A Prefect server on SQLite that is busy with task runs gives each writer a small share of its lock: with two
# connections 200 pages took 30 s. With many more it may stand still until the lock times out after a minute.
_CONNECTIONS = 8

_PORT_TAKEN = 3  # exit code of a temporary server, which Prefect then starts again by itself
_PATIENCE = 60.0  # seconds for which requests to a failing Prefect API are repeated
_SILENCE = 120.0  # seconds for which an answer is awaited; a server on SQLite may stand still for a minute
_PASSING = frozenset({407, 408, 425, 429, 499, *range(500, 600)})
_NEVER = frozenset({401, 413, 414, 431})  # the key is wrong; a gateway takes no request of this size
_LISTS = ("/artifacts/filter", "/variables/filter", "/flow_runs/filter", "/task_runs/filter", "/flow_run_states/")
_patience: ContextVar[tuple[float, float] | None] = ContextVar("qruntime_prefect_patience", default=None)

T = TypeVar("T")
log = get_logger(__name__)


@contextlib.contextmanager
def patience(seconds: float, *, silence: float | None = None) -> Iterator[None]:
    """Give up on a failing or silent Prefect API after this many seconds, instead of after one minute or two.

    Args:
        seconds: How long a request is repeated after errors.
        silence: How long an answer may take in all; the same by default. A busy server answers late, and has
            often done by then what was requested.
    """
    token = _patience.set((seconds, seconds if silence is None else silence))
    try:
        yield
    finally:
        _patience.reset(token)


def is_passing(error: BaseException) -> bool:
    """Whether an error of Prefect's API is transient."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (_PASSING if _may_conflict(error.request) else _PASSING | {409})
    return isinstance(error, httpx.TransportError | httpx.DecodingError) and not isinstance(
        error, httpx.UnsupportedProtocol
    )


def reason(error: BaseException) -> str:
    """Why Prefect's API gave no answer, in one line for a log."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code} {error.response.reason_phrase}".rstrip()
    first = next(iter(str(error).splitlines()), "")[:300]
    return f"{type(error).__name__}: {first}".rstrip(": ")


def _may_conflict(request: httpx.Request) -> bool:
    """Whether a 409 is a final answer: something of this name exists, a lock is held, parameters do not fit.

    It is not final for a query, nor for an artifact, of which there may be many of one key: there it means two writers
    at one moment.
    """
    path = request.url.path
    return request.method == "POST" and not path.endswith("/filter") and "/artifacts" not in path


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Send Prefect a request, and repeat it with growing pauses while its API has a transient failure.

    Args:
        ask: Makes the request; may run several times.

    Raises:
        TimeoutError: There was no answer in time.
        Exception: The last error of Prefect's API.
    """
    # Prefect's client repeats some requests by itself, for a minute and each with a timeout of its own.
    limit, silence = _patience.get() or (_PATIENCE, _SILENCE)
    attempts = AsyncRetrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_delay(limit),
        wait=wait_random_exponential(multiplier=0.25, max=5),
        sleep=asyncio.sleep,
        reraise=True,
    )
    async with asyncio.timeout(silence):
        async for attempt in attempts:
            with attempt:
                return await ask()
    raise AssertionError("tenacity ends with a result or an error")


class _Clock:
    """How far Prefect's clock is ahead of ours, according to the dates of its answers."""

    def __init__(self) -> None:
        self.offset: float | None = None

    def learn(self, date: str | None) -> None:
        """Read an answer's `Date`, which has no fractions of a second."""
        if date:
            with contextlib.suppress(ValueError, OverflowError):
                moment = parsedate_to_datetime(date)
                self.offset = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() + 0.5 - time.time()


def clock_offset() -> float | None:
    """Seconds by which Prefect's clock is ahead of this machine's, to a second; None if unknown.

    Call it on the network loop.
    """
    return network_loop().state(_Clock).offset


def now() -> float:
    """Seconds by Prefect's clock, which is the same for all processes. Call it on the network loop."""
    return time.time() + (clock_offset() or 0.0)


@dataclass(slots=True)
class _Clients:
    """The open clients of this process, by API address and home folder."""

    open: dict[tuple[str, str], PrefectClient] = field(default_factory=dict)
    opening: SingleFlight[PrefectClient] = field(default_factory=SingleFlight)


async def api() -> PrefectClient:
    """The open client of the Prefect API in force here.

    Raises:
        RuntimeError: The caller does not run on the network loop, to which the client belongs.
    """
    if not network_loop().is_here:
        raise RuntimeError("the client of Prefect's API belongs to the network loop")
    settings, clients = get_current_settings(), network_loop().state(_Clients)
    name = (str(settings.api.url), str(settings.home))
    if name not in clients.open:
        clients.open[name] = await clients.opening.join(_open, *name)
    return clients.open[name]


async def _open() -> PrefectClient:
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=25)
    client = get_client(httpx_settings={"limits": limits})
    await client.__aenter__()
    _send_patiently(client)

    async def close() -> None:
        await client.__aexit__(None, None, None)

    network_loop().on_close(close)
    return client


def _send_patiently(client: PrefectClient) -> None:
    """Send each of a client's requests through `patiently`."""
    raw: Any = client._client
    send, clock = raw.send, network_loop().state(_Clock)
    temporary = get_current_settings().api.url is None
    # Few servers want CSRF tokens: those that do say so; no request is spent on asking the others.
    may_need_token, raw.enable_csrf_support = raw.enable_csrf_support, False

    async def patient_send(request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer: httpx.Response
            if temporary and hasattr(sys, "ps1"):  # a process that an interruption does not end
                _restart_temporary_server()
            try:
                answer = await send(request, *args, **kwargs)
            except httpx.HTTPStatusError as error:
                if not _is_own(error.response, request):
                    raise _foreign(request) from None
                refused = error.response.status_code == httpx.codes.FORBIDDEN and "CSRF" in error.response.text
                if not (refused and may_need_token) or raw.enable_csrf_support:
                    raise
                raw.enable_csrf_support = True
                answer = await send(request, *args, **kwargs)
            if not _is_own(answer, request):
                raise _foreign(request)
            clock.learn(answer.headers.get("date"))
            return answer

        return await patiently(ask)

    raw.send = patient_send


def _restart_temporary_server() -> None:
    """Start Prefect's temporary server again if it has ended; who asks it something repeats that until it answers.

    Jupyter and a terminal interrupt all processes of a notebook or shell, and Prefect does not notice that its server
    has ended by that.
    """
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.running and server.server_process is not None and server.server_process.poll() not in (None, _PORT_TAKEN):
        log.warning(
            "Prefect's temporary server has ended, as by an interruption, and is started again. One of your own "
            "(`prefect server start`, and its address in PREFECT_API_URL) is not interrupted."
        )
        server.running = False  # else `start` does nothing
        threading.Thread(target=server.start, name="prefect-server-start", daemon=True).start()


def not_sent(text: str) -> QuantumRuntimeError:
    """Make the error of a request that was not sent, because Prefect's API failed before it."""
    return QuantumRuntimeError(
        text,
        solution="This request was not sent. Run the flow again when Prefect's API can be reached.",
        advice=SAME_REQUEST,
    )


def _is_own(answer: httpx.Response, request: httpx.Request) -> bool:
    """Whether an answer is of Prefect's API: JSON, and a list where one was asked for; or a refusal as a JSON object.

    A gateway's page for a login or a pause, or the answer of another service, says that nothing was read or written.
    """
    path = request.url.path
    # Who asks for the health looks at the answer; some refusals are final, also those of a gateway.
    if path.endswith("/health") or answer.status_code in _NEVER:
        return True
    if answer.status_code == httpx.codes.NO_CONTENT:
        return request.method != "GET"
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return False
    if not answer.is_success:
        return isinstance(body, dict)
    return isinstance(body, list) or not path.endswith(_LISTS)


def _foreign(request: httpx.Request) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError("another answer came in place of one of Prefect's API", request=request)


def in_run() -> bool:
    """Whether the caller is inside a flow or task run."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def current_flow_run_id() -> str | None:
    """The id of the flow run the caller is in."""
    flow_context = FlowRunContext.get()
    if flow_context is not None and flow_context.flow_run is not None:
        return str(flow_context.flow_run.id)
    task_context = TaskRunContext.get()
    if task_context is not None and task_context.task_run.flow_run_id is not None:
        return str(task_context.task_run.flow_run_id)
    return None


B = TypeVar("B", bound=Block)


async def saved_documents(kind: type[Block]) -> list[BlockDocument]:
    """The documents of all saved blocks of a type, without secrets. Call it on the network loop."""
    try:
        return await (await api()).read_block_documents_by_type(kind.get_block_type_slug(), include_secrets=False)
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404:  # the type is not registered, so none is saved
            return []
        raise


async def saved_names(kind: type[Block]) -> list[str]:
    """The names of all saved blocks of a type. Call it on the network loop."""
    return sorted(document.name for document in await saved_documents(kind) if document.name)


def check_block_name(name: str, *, field: str) -> None:
    """Refuse a name that Prefect cannot be asked for, though it saves a block under one that ends with a line break.

    Raises:
        InvalidInput: It has a line break or another control character.
    """
    if not name.isprintable():
        raise InvalidInput(
            f"{name!r:.100} cannot be loaded: the name has a line break or another control character.",
            field=field,
            solution="If a block is saved under it, save that under a name without it, and delete this one.",
        )


def unknown_block(
    kind: type[Block], name: str, saved: Sequence[str], *, field: str, fix: str = "Create one in the UI under Blocks."
) -> InvalidInput:
    """Build the error for a block name that is not saved, with similar names."""
    there = f"Saved {'is' if len(saved) == 1 else 'are'}: {', '.join(saved)}." if saved else "None is saved."
    return InvalidInput(
        f"no {kind._block_type_name} block is named {name!r}. {there}",
        field=field,
        solution=f"{nearest(name, saved, most=2)} {fix}".strip(),
    )


@on_network_loop
async def load_saved(kind: type[B], name: str, *, field: str, fix: str) -> B:
    """Load a saved block of a type, over the client that is open.

    Args:
        kind: The block's class.
        name: The block's name.
        field: What gave the name.
        fix: What to do if no block has the name.

    Returns:
        The block.

    Raises:
        InvalidInput: It is not a name, no block has it, or a field of the block is wrong.
    """
    title = kind._block_type_name
    if not isinstance(name, str):
        raise InvalidInput(f"must be the name of a saved {title} block, not {type(name).__name__}", field=field)
    check_block_name(name, field=field)
    try:
        return cast(B, await kind.aload(name, client=await api()))
    except InvalidInput as error:
        wrong = error.message
    except ValidationError as error:
        wrong = wrong_fields(error)
    except RuntimeError as error:  # what Prefect raises for a document that its class refuses
        if not isinstance(error.__cause__, ValidationError):
            raise
        wrong = wrong_fields(error.__cause__)
    except ValueError:
        raise unknown_block(kind, name, await saved_names(kind), field=field, fix=fix) from None
    # Without its cause, which would show the values.
    raise InvalidInput(
        f"the {title} block {name!r} has a wrong field. {wrong if wrong.endswith('?') else wrong.rstrip('.') + '.'}",
        field=field,
        solution="Correct it in the UI under Blocks; `prefect-qruntime doctor` shows more.",
    ) from None


class NotAwaited(Generic[T]):
    """The awaitable that `load` returns while an event loop runs, as in a notebook or an async flow.

    Used as if it were the block, it raises an error that says what to write.

    Args:
        loading: Loads the block.
        hint: What to write.
    """

    def __init__(self, loading: Coroutine[Any, Any, T], hint: str) -> None:
        self._loading = loading
        self._hint = hint

    def __await__(self) -> Generator[Any, None, T]:
        return self._loading.__await__()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # asked by Python, pydantic or IPython to learn what it is
            raise AttributeError(name)
        self._loading.close()
        raise InvalidInput(self._hint, field=name)

    def __repr__(self) -> str:
        return f"<{self._hint}>"


def _is_emptied(value: Any, field: FieldInfo) -> bool:
    if value is None:
        return field.annotation in (int, float)
    text = field.annotation in (str, str | None, SecretStr | None) and not field.is_required()
    return text and isinstance(value, str) and not value.strip()


class Loadable:
    """A block that imports quickly, whose `load` reports a missing `await`, and whose errors hold none of its values.

    Pydantic's errors show and keep what was given, such as an unencrypted API key, and so do the frames of a traceback.
    Prefect's blocks keep fields that they do not know; here they are refused, because a misspelt limit limits nothing.
    A number that is emptied in Prefect's form arrives as None, an optional text as "". Both mean the field's default,
    as if it was not given.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(hide_input_in_errors=True)

    def __init__(self, *args: Any, **values: Any) -> None:
        block: Any = super()
        fields = getattr(type(self), "model_fields", {})
        for name in [name for name, one in fields.items() if name in values and _is_emptied(values[name], one)]:
            del values[name]
        try:
            block.__init__(*args, **values)
            if not (unknown := unknown_fields(_fields(type(self)), values)):
                return
            wrong: ValidationError | QuantumRuntimeError = _not_fields(type(self), unknown)
        except (ValidationError, QuantumRuntimeError) as error:
            wrong = _without_values(type(self), error, values)
        values.clear()
        del args, self, block
        raise wrong

    def __setattr__(self, name: str, value: Any) -> None:
        unknown = unknown_fields(_fields(type(self)), [name])
        if unknown and not hasattr(type(self), name):  # what the class has, such as a method, may be replaced
            del value  # which the traceback would keep
            raise _not_fields(type(self), unknown)
        super().__setattr__(name, value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        made = handler(core_schema)
        shape = handler.resolve_ref_schema(made)
        # For a flow's parameter Prefect's server takes either the fields of a block or a reference to a saved one, and
        # refuses what could be both: to a block that requires no field, that is each reference.
        if not shape.get("required"):
            shape["not"] = {"required": ["$ref"]}
        return made

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect's own makes the JSON schema twice to read the slug from it: a third of this package's import time.
        block: Any = cls
        return str(block.get_block_type_slug())

    @classmethod
    def load(cls, name: str, *args: Any, **kwargs: Any) -> Self:
        """Load a saved block by its name; await it if an event loop runs, as in a notebook or an async flow."""
        block: Any = super()
        try:
            loaded: Any = block.load(name, *args, **kwargs)
        except (RuntimeError, ValueError, QuantumRuntimeError) as error:
            wrong = _without_frames(error)
        else:
            return cls._loaded(name, loaded)
        raise wrong

    @classmethod
    async def aload(cls, name: str, *args: Any, **kwargs: Any) -> Self:
        """Load a saved block by its name, in async code."""
        block: Any = super()
        return cast(Self, await _framed(block.aload(name, *args, **kwargs)))

    @classmethod
    def _load_from_block_document(cls, block_document: BlockDocument, validate: bool = True) -> Self:
        # Without validation Prefect adds the fields that are missing, and fails at those that are too many.
        if not validate:
            fields = _fields(cls)
            data = {name: value for name, value in block_document.data.items() if not unknown_fields(fields, [name])}
            block_document = block_document.model_copy(update={"data": data})
        block: Any = super()
        return cast(Self, block._load_from_block_document(block_document, validate=validate))

    @classmethod
    def _loaded(cls, name: str, loaded: Any) -> Self:
        if not inspect.iscoroutine(loaded):
            return cast(Self, loaded)
        waiting: Any = NotAwaited(
            _framed(loaded),
            f"An event loop runs here, as in a notebook or an async flow, so the block {name!r} is not loaded yet. "
            f"Write `await {cls.__name__}.load({name!r})`"
            + (f", or `load_credentials({name!r})`." if "Credentials" in cls.__name__ else "."),
        )
        return cast(Self, waiting)


def _without_values(
    block: type, error: ValidationError | QuantumRuntimeError, given: Mapping[str, Any]
) -> ValidationError | QuantumRuntimeError:
    """The same error without the values that were given to a block; it names unknown fields beside missing ones."""
    if isinstance(error, QuantumRuntimeError):
        return error.with_traceback(None)
    unknown = ", ".join(unknown_fields(_fields(block), given))
    hint = f"; not a field: {unknown}" if unknown else ""
    return _error_of(
        error.title,
        [
            (PydanticCustomError(one["type"], one["msg"] + (hint if one["type"] == "missing" else "")), one["loc"])
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ],
    )


def _error_of(title: str, wrong: Iterable[tuple[PydanticCustomError, tuple[int | str, ...]]]) -> ValidationError:
    """Make pydantic's error of what is wrong and where, without the values."""
    details = [InitErrorDetails(type=kind, loc=where, input="(hidden)") for kind, where in wrong]
    return ValidationError.from_exception_data(title, details, hide_input=True)


def unknown_fields(fields: Collection[str], given: Iterable[str]) -> dict[str, str]:
    """The names that are not fields of a block, with similar fields as a question.

    Args:
        fields: The block's fields.
        given: Names that were given, or that a saved document has.
    """
    # Prefect adds names of its own to a saved document.
    return {
        name if name.isidentifier() else "(a name that no field has)": nearest(name, fields)
        for name in given
        if name not in fields and name != "block_type_slug" and not name.startswith("_")
    }


def _fields(block: type) -> Collection[str]:
    """The fields of a block, also under their other names, and what Prefect writes beside them into a document."""
    fields: Mapping[str, Any] = getattr(block, "model_fields", {})
    names = [*fields, *getattr(block, "model_computed_fields", ())]
    for alias in (one.validation_alias for one in fields.values() if one.validation_alias is not None):
        names += [path if isinstance(path, str) else path.path[0] for path in getattr(alias, "choices", [alias])]
    return names


def _not_fields(block: type, unknown: Mapping[str, str]) -> ValidationError:
    return _error_of(
        block.__name__,
        [
            (PydanticCustomError("extra_forbidden", f"Not a field of this block. {similar}".strip()), (name,))
            for name, similar in unknown.items()
        ],
    )


def _without_frames(error: Exception) -> Exception:
    """The same error and its causes without their tracebacks, whose frames hold the document with its secrets."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error


async def _framed(loading: Coroutine[Any, Any, T]) -> T:
    try:
        return await loading
    except (RuntimeError, ValueError, QuantumRuntimeError) as error:
        wrong = _without_frames(error)
    raise wrong


def wrong_fields(error: ValidationError) -> str:
    """Name the fields of a block that are wrong, and what is wrong with each."""
    found = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in error.errors()]
    return "; ".join(found)


_PAGE = 200
_KEEP = 1024
_FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED]


def ids_of(texts: Iterable[str | None]) -> list[UUID]:
    """The ids that some texts give, in the order of the texts; what is no id is left out."""
    found = []
    for text in sorted({text for text in texts if text is not None}):
        with contextlib.suppress(ValueError):
            found.append(UUID(text))
    return found


async def flow_runs_by_id(
    flow_run_ids: Iterable[str | None], *, state: FlowRunFilterState | None = None
) -> dict[str, FlowRun]:
    """Read the flow runs of some ids, or those in a state; unknown ids and texts that are no ids are left out."""
    wanted, found = ids_of(flow_run_ids), dict[str, FlowRun]()
    for start in range(0, len(wanted), _PAGE):
        ids = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + _PAGE]), state=state)
        found |= {str(run.id): run for run in await (await api()).read_flow_runs(flow_run_filter=ids, limit=_PAGE)}
    return found


async def read_variables(client: PrefectClient, prefix: str, tag: str) -> list[dict[str, Any]]:
    """Read all variables with this tag whose names begin so, as Prefect's API returns them."""
    wanted, found = {"name": {"like_": prefix}, "tags": {"all_": [tag]}}, list[dict[str, Any]]()
    while True:
        window = {"variables": wanted, "limit": _PAGE, "offset": len(found)}
        page = (await client.request("POST", "/variables/filter", json=window)).json()
        found += page
        if len(page) < _PAGE:
            return found


async def family(flow_run_id: UUID) -> list[UUID]:
    """The ids of the flow run and its subflows, whose tasks record jobs and sessions under their own ids.

    A subflow that is a run of a deployment is not included: it has its own process and its own jobs.
    """
    found, parents = [flow_run_id], [flow_run_id]
    while parents:
        of = FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=parents),
            deployment_id=FlowRunFilterDeploymentId(is_null_=True),
        )
        parents = []
        while True:
            page = await (await api()).read_flow_runs(flow_run_filter=of, limit=_PAGE, offset=len(parents))
            parents += [child.id for child in page]
            if len(page) < _PAGE:
                break
        parents = [child for child in dict.fromkeys(parents) if child not in found]
        found += parents
    return found


Lineage = tuple[str, ...]
"""The ids of a flow run and of those that contain it in this process, the topmost last."""


@dataclass(slots=True)
class _Lineages:
    """The lineages of this process's subflow runs. Lives on the network loop."""

    known: LRUCache[str, Lineage] = field(default_factory=lambda: LRUCache(_KEEP))
    reading: SingleFlight[Lineage] = field(default_factory=SingleFlight)


async def lineage() -> Lineage:
    """The running flow run and those that contain it; empty outside a flow. Asks Prefect once for each subflow run."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context is not None else None
    if flow_run is None:
        own = current_flow_run_id()
        return () if own is None else (own,)
    if flow_run.parent_task_run_id is None or flow_run.deployment_id is not None:
        return (str(flow_run.id),)
    state, own = network_loop().state(_Lineages), str(flow_run.id)
    found = state.known.get(own)
    if found is None:
        found = state.known[own] = await state.reading.join(lambda: _read_lineage(flow_run), own)
    return found


async def _read_lineage(flow_run: FlowRun) -> Lineage:
    client, found = await api(), [str(flow_run.id)]
    # As in `family`, a subflow that is a run of a deployment has its own process and its own jobs.
    while flow_run.parent_task_run_id is not None and flow_run.deployment_id is None:
        task_run = await client.read_task_run(flow_run.parent_task_run_id)
        if task_run.flow_run_id is None:
            break
        flow_run = await client.read_flow_run(task_run.flow_run_id)
        found.append(str(flow_run.id))
    return tuple(found)


def starts_in(states: Sequence[State[Any]]) -> int:
    """In how many processes a flow run was started, by its states: a pause and a retry stay in theirs.

    A start that Prefect dropped counts: the process before it is given up, and the next one goes on.
    """
    return sum(state.is_pending() or is_dropped(state) for state in states)


def is_ending(states: Sequence[State[Any]]) -> bool:
    """Whether a flow run's states say that it is being cancelled or was, and not started again since.

    Prefect lets a run that was cancelled between two tries (`AwaitingRetry`) go on in its process: it is `Running`
    after `Cancelled`, and if that try fails, `AwaitingRetry` again. One that a person retries is scheduled while it
    does not run, and `Pending` in its new process. A start that Prefect dropped cancels nothing.
    """
    ending = runs = False
    for state in sorted(states, key=lambda state: state.timestamp):
        if state.is_cancelling() or (state.is_cancelled() and not is_dropped(state)):
            ending = True
        elif state.is_pending() or (state.is_scheduled() and not runs):
            ending = False
        runs = state.is_running()
    return ending


_DROPPED = ("Deployment concurrency limit reached", "Deployment concurrency slot lost")
"""How the messages begin with which Prefect cancels a run because others of its deployment run."""


def is_dropped(state: State[Any]) -> bool:
    """Whether Prefect cancelled a flow run because others of its deployment run (`CANCEL_NEW`).

    If it has jobs, it was retried or resumed, and it may be again: no user has cancelled it.
    """
    return state.is_cancelled() and (state.message or "").startswith(_DROPPED)


async def dropping_limit(deployment_id: UUID) -> GlobalConcurrencyLimitResponse | None:
    """The limit of a deployment that cancels the runs beyond it (`CANCEL_NEW`); None if it has none.

    It has none for a key that Prefect does not let read it.

    Raises:
        ObjectNotFound: The deployment was deleted.
        Exception: Prefect's API gave no answer.
    """
    try:
        deployment = await (await api()).read_deployment(deployment_id)
    except PrefectHTTPStatusError as error:
        if is_passing(error):
            raise
        log.debug("The deployment could not be read: %s", reason(error))
        return None
    options = deployment.concurrency_options
    drops = options is not None and options.collision_strategy is ConcurrencyLimitStrategy.CANCEL_NEW
    return deployment.global_concurrency_limit if drops else None


def over() -> FlowRunFilter:
    """Selects the flow runs that are in a final state."""
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_FINAL)))
