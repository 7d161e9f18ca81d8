"""Check options of the sampler and the estimator against the service's schema, and write them for the executor.

The fields, ranges and enumerations are those of IBM's OpenAPI document 0.45.3. Unknown names are
refused at every level, also where the schema would ignore them: a misspelt option would otherwise
be paid for without effect. `experimental` and `simulator.noise_model` stay open.

Two estimator keys, `resilience_level` and `precision`, stand beside `options` on the wire; they are
written into the options here, and the dialect places them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_qruntime.client.encodings.arrays import Extrapolator
from prefect_qruntime.client.inputs.spec import IBM_EXTRA, check_precision, plain_json
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import nearest, shown

__all__ = [
    "EstimatorOptions",
    "SamplerOptions",
    "check_equivalents",
    "check_options",
    "execution_flags",
    "folds_at_random",
    "measurement_level",
    "options_that_need_ibm",
    "program_options",
]

_INT = 2**31 - 1
# Options that need IBM's preparation if they are switched on: the switch and what it does.
_SWITCHES = {
    ("twirling", "enable_gates"): "twirling of gates",
    ("twirling", "enable_measure"): "twirling of measurements",
    ("resilience", "measure_mitigation"): "readout error mitigation",
    ("resilience", "zne_mitigation"): "zero-noise extrapolation",
}
# Those for which IBM's preparation needs what options do not hold: the timing of the backend, a learnt noise model.
_WITHOUT_EQUIVALENT = (
    ("seed_estimator",),
    ("dynamical_decoupling", "enable"),
    ("resilience", "pec_mitigation"),
    ("resilience", "layer_noise_model"),
    ("simulator", "noise_model"),
    ("simulator", "seed_simulator"),
    ("simulator", "coupling_map"),
    ("simulator", "basis_gates"),
)
_FLAGS = ("scheduler_timing", "stretch_values")

Count = Annotated[int, Field(ge=1, le=_INT)]
CountOrAuto = Count | Literal["auto"]
Natural = Annotated[int, Field(ge=0, le=_INT)]
Positive = Annotated[float, Field(gt=0)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DynamicalDecoupling(_Options):
    """Pulses on idle qubits."""

    enable: bool = False
    sequence_type: Literal["XX", "XpXm", "XY4"] = "XX"
    extra_slack_distribution: Literal["middle", "edges"] = "middle"
    scheduling_method: Literal["alap", "asap"] = "alap"
    skip_reset_qubits: bool = False


class EstimatorExecution(_Options):
    """`rep_delay` is in seconds."""

    init_qubits: bool = True
    rep_delay: Annotated[float, Field(ge=0)] = 0.0


class SamplerExecution(EstimatorExecution):
    """Only `classified` results are bitstrings."""

    meas_type: Literal["classified", "kerneled", "avg_kerneled"] = "classified"


class Twirling(_Options):
    """Pauli twirling of gates and measurements."""

    enable_gates: bool = False
    enable_measure: bool = False
    num_randomizations: CountOrAuto = "auto"
    shots_per_randomization: CountOrAuto = "auto"
    strategy: Literal["active", "active-circuit", "active-accum", "all"] = "active-accum"


class Simulator(_Options):
    """For simulators and local test modes."""

    noise_model: dict[str, Any] | None = None
    seed_simulator: Natural | None = None
    coupling_map: list[Any] | None = None
    basis_gates: list[str | None] = Field(default_factory=list)


class MeasureNoiseLearning(_Options):
    """How readout noise is learned."""

    num_randomizations: Count = 32
    shots_per_randomization: CountOrAuto = "auto"


class Zne(_Options):
    """Zero-noise extrapolation."""

    noise_factors: Any = None
    extrapolator: Extrapolator | list[Extrapolator] = "exponential"
    amplifier: Literal["gate_folding", "gate_folding_front", "gate_folding_back", "pea"] = "gate_folding"
    extrapolated_noise_factors: Any = None


class Pec(_Options):
    """Probabilistic error cancellation."""

    max_overhead: Positive | None = None
    noise_gain: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


class LayerNoiseLearning(_Options):
    """How the noise of layers is learned."""

    max_layers_to_learn: Natural | None = None
    shots_per_randomization: Count = 128
    num_randomizations: Count = 32
    layer_pair_depths: Any = None


class Resilience(_Options):
    """Error mitigation."""

    measure_mitigation: bool = False
    measure_noise_learning: MeasureNoiseLearning = Field(default_factory=MeasureNoiseLearning)
    zne_mitigation: bool = False
    zne: Zne = Field(default_factory=Zne)
    pec_mitigation: bool = False
    pec: Pec = Field(default_factory=Pec)
    layer_noise_learning: LayerNoiseLearning = Field(default_factory=LayerNoiseLearning)
    layer_noise_model: Any = None


class _Common(_Options):
    dynamical_decoupling: DynamicalDecoupling = Field(default_factory=DynamicalDecoupling)
    twirling: Twirling = Field(default_factory=Twirling)
    simulator: Simulator = Field(default_factory=Simulator)
    experimental: dict[str, Any] = Field(default_factory=dict)


class SamplerOptions(_Common):
    """All options of program `sampler`. Only what is set is sent.

    Example:
        ```python
        from prefect_qruntime.client.inputs import SamplerOptions

        options = SamplerOptions(default_shots=4096, twirling={"enable_measure": True})
        ```
    """

    default_shots: Natural = 4096
    execution: SamplerExecution = Field(default_factory=SamplerExecution)


class EstimatorOptions(_Common):
    """All options of program `estimator`. Only what is set is sent.

    Example:
        ```python
        from prefect_qruntime.client.inputs import EstimatorOptions

        options = EstimatorOptions(resilience_level=1, default_precision=0.01)
        ```
    """

    default_shots: Natural | None = None
    default_precision: Positive = 0.015625
    seed_estimator: Natural | None = None
    execution: EstimatorExecution = Field(default_factory=EstimatorExecution)
    resilience: Resilience = Field(default_factory=Resilience)
    resilience_level: Annotated[int, Field(ge=0, le=2)] = 1
    precision: Positive | None = None


_MODELS: dict[str, type[_Common]] = {"sampler": SamplerOptions, "estimator": EstimatorOptions}

# Names that other clients and older services use, with what to use here.
_ELSEWHERE = {
    "shots": "Use shots= beside the options.",
    "max_execution_time": "Use max_execution_time= beside the options.",
    "optimization_level": "The service does not transpile: send circuits for the backend.",
    "transpilation": "The service does not transpile: send circuits for the backend.",
    "environment": "Use tags= and private= beside the options.",
}


def check_options(options: Any, *, program_id: str) -> dict[str, Any]:
    """The options as plain JSON, holding only what was set.

    Raises:
        InvalidInput: An unknown name (with the nearest known one), a wrong type, a value outside
            its range. `field` is the full path, for instance `options.twirling.strategy`.
    """
    if options is None:
        return {}
    model = _MODELS[program_id]
    if isinstance(options, BaseModel):
        if not isinstance(options, model):
            kind = type(options)
            raise InvalidInput(
                f"{kind.__module__}.{kind.__qualname__} does not fit program {program_id!r}; use a dict, or "
                f"{model.__module__}.{model.__qualname__}",
                field="options",
            )
        options = options.model_dump(exclude_unset=True)
    if not isinstance(options, Mapping):
        raise InvalidInput(f"must be a dict, not {type(options).__name__}", field="options")
    plain = plain_json(options, field="options")
    try:
        checked = model.model_validate(plain)
    except ValidationError as error:
        raise _explained(error, model) from None
    kept: dict[str, Any] = checked.model_dump(exclude_unset=True, mode="json")
    for name in ("precision", "default_precision"):
        if kept.get(name) is not None:
            check_precision(kept[name], field=f"options.{name}")
    return kept


def _explained(error: ValidationError, model: type[BaseModel]) -> InvalidInput:
    """Build one error about one field from the deepest of pydantic's errors."""
    details = error.errors(include_url=False, include_context=False)
    # A union reports each branch; the field is the path up to where the model stops.
    first = details[0]
    path, known = _path(first["loc"], model)
    field = ".".join(["options", *path])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        where = _ELSEWHERE.get(name) or _belongs(name, model)
        hint = f" {where}" if where else f" {nearest(name, known)}".rstrip()
        listed = ", ".join(sorted(known))
        return InvalidInput(f"unknown option.{hint or f' Known: {listed}.'}", field=field)
    same = [item["msg"] for item in details if _path(item["loc"], model)[0] == path]
    return InvalidInput(f"{'; or '.join(dict.fromkeys(same))}, not {shown(first['input'])}", field=field)


def _belongs(name: str, model: type[BaseModel]) -> str | None:
    """The place of an option of the same name: elsewhere in this program's options, or in the other program's."""
    others = [(program, other) for program, other in _MODELS.items() if other is not model]
    for program, candidate in [("", model), *others]:
        path = _place(name, candidate)
        if path is not None:
            return f"It belongs to {'.'.join(['options', *path])}{f' of the {program}' if program else ''}."
    return None


def _place(name: str, model: type[BaseModel]) -> list[str] | None:
    if name in model.model_fields:
        return []
    for step, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            path = _place(name, inner)
            if path is not None:
                return [step, *path]
    return None


def _path(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """The field names in an error's location, and the names known at its last level."""
    path: list[str] = []
    current: type[BaseModel] | None = model
    known = list(model.model_fields)
    for part in loc:
        if current is None or not isinstance(part, str):
            break
        known = list(current.model_fields)
        path.append(part)
        if part not in current.model_fields:
            break
        inner = current.model_fields[part].annotation
        current = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return path, known


def options_that_need_ibm(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each option that is switched on and needs IBM's preparation: its path and what it is."""
    if options.get("resilience_level"):
        yield "options.resilience_level", f"error mitigation (level {options['resilience_level']})"
    for (group, name), what in _SWITCHES.items():
        found = options.get(group)
        if isinstance(found, Mapping) and found.get(name):
            yield f"options.{group}.{name}", what


def check_equivalents(options: Mapping[str, Any]) -> None:
    """Refuse options that have no equivalent on the executor.

    Raises:
        InvalidInput: The option is named.
    """
    for path in _WITHOUT_EQUIVALENT:
        value: Any = options
        for name in path:
            value = (value or {}).get(name)
        if value is not None and value is not False and value not in ([], {}):  # a seed of 0 is one
            raise _no_equivalent(path)
    if _zne(options).get("amplifier") == "pea":
        raise _no_equivalent(("resilience", "zne", "amplifier"))


def folds_at_random(options: Mapping[str, Any]) -> bool:
    """Whether IBM's preparation draws the gates that it folds, so that each quantum program is another.

    It folds all gates alike for a noise factor that is an odd number.
    """
    zne = _zne(options)
    factors = zne.get("noise_factors")
    return (
        zne.get("amplifier", "gate_folding") == "gate_folding"
        and isinstance(factors, list)
        and any(factor % 2 != 1 for factor in factors)
    )


def _zne(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of zero-noise extrapolation, if it is on."""
    resilience = options.get("resilience") or {}
    on = resilience.get("zne_mitigation", options.get("resilience_level") == 2)
    return (resilience.get("zne") or {}) if on else {}


def _no_equivalent(path: Sequence[str]) -> InvalidInput:
    return InvalidInput(
        'has no equivalent on the route "executor", with or without the extra [ibm]. Leave it out, or use '
        'route="service"',
        field=".".join(["options", *path]),
    )


def program_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options` of a quantum program.

    Args:
        options: Checked options of the sampler or the estimator; those that decide the shots are read elsewhere.

    Raises:
        InvalidInput: An option that the executor has no equivalent for.
    """
    check_equivalents(options)
    for path, what in options_that_need_ibm(options):
        raise InvalidInput(
            f"{what} is prepared on the client's side on the route \"executor\", by IBM's own client. Install it with "
            f'{IBM_EXTRA}, switch the option off, or use route="service"',
            field=path,
        )
    found: dict[str, Any] = {}
    execution = options.get("execution") or {}
    for name in ("init_qubits", "rep_delay"):
        if execution.get(name) is not None:
            found[name] = execution[name]
    found |= dict.fromkeys(execution_flags(options), True)
    if options.get("experimental"):
        found["experimental"] = dict(options["experimental"])
    return found


def execution_flags(options: Mapping[str, Any]) -> list[str]:
    """The flags of the executor that are set; the other programs have them among their experimental options."""
    inner = (options.get("experimental") or {}).get("execution")
    return [name for name in _FLAGS if isinstance(inner, Mapping) and inner.get(name)]


def measurement_level(options: Mapping[str, Any]) -> str:
    """The `meas_level` of a quantum program."""
    return str((options.get("execution") or {}).get("meas_type") or "classified")
