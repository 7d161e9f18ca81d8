"""A finding: what was checked, what was found, and what to do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.redact import redact

__all__ = ["Finding", "Level", "hint", "ok", "problem"]

Level = Literal["ok", "hint", "problem"]


class Finding(BaseModel):
    """One row of a check-up, free of secrets.

    `block` names the credentials block, or is None if the finding is not about one. `ok` needs nothing, a `hint` may be
    ignored, a `problem` stops jobs or makes them unsafe.
    """

    model_config = ConfigDict(frozen=True)

    block: str | None = None
    check: str
    level: Level
    finding: str
    fix: str = ""

    def __str__(self) -> str:
        """The finding and what to do."""
        return f"{self.finding} {self.fix}".strip()


def ok(check: str, finding: str) -> Finding:
    """A check that found nothing to do."""
    return Finding(check=check, level="ok", finding=redact(finding))


def hint(check: str, finding: str, fix: str = "") -> Finding:
    """Advice that may be ignored; everything works without it."""
    return Finding(check=check, level="hint", finding=redact(finding), fix=redact(fix))


def problem(check: str, finding: str, fix: str) -> Finding:
    """A problem that must be fixed."""
    return Finding(check=check, level="problem", finding=redact(finding), fix=redact(fix))
