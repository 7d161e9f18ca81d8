"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, ParamSpec

from cyclopts import Parameter

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, saved_blocks
from prefect_qruntime.diagnostics.prefect_server import check_server
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.prefect_api import unknown_block

__all__ = ["AsJson", "Blocks", "JobId", "OneBlock", "checked_blocks", "needs_prefect", "require_prefect"]

P = ParamSpec("P")

Blocks = Annotated[list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")]
OneBlock = Annotated[
    str | None, Parameter(help="Name of the credentials block; by default the one whose instance has the job.")
]
JobId = Annotated[str, Parameter(help="Id of the job.")]
AsJson = Annotated[bool, Parameter(help="Print JSON.")]


def needs_prefect(command: Callable[P, int]) -> Callable[P, int]:
    """Make a command report that Prefect's API does not answer before it starts.

    Raises:
        QuantumRuntimeError: When called, if no Prefect server answers.
    """

    @functools.wraps(command)
    def checked(*args: P.args, **kwargs: P.kwargs) -> int:
        require_prefect()
        return command(*args, **kwargs)

    return checked


def require_prefect() -> None:
    """Check that Prefect's API answers.

    Raises:
        QuantumRuntimeError: It does not.
    """
    client, findings = network_loop().run(check_server())
    if client is None:
        raise QuantumRuntimeError(findings[0].finding, solution=findings[0].fix)


def checked_blocks(block: list[str] | None) -> list[str] | None:
    """Return the names of blocks to use; None for all.

    Raises:
        InvalidInput: No block is saved under one of them; the error names similar ones.
    """
    if not block:
        return None
    saved = network_loop().run(saved_blocks())
    for name in block:
        if name not in saved:
            raise unknown_block(QuantumRuntimeCredentials, name, saved, field="block")
    return block
