"""Settings are read once for each environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefect_qruntime import settings
from prefect_qruntime.settings import QuantumRuntimeSettings, current_settings

GRACE = "PREFECT_INTEGRATIONS_QRUNTIME_RESULT_GRACE_SECONDS"


def test_read_once_and_again_when_the_environment_changes(monkeypatch):
    monkeypatch.setenv(GRACE, "3")
    first = current_settings()
    monkeypatch.setattr(settings, "QuantumRuntimeSettings", lambda: pytest.fail("read again"))
    assert current_settings() is first
    monkeypatch.undo()
    monkeypatch.setenv(GRACE, "4")
    assert (first.result_grace_seconds, current_settings().result_grace_seconds) == (3, 4)
    monkeypatch.delenv(GRACE)
    assert current_settings() == QuantumRuntimeSettings()


def test_a_wrong_setting_is_an_error_each_time(monkeypatch):
    monkeypatch.setenv(GRACE, "long")
    for _ in range(2):
        with pytest.raises(ValidationError, match="result_grace_seconds"):
            current_settings()
