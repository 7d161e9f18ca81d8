"""What the flows share: an instance to run on, and plain numbers out of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from prefect import get_run_logger
from prefect.context import FlowRunContext

from prefect_qruntime import InvalidInput, QuantumRuntimeCredentials, circuit_text, load_credentials
from prefect_qruntime.client.inputs.spec import CircuitForm
from prefect_qruntime.client.programs.make import RequestedRoute
from prefect_qruntime.models import mock_backend

__all__ = ["CircuitForm", "RequestedRoute", "circuit_text", "instance", "own_fields", "shown_backend", "single"]


_GIVEN_AS = {"budget": "budget_block", "name": "credentials_block", "job": "job_id"}
_PART = re.compile(r"pubs(?:\[\d+\])?\.(\w+)")


@contextmanager
def own_fields() -> Iterator[None]:
    """Inside this block, an error about a task's argument names the parameter of the flow that gave it."""
    try:
        yield
    except InvalidInput as error:
        field, context = error.field or "", FlowRunContext.get()
        own = (context.parameters if context is not None else None) or {}
        part = found[1] if (found := _PART.match(field)) else ""
        name = next((name for name in (_GIVEN_AS.get(field), part, f"{part}s") if name in own), None)
        if name is None or field in own:
            raise
        raise InvalidInput(error.message.removeprefix(f"{field}: "), **{**error.fields, "field": name}) from error


@contextmanager
def instance(
    credentials_block: str | None, dialect: Literal["cloud", "legacy"], **sandbox: Any
) -> Iterator[QuantumRuntimeCredentials]:
    """The instance of a saved block, or the embedded sandbox if none is named.

    Args:
        credentials_block: Name of a Quantum Runtime Credentials block, or nothing.
        dialect: Dialect of the embedded sandbox; a block has its own.
        **sandbox: Options of the embedded sandbox.

    Yields:
        The credentials. The embedded sandbox ends with the block.
    """
    if credentials_block:
        with own_fields():
            yield load_credentials(credentials_block)
        return
    from prefect_qruntime.sandbox import Sandbox

    with own_fields(), Sandbox(**sandbox) as running:
        get_run_logger().warning(
            "No credentials block is named. Running on the embedded sandbox (%s), not on a QPU.", running.url
        )
        yield running.credentials(dialect)


def shown_backend(backend: str, dry_run: bool) -> str:
    """A backend's name for a title; a dry run is called one, as its results are random."""
    return f"{mock_backend(backend)} (dry run)" if dry_run else backend


def single(value: Any) -> float:
    """The number in a value that may come as an array of one."""
    while isinstance(value, list):
        (value,) = value
    return float(value)
