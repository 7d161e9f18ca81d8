"""Checks of JSON values, to be combined: each returns nothing or raises the service's 400."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_qruntime.sandbox.problems import ApiError, invalid

Check = Callable[[str, Any], None]
_INT_MAX = 2**31 - 1


def integer(low: int = 0, high: int = _INT_MAX, *, null: bool = False) -> Check:
    """Accept an integer within bounds."""

    def check(where: str, value: Any) -> None:
        if value is None and null:
            return
        # JSON has one number type, so 5.0 is an integer there.
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise invalid(f"{where} must be an integer from {low} to {high}.")

    return check


def number(*, above: float | None = None, at_least: float | None = None, null: bool = False) -> Check:
    """Accept a number."""

    def check(where: str, value: Any) -> None:
        if value is None and null:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(f"{where} must be a number.")
        if (above is not None and value <= above) or (at_least is not None and value < at_least):
            raise invalid(f"{where} is too small.")

    return check


def text(low: int = 1, high: int = 10_000) -> Check:
    """Accept a string of some length."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, str) or not low <= len(value) <= high:
            raise invalid(f"{where} must be a string of {low} to {high} characters.")

    return check


def choice(*allowed: Any) -> Check:
    """Accept one of some values."""

    def check(where: str, value: Any) -> None:
        if isinstance(value, bool) or value not in allowed:
            raise invalid(f"{where} must be one of {', '.join(map(str, allowed))}.")

    return check


def either(*checks: Check) -> Check:
    """Accept what any of the checks accepts."""

    def check(where: str, value: Any) -> None:
        problem: ApiError | None = None
        for one in checks:
            try:
                return one(where, value)
            except ApiError as error:
                problem = error
        if problem is not None:
            raise problem
        return None

    return check


def boolean(where: str, value: Any) -> None:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise invalid(f"{where} must be true or false.")


def anything(where: str, value: Any) -> None:
    """Accept whatever comes."""


def array(item: Check, *, low: int = 0, null: bool = False) -> Check:
    """Accept a list."""

    def check(where: str, value: Any) -> None:
        if value is None and null:
            return
        if not isinstance(value, list) or len(value) < low:
            raise invalid(f"{where} must be a list" + (f" of at least {low}." if low else "."))
        for index, one in enumerate(value):
            item(f"{where}[{index}]", one)

    return check


def table(
    fields: dict[str, Check], *, required: tuple[str, ...] = (), strict: bool = False, null: bool = False
) -> Check:
    """Accept an object; a strict one refuses keys it does not know."""

    def check(where: str, value: Any) -> None:
        if value is None and null:
            return
        if not isinstance(value, dict):
            raise invalid(f"{where} must be an object.")
        for name in required:
            if name not in value:
                raise invalid(f"{where} needs the key {name!r}.")
        for name, one in value.items():
            known = fields.get(name)
            if known is not None:
                known(f"{where}.{name}", one)
            elif strict:
                raise invalid(f"{where} has an unknown key {name!r}.", "Remove it or check its spelling.")

    return check
