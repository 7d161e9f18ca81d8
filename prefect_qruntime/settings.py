"""Settings of the integration, read from `PREFECT_INTEGRATIONS_QRUNTIME_*`."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError
from pydantic_core import from_json
from pydantic_settings import NoDecode

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import MOST_TTL
from prefect_qruntime.redact import nearest, shown

__all__ = ["QuantumRuntimeSettings", "current_settings", "unknown_settings", "wrong_settings"]

_PREFIX = "PREFECT_INTEGRATIONS_QRUNTIME_"
_OF_OURS = (_PREFIX, "PREFECT_HOME", "PREFECT_PROFILE")


def _as_folders(value: Any) -> Any:
    """Read folders separated as in PATH, or as a JSON list; an empty value forbids every folder."""
    if not isinstance(value, str):
        return value
    return from_json(value) if value.lstrip().startswith("[") else [part for part in value.split(os.pathsep) if part]


def _anchored(folder: Path) -> Path:
    """Make a folder absolute: a reference to what is stored in it is read in another working directory."""
    try:
        return folder.expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user; the working directory is gone
        raise ValueError(str(error)) from None


def _if_given(value: Any) -> Any:
    """An empty text as no value: so a compose file sets a variable that has none."""
    return None if isinstance(value, str) and not value.strip() else value


_Folder = Annotated[Path, AfterValidator(_anchored)]
_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class QuantumRuntimeSettings(PrefectBaseSettings):
    """Settings of a whole installation; each can be set in a Prefect profile or in the environment.

    Example:
        ```python
        from prefect_qruntime.settings import QuantumRuntimeSettings

        assert QuantumRuntimeSettings().result_grace_seconds == 15
        ```
    """

    # A search or a wait that never ends, or an alarm that never comes, is no setting.
    model_config = build_settings_config(("integrations", "qruntime")) | {"allow_inf_nan": False}

    submission_grace_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long a job may take to appear in the service's list after a lost answer or in a repeated run.",
    )
    session_max_ttl_seconds: int = Field(
        default=7200,
        ge=1,
        le=MOST_TTL,
        description="Longest life of a session if the flow sets none.",
    )
    outage_patience_seconds: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="How long to keep waiting while the service is unreachable.",
    )
    result_grace_seconds: float = Field(
        default=15.0,
        ge=0,
        description="How long the result of a completed job may take to appear.",
    )
    create_rate_per_minute: int = Field(
        default=5,
        ge=0,
        le=60,
        description=(
            "Most jobs created in a minute if `prefect-qruntime setup` has created no limits; 0 for no limit. "
            "The sandbox is limited only if this is set."
        ),
    )
    create_rate_period_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds of that minute; other values are for tests on a scaled clock.",
    )
    primitive_route: Literal["service", "executor", "auto"] = Field(
        default="service",
        description=(
            "How PUBs run if a submission sets no route: by the server's sampler and estimator, as a quantum program "
            "of the executor, or by the executor once the service says that the server's program is gone."
        ),
    )
    budget_block: Annotated[_Name | None, BeforeValidator(_if_given)] = Field(
        default=None,
        description="Name of a saved budget that applies to every submission, in addition to a flow's own.",
    )
    policy_block: _Name = Field(
        default="qruntime-policy",
        description=(
            "Name of the policy that an administrator keeps in Prefect; it applies to every task. If it is not saved, "
            "no policy applies by default; under a name that is set here, nothing is submitted."
        ),
    )
    usage_grace_seconds: float = Field(
        default=15.0,
        ge=0,
        description="How long a budget waits for the final usage of a finished job before it counts its limit instead.",
    )
    session_watch_seconds: float = Field(
        default=10.0,
        gt=0,
        description="How often a session is checked that must be closed when its budget is used up.",
    )
    alarm_allowance_percent: float = Field(
        default=20.0,
        ge=0,
        le=100,
        description="The watcher raises an alarm when at most this percentage of the instance's QPU time is left.",
    )
    alarm_idle_minutes: float = Field(
        default=10.0,
        gt=0,
        description="The watcher raises an alarm when a dedicated session has had no job for this many minutes.",
    )
    alarm_spending_factor: float = Field(
        default=3.0,
        gt=1,
        description="The watcher raises an alarm when a day costs this many times as much as the instance's usual day.",
    )
    watch_instance_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How often the watcher checks each instance for alarms and updates its artifact; 0 for never.",
    )
    result_memory_limit_bytes: int = Field(
        default=8_000_000,
        ge=0,
        description="Results larger than this are stored in a file and passed on as a reference to it.",
    )
    result_size_limit_bytes: int = Field(
        default=4_000_000_000,
        gt=0,
        description="Results larger than this, after decompression, are refused.",
    )
    result_directory: Annotated[_Folder | None, BeforeValidator(_if_given)] = Field(
        default=None,
        description=(
            "Folder of those files; a relative one begins at the working directory. The default is `qruntime/results` "
            "in Prefect's home."
        ),
    )
    allowed_folders: Annotated[tuple[_Folder, ...] | None, NoDecode, BeforeValidator(_as_folders)] = Field(
        default=None,
        description=(
            "Folders in which flow parameters and `file:` references may name files, separated as in PATH; the default "
            "is the working directory. The folder of the flow's own file may always be read."
        ),
    )
    result_keep_days: float = Field(
        default=7.0,
        gt=0,
        description="Days after which an unread file is removed, when the next one is stored.",
    )
    on_cancel: Literal["cancel", "detach"] = Field(
        default="cancel",
        description="What a cancelled flow run does to its live jobs: cancel them, or leave them running.",
    )
    cancel_look_seconds: float = Field(
        default=10.0,
        ge=0,
        description=(
            "How often a wait, or a submission that is held up, asks Prefect whether its flow run is being cancelled; "
            "0 for never."
        ),
    )
    events: bool = Field(
        default=True,
        description=(
            "Whether events are emitted, of jobs, sessions, budgets and alarms. Without them no automation acts, not "
            "even the one that collects a job left to the watcher."
        ),
    )
    assets: bool | None = Field(
        default=None,
        description=(
            "Whether fetched results are recorded as assets in Prefect; if unset, only in Prefect Cloud, because the "
            "open-source server does not show assets."
        ),
    )
    progress_seconds: float = Field(
        default=300.0,
        gt=0,
        description="How often a long wait logs that it is still waiting.",
    )
    circuit_drawings: Literal["loaded", "always", "never"] = Field(
        default="loaded",
        description=(
            "Whether a job's page shows its circuits and an error estimate from the backend's calibration: if the flow "
            "has loaded Qiskit anyway, always (Qiskit must be installed), or never."
        ),
    )
    live_line: bool = Field(
        default=True,
        description="Whether a wait shows its progress in a terminal or notebook, in one line updated in place.",
    )


def current_settings() -> QuantumRuntimeSettings:
    """The settings as the environment has them now.

    Reading them takes 2 ms and a job asks twenty times, so they are kept while our variables, Prefect's home and
    profile, and the working directory stay the same; files are read once for each such environment.

    Raises:
        InvalidInput: A setting is wrong; the error names its variable.
    """
    global _last
    environment = _environment()
    if _last is None or _last[0] != environment:
        # In this order: what changes meanwhile is seen the next time.
        _last = environment, _settings_of(_ours(), environment[1])
    return _last[1]


def _ours() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].upper().startswith(_OF_OURS)))


def _environment() -> tuple[dict[Any, Any], str]:
    """All that the settings may depend on; compared only, as it holds other programs' secrets.

    The variables are as the system has them, where Python keeps that: to decode them takes thirty times as long.
    """
    folder = ""  # it was removed
    with contextlib.suppress(OSError):
        folder = os.getcwd()  # noqa: PTH109 - a key, no path
    return dict(getattr(os.environ, "_data", os.environ)), folder


_last: tuple[tuple[dict[Any, Any], str], QuantumRuntimeSettings] | None = None
"""The settings as asked for last, and the environment then."""


@lru_cache(maxsize=8)
def _settings_of(variables: tuple[tuple[str, str], ...], folder: str) -> QuantumRuntimeSettings:
    try:
        return QuantumRuntimeSettings()
    except ValidationError as error:
        (name, first), *more = wrong_settings(error)
        others = "".join(f" {other}: {text}" for other, text in more)
        raise InvalidInput(
            first + others, field=name, solution="Correct or remove it in the environment or the Prefect profile."
        ) from None


def unknown_settings() -> dict[str, str]:
    """The variables of the environment that look like our settings but are not, with similar ones as a question."""
    known = QuantumRuntimeSettings.model_fields
    given = [name.upper() for name, _ in _ours() if name.upper().startswith(_PREFIX)]
    names = {name: name.removeprefix(_PREFIX).lower() for name in given}
    return {name: nearest(setting, known) for name, setting in names.items() if setting not in known}


def wrong_settings(error: ValidationError) -> list[tuple[str, str]]:
    """The variables whose values are wrong, each with a sentence that says why and shows the value."""
    return [
        (
            _PREFIX + "_".join(str(part) for part in wrong["loc"]).upper(),
            f"{wrong['msg']}, not {shown(wrong['input'])}.",
        )
        for wrong in error.errors()
    ]
