"""What a job or session body may hold; the service is strict, so this is too.

The tables follow IBM's OpenAPI document (0.45.3) for the cloud dialect and the 2022-2024 documentation for the V1
params of the legacy one. A check returns nothing or raises the service's 400.
"""

from __future__ import annotations

from typing import Any

from prefect_qruntime.sandbox.checks import (
    Check,
    anything,
    array,
    boolean,
    choice,
    either,
    integer,
    number,
    table,
    text,
)
from prefect_qruntime.sandbox.problems import ApiError, invalid


def _sampler_pub(where: str, value: Any) -> None:
    if isinstance(value, list) and not 1 <= len(value) <= 3:
        raise invalid(f"{where} must be a circuit or [circuit, parameters, shots].")
    if not isinstance(value, list | str | dict):
        raise invalid(f"{where} must hold a circuit.")


def _estimator_pub(where: str, value: Any) -> None:
    if not isinstance(value, list) or not 2 <= len(value) <= 4:
        raise invalid(f"{where} must be [circuit, observables, parameters, precision].")


_open = table({})
_dynamical_decoupling = table(
    {
        "enable": boolean,
        "sequence_type": choice("XX", "XpXm", "XY4"),
        "extra_slack_distribution": choice("middle", "edges"),
        "scheduling_method": choice("alap", "asap"),
        "skip_reset_qubits": boolean,
    }
)
_auto = choice("auto")
_twirling = table(
    {
        "enable_gates": boolean,
        "enable_measure": boolean,
        "num_randomizations": either(integer(1), _auto),
        "shots_per_randomization": either(integer(1), _auto),
        "strategy": choice("active", "active-circuit", "active-accum", "all"),
    }
)
_simulator = table(
    {
        "noise_model": table({}, null=True),
        "seed_simulator": integer(null=True),
        "coupling_map": array(anything, null=True),
        "basis_gates": array(anything),
    },
    strict=True,
)
_extrapolators = choice(
    "linear", "exponential", "double_exponential", "fallback", *(f"polynomial_degree_{n}" for n in range(1, 8))
)
_resilience = table(
    {
        "measure_mitigation": boolean,
        "measure_noise_learning": table(
            {"num_randomizations": integer(1), "shots_per_randomization": either(integer(1), _auto)}
        ),
        "zne_mitigation": boolean,
        "zne": table(
            {
                "extrapolator": either(_extrapolators, array(_extrapolators)),
                "amplifier": choice("gate_folding", "gate_folding_front", "gate_folding_back", "pea"),
            }
        ),
        "pec_mitigation": boolean,
        "pec": table({"max_overhead": number(above=0, null=True), "noise_gain": either(number(at_least=0), _auto)}),
        "layer_noise_learning": table(
            {
                "max_layers_to_learn": integer(null=True),
                "shots_per_randomization": integer(1),
                "num_randomizations": integer(1),
            }
        ),
    }
)
SAMPLER = table(
    {
        "pubs": array(_sampler_pub, low=1),
        "options": table(
            {
                "default_shots": integer(),
                "dynamical_decoupling": _dynamical_decoupling,
                "execution": table(
                    {
                        "init_qubits": boolean,
                        "rep_delay": number(),
                        "meas_type": choice("classified", "kerneled", "avg_kerneled"),
                    }
                ),
                "twirling": _twirling,
                "simulator": _simulator,
                "experimental": _open,
            },
            strict=True,
        ),
        "shots": integer(null=True),
        "support_qiskit": boolean,
        "version": choice(2),
    },
    required=("pubs",),
    strict=True,
)
ESTIMATOR = table(
    {
        "pubs": array(_estimator_pub, low=1),
        "options": table(
            {
                "seed_estimator": integer(null=True),
                "default_precision": number(above=0),
                "default_shots": integer(null=True),
                "dynamical_decoupling": _dynamical_decoupling,
                "resilience": _resilience,
                "execution": table({"init_qubits": boolean, "rep_delay": number()}),
                "twirling": _twirling,
                "simulator": _simulator,
                "experimental": _open,
            },
            strict=True,
        ),
        "resilience_level": integer(0, 2),
        "precision": number(above=0, null=True),
        "support_qiskit": boolean,
        "version": choice(2),
    },
    required=("pubs",),
    strict=True,
)
_v1_common: dict[str, Check] = {
    "circuits": either(text(1, 10_000_000), array(anything, low=1)),
    "circuit_indices": array(integer()),
    "parameters": array(anything, null=True),
    "parameter_values": array(anything, null=True),
    "run_options": table({}, null=True),
    "options": table({}, null=True),
    "shots": integer(1, null=True),
    "transpilation_settings": _open,
    "resilience_settings": _open,
    "optimization_level": integer(0, 3),
    "resilience_level": integer(0, 3),
    "skip_transpilation": boolean,
    "version": choice(1),
}
SAMPLER_V1 = table(_v1_common, required=("circuits",), strict=True)
ESTIMATOR_V1 = table(
    {
        **_v1_common,
        "observables": either(text(), array(anything, low=1), table({})),
        "observable_indices": array(integer()),
    },
    required=("circuits", "observables"),
    strict=True,
)


def _executor_item(where: str, value: Any) -> None:
    if isinstance(value, dict) and value.get("item_type") == "samplex":
        raise invalid(f"{where}: samplex items are not offered here.", "Send circuit items: without twirling.")
    _circuit_item(where, value)


_circuit_item = table(
    {
        "item_type": choice("circuit"),
        "circuit": table(
            {"circuit_b64": text(1, 50_000_000), "qpy_version": integer(13, 17)},
            required=("circuit_b64", "qpy_version"),
        ),
        "circuit_arguments": table(
            {"data": text(0, 50_000_000), "shape": array(integer()), "dtype": choice("f64")},
            required=("data", "shape"),
        ),
        "chunk_size": either(integer(1), _auto),
    },
    required=("circuit_arguments",),
)
_program: dict[str, Check] = {
    "shots": integer(1),
    "items": array(_executor_item, low=1),
    "meas_level": choice("classified", "kerneled", "avg_kerneled"),
    "circuits": table({"b64_data": text(1, 50_000_000)}, required=("b64_data",)),
    "semantic_role": either(text(), choice(None)),
}
EXECUTOR = table(
    {
        "schema_version": choice("v0.1", "v0.2", "v2.0"),
        "quantum_program": table(_program, required=("shots", "items")),
        "options": table({"init_qubits": boolean, "rep_delay": number(null=True)}),
    },
    required=("quantum_program", "options"),
)


def _executor(where: str, value: Any) -> None:
    EXECUTOR(where, value)
    # The newest version has the circuits of all items in one place.
    program, packed = value["quantum_program"], value.get("schema_version") == "v2.0"
    for holder in [program] if packed else program["items"]:
        name = "circuits" if packed else "circuit"
        if name not in holder:
            raise invalid(f"{where} needs the key {name!r}.")


def tags(where: str, value: Any) -> None:
    """Accept at most 8 tags of at most 86 characters; codes 1204 and 1205 otherwise."""
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise invalid(f"{where} must be a list of strings.")
    if len(value) > 8:
        raise ApiError(400, 1204, "Too many tags: at most 8 are allowed.", "Send fewer tags.")
    if any(len(tag) > 86 for tag in value):
        raise ApiError(400, 1205, "A tag is longer than 86 characters.", "Send shorter tags.")


# Documented in small letters; the official client sends capitals.
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_job: dict[str, Check] = {
    "program_id": text(),
    "backend": text(),
    "runtime": text(),
    "tags": tags,
    "log_level": choice(*_LOG_LEVELS),
    # Documented as 0..10800, "larger values are capped by the server".
    "cost": integer(),
    "session_id": text(1, 36),
    "calibration_id": text(1, 100),
    "private": boolean,
    "params": _open,
    "remote_storage": _open,
}
JOB = table(_job, required=("program_id", "backend"), strict=True)
# Notebooks of the time also sent the flag as the string "True".
_flag = either(boolean, choice("True", "False", "true", "false"))
JOB_LEGACY = table(
    {
        **_job,
        "start_session": _flag,
        "session_time": integer(1, null=True),
        "hub": text(),
        "group": text(),
        "project": text(),
        "instance": text(),
    },
    required=("program_id", "backend"),
    strict=True,
)
SESSION = table(
    {
        "mode": choice("batch", "dedicated"),
        "backend": text(0),
        "backend_name": text(0),
        "max_ttl": integer(1),
        "interactive_ttl": integer(1),
        "active_ttl": integer(1),
    },
    required=("mode",),
)
SESSION_UPDATE = table({"accepting_jobs": boolean}, required=("accepting_jobs",))
TAGS_UPDATE = table({"tags": tags}, required=("tags",))
CONFIGURATION_UPDATE = table({"instance_limit": integer(1, null=True)})


def check_params(program_id: str, legacy: bool, params: Any) -> None:
    """Check the params of a job for its program.

    Raises:
        ApiError: 400 for params that do not fit or a program that is not offered, 404 for one that does not exist.
    """
    if program_id == "noise-learner" or (program_id == "executor" and legacy):
        raise ApiError(400, 1208, f"The program {program_id!r} is not offered here.")
    if program_id not in ("sampler", "estimator", "executor"):
        raise ApiError(404, "not_found", f"program not found: {program_id}")
    if params is None:
        raise invalid("params is missing.")
    first_version = legacy and isinstance(params, dict) and params.get("version", 1) == 1
    if program_id == "executor":
        _executor("params", params)
    elif program_id == "sampler":
        (SAMPLER_V1 if first_version else SAMPLER)("params", params)
    else:
        (ESTIMATOR_V1 if first_version else ESTIMATOR)("params", params)
