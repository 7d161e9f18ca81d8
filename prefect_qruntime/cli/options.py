"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import saved_blocks
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.printable import nearest

__all__ = ["AsJson", "Blocks", "OneBlock", "checked_blocks"]

Blocks = Annotated[list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")]
OneBlock = Annotated[str | None, Parameter(help="Name of the credentials block; by default the one that fits.")]
AsJson = Annotated[bool, Parameter(help="Print JSON.")]


def checked_blocks(block: list[str] | None) -> list[str] | None:
    """The names of blocks to use; None for all.

    Raises:
        InvalidInput: No block is saved under one of them.
    """
    if not block:
        return None
    saved = network_loop().run(saved_blocks())
    for name in block:
        if name not in saved:
            raise InvalidInput(
                f"no Quantum Runtime Credentials block is named {name!r}; saved are: {', '.join(saved) or 'none'}.",
                field="block",
                solution=nearest(name, saved) or None,
            )
    return block
