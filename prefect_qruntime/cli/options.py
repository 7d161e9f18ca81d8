"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

__all__ = ["AsJson", "Blocks", "OneBlock"]

Blocks = Annotated[list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")]
OneBlock = Annotated[str | None, Parameter(help="Name of the credentials block; the saved one if there is one.")]
AsJson = Annotated[bool, Parameter(help="Print JSON.")]
