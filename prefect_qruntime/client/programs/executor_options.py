"""Options of the sampler and the estimator as those of a quantum program, or a refusal by name.

The executor runs circuits as they are. Twirling, dynamical decoupling and error mitigation are prepared on the
client's side, which IBM's own client does (extra `[ibm]`). An option is dropped only if it has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefect_qruntime.client.inputs.quantum_program import IBM_EXTRA
from prefect_qruntime.errors import InvalidInput

__all__ = ["measurement_level", "options_that_need_ibm", "program_options"]


# Options that need IBM's preparation if they are switched on: the switch and what it does.
_SWITCHES = {
    ("dynamical_decoupling", "enable"): "dynamical decoupling",
    ("twirling", "enable_gates"): "twirling of gates",
    ("twirling", "enable_measure"): "twirling of measurements",
    ("resilience", "measure_mitigation"): "readout error mitigation",
    ("resilience", "zne_mitigation"): "zero-noise extrapolation",
    ("resilience", "pec_mitigation"): "probabilistic error cancellation",
    ("resilience", "layer_noise_model"): "a layer noise model",
}
_FLAGS = ("scheduler_timing", "stretch_values")


def options_that_need_ibm(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each option that is switched on and needs IBM's preparation: its path and what it is."""
    if options.get("resilience_level"):
        yield "options.resilience_level", f"error mitigation (level {options['resilience_level']})"
    for (group, name), what in _SWITCHES.items():
        found = options.get(group)
        if isinstance(found, Mapping) and found.get(name):
            yield f"options.{group}.{name}", what


def program_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options` of a quantum program.

    Args:
        options: Checked options of the sampler or the estimator; those that decide the shots are read elsewhere.

    Raises:
        InvalidInput: An option that the executor has no equivalent for.
    """
    for path, what in options_that_need_ibm(options):
        raise InvalidInput(
            f"{what} is prepared on the client's side on the route \"executor\", by IBM's own client. Install it with "
            f'{IBM_EXTRA}, switch the option off, or use route="service"',
            field=path,
        )
    if options.get("seed_estimator") is not None:
        raise _no_equivalent("options.seed_estimator")
    for name, value in (options.get("simulator") or {}).items():
        if value not in (None, [], {}):
            raise _no_equivalent(f"options.simulator.{name}")
    found: dict[str, Any] = {}
    execution = options.get("execution") or {}
    for name in ("init_qubits", "rep_delay"):
        if execution.get(name) is not None:
            found[name] = execution[name]
    experimental = options.get("experimental") or {}
    inner = experimental.get("execution")
    for name in _FLAGS:
        if isinstance(inner, Mapping) and inner.get(name):
            found[name] = True
    if experimental:
        found["experimental"] = dict(experimental)
    return found


def measurement_level(options: Mapping[str, Any]) -> str:
    """The `meas_level` of a quantum program."""
    return str((options.get("execution") or {}).get("meas_type") or "classified")


def _no_equivalent(path: str) -> InvalidInput:
    return InvalidInput(
        'has no equivalent on the route "executor", with or without extras. Leave it out, or use route="service"',
        field=path,
    )
