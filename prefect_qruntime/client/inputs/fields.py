"""Check the small fields of a submission: ids, tags, limits, plain JSON.

Each check returns the value in the form that is sent, or raises `InvalidInput` naming the field.
Limits come from the service's OpenAPI document: 8 tags of at most 86 characters (two of the
eight are ours), 1 to 10,800 seconds of QPU time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import FLOW_TAG, KEY_TAG

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "check_flag",
    "check_id",
    "check_max_execution_time",
    "check_precision",
    "check_shots",
    "check_tags",
    "plain_json",
]

MAX_PAYLOAD_BYTES = 300_000_000
"""The service's limit on a job's input since July 2026 (300 MB, decimal: the stricter reading)."""

MAX_USER_TAGS = 6
MAX_TAG_LENGTH = 86
MAX_SHOTS = 2**31 - 1
MAX_EXECUTION_SECONDS = 10_800

# A value in a URL path or a header must not contain characters with a meaning there.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_TAGS = (KEY_TAG, FLOW_TAG)
_MAX_DEPTH = 64


def check_id(value: object, *, field: str) -> str:
    """A backend name or program id: 1 to 64 letters, digits, `.`, `_` or `-`."""
    if not isinstance(value, str):
        raise InvalidInput(f"must be a string, not {type(value).__name__}", field=field)
    if not _ID.fullmatch(value):
        raise InvalidInput(
            f"{value[:80]!r} must be 1 to 64 letters, digits, dots, underscores or hyphens, "
            "starting with a letter or digit",
            field=field,
        )
    return value


def check_shots(value: object, *, field: str) -> int | None:
    """None, or an int of at least 1."""
    if value is None:
        return None
    number = _integer(value, field=field)
    if not 1 <= number <= MAX_SHOTS:
        raise InvalidInput(f"must be between 1 and {MAX_SHOTS}, not {number}", field=field)
    return number


def check_precision(number: float, *, field: str) -> None:
    """Refuse a precision that no number of shots reaches: the shots of a value are about 1/precision²."""
    if number < MAX_SHOTS**-0.5:
        raise InvalidInput(
            f"{number:g} is too small: it would take about {number**-2 if number > 1e-150 else math.inf:.1g} shots, "
            f"and at most {MAX_SHOTS} are possible. Use at least {math.ceil(MAX_SHOTS**-0.5 * 1e7) / 1e7:g}",
            field=field,
        )


def check_max_execution_time(value: object) -> int | None:
    """None, or QPU seconds between 1 and 10,800."""
    field = "max_execution_time"
    if value is None:
        return None
    number = _integer(value, field=field)
    if not 1 <= number <= MAX_EXECUTION_SECONDS:
        raise InvalidInput(f"must be between 1 and {MAX_EXECUTION_SECONDS} seconds, not {number}", field=field)
    return number


def check_flag(value: object, *, field: str) -> bool:
    """A real bool: a truthy string would make a job private, or not, by accident."""
    if not isinstance(value, bool):
        raise InvalidInput(f"must be True or False, not {value!r}", field=field)
    return value


def check_tags(tags: object) -> tuple[str, ...]:
    """The user's tags, without repetitions, in their order."""
    if isinstance(tags, str | bytes) or not isinstance(tags, list | tuple):
        raise InvalidInput("must be a list of strings", field="tags")
    unique: list[str] = []
    for position, tag in enumerate(tags):
        field = f"tags[{position}]"
        if not isinstance(tag, str):
            raise InvalidInput(f"must be a string, not {type(tag).__name__}", field=field)
        if not 1 <= len(tag) <= MAX_TAG_LENGTH:
            raise InvalidInput(f"must have 1 to {MAX_TAG_LENGTH} characters, not {len(tag)}", field=field)
        if not tag.isprintable():
            raise InvalidInput("must not hold control or unprintable characters", field=field)
        if tag.startswith(_OWN_TAGS):
            raise InvalidInput(f"tags starting with {KEY_TAG!r} or {FLOW_TAG!r} are set by this package", field=field)
        if tag in unique:
            continue
        if len(unique) == MAX_USER_TAGS:
            raise InvalidInput(
                f"at most {MAX_USER_TAGS} tags are allowed: the service takes 8, and this package needs two",
                field=field,
            )
        unique.append(tag)
    return tuple(unique)


def plain_json(value: Any, *, field: str, depth: int = 0) -> Any:
    """A copy made of dict, list, str, int, float, bool and None only; NaN and infinity refused."""
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"nested deeper than {_MAX_DEPTH} levels", field=field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, field=field)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise InvalidInput("integer does not fit into 64 bits", field=field)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{value} cannot be sent", field=field)
        return float(value)
    if isinstance(value, Mapping):
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"key {key!r} must be a string", field=field)
            copy[_text(key, field=field)] = plain_json(item, field=f"{field}.{key}", depth=depth + 1)
        return copy
    if isinstance(value, list | tuple):
        return [plain_json(item, field=f"{field}[{position}]", depth=depth + 1) for position, item in enumerate(value)]
    if callable(getattr(value, "tolist", None)):  # numpy arrays and scalars
        return plain_json(value.tolist(), field=field, depth=depth + 1)
    raise InvalidInput(f"{type(value).__name__} cannot be sent as JSON", field=field)


def _text(value: str, *, field: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput("text holds a lone surrogate, which is not valid UTF-8", field=field) from None
    return str(value)


def _integer(value: object, *, field: str) -> int:
    # numpy integers have __index__ too; bool has it too, and is not a count.
    index = getattr(value, "__index__", None)
    if isinstance(value, bool) or index is None:
        raise InvalidInput(f"must be an integer, not {value!r}", field=field)
    try:
        return int(index())
    except TypeError:
        raise InvalidInput(f"must be an integer, not {value!r}", field=field) from None
