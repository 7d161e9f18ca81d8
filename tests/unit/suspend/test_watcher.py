"""The watcher's parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.suspend.watcher import run_watch

NO_SECONDS = [0, -1.0, True, "10", math.nan, -math.inf, 10**400]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("interval", math.inf), *((field, wrong) for field in ("interval", "duration") for wrong in NO_SECONDS)],
    ids=lambda value: str(value)[:9],
)
def test_a_time_that_is_no_number_of_seconds_is_refused(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="positive number of seconds") as caught:
        run_watch([], **{field: wrong})
    assert caught.value.field == field
