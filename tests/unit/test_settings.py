"""Settings are read once for each environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefect_qruntime import settings
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.settings import QuantumRuntimeSettings, current_settings

OURS = "PREFECT_INTEGRATIONS_QRUNTIME_"
GRACE = f"{OURS}RESULT_GRACE_SECONDS"


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
        with pytest.raises(InvalidInput) as caught:
            current_settings()
        assert caught.value.field == GRACE
        assert "'long'" in str(caught.value)
        assert "pydantic" not in str(caught.value)


def test_all_wrong_settings_are_named(monkeypatch):
    monkeypatch.setenv(GRACE, "long")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL", "stop")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", "[")
    with pytest.raises(InvalidInput) as caught:
        current_settings()
    for name in (GRACE, "PREFECT_INTEGRATIONS_QRUNTIME_ON_CANCEL", "PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS"):
        assert f"{name}: " in str(caught.value)


NUMBERS = [name for name, one in QuantumRuntimeSettings.model_fields.items() if one.annotation in (int, float)]


@pytest.mark.parametrize("bad", ["inf", "-Infinity", "nan", "1e999"])
@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_is_a_finite_one(monkeypatch: pytest.MonkeyPatch, name: str, bad: str) -> None:
    monkeypatch.setenv(OURS + name.upper(), bad)
    with pytest.raises(InvalidInput, match=f"{OURS}{name.upper()}: "):
        current_settings()
    with pytest.raises(ValidationError, match=name):
        QuantumRuntimeSettings(**{name: float(bad)})


def test_a_folder_is_absolute_so_that_a_reference_into_it_holds_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, folder in (("results", "results"), ("~/results", "home/results"), (str(tmp_path / "x"), "x")):
        monkeypatch.setenv(f"{OURS}RESULT_DIRECTORY", given)
        monkeypatch.setenv(f"{OURS}ALLOWED_FOLDERS", given)
        assert current_settings().result_directory == tmp_path / folder
        assert current_settings().allowed_folders == (tmp_path / folder,)
    monkeypatch.setenv(f"{OURS}RESULT_DIRECTORY", "~no-such-user/results")
    with pytest.raises(InvalidInput, match=f"{OURS}RESULT_DIRECTORY"):
        current_settings()


def test_without_a_working_directory_settings_can_be_read(monkeypatch, tmp_path):
    """A hook or a command must cancel jobs although the folder of the flow's code was removed."""
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv(GRACE, "7")
    assert current_settings().result_grace_seconds == 7
    monkeypatch.setenv(f"{OURS}RESULT_DIRECTORY", "results")
    with pytest.raises(InvalidInput, match=f"{OURS}RESULT_DIRECTORY"):
        current_settings()


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_a_blank_text_is_a_setting_that_is_not_given(monkeypatch, blank):
    for name in ("RESULT_DIRECTORY", "BUDGET_BLOCK"):
        monkeypatch.setenv(OURS + name, blank)
    assert current_settings() == QuantumRuntimeSettings.model_construct()
    monkeypatch.setenv(f"{OURS}POLICY_BLOCK", blank)  # it would switch the policy off
    with pytest.raises(InvalidInput, match=f"{OURS}POLICY_BLOCK"):
        current_settings()
